#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What lg says of the Host's kernel before anybody runs it.
. "${0%/*}/lib.sh"

/usr/lib/lg/lg inspect "$STOCK" >/tmp/said
grep "^release  *$(uname -r)$" /tmp/said
grep "^runs by  *Xen's ABI, entry 0xffffffff8" /tmp/said
grep "^modules  */lib/modules/$(uname -r)$" /tmp/said
/usr/lib/lg/lg inspect --json "$STOCK" | grep '"runs_by": "xen"'
/usr/lib/lg/lg inspect /usr/lib/lg/vmlinux | grep "^runs by  *lg's own ABI"
# A program, which is no kernel.
fails_with 1 /usr/lib/lg/lg inspect /usr/lib/lg/lg
/usr/lib/lg/lg run --dry-run "$STOCK" -- true | grep '^command line  *earlyprintk=xen$'
# It is the kernel of who has no other.
trap 'mv /tmp/vmlinux /usr/lib/lg/vmlinux' EXIT
mv /usr/lib/lg/vmlinux /tmp/vmlinux
cd /
/usr/lib/lg/lg run --dry-run -- true | grep "^kernel  *$STOCK, Linux"
# A tree of modules that is none.
fails_with 125 /usr/lib/lg/lg run --dry-run --modules /etc "$STOCK" -- true 2>/tmp/said
grep 'error\[LG0058\]' /tmp/said
rm /tmp/said
