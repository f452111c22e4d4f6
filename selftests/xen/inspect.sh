#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What lg says of a stock kernel before anybody runs it.
. "${0%/*}/lib.sh"

/usr/lib/lg/lg inspect "$STOCK" >/tmp/said
grep "^release  *$RELEASE$" /tmp/said
grep "^runs by  *Xen's ABI, entry 0xffffffff8" /tmp/said
grep "^modules  */lib/modules/$RELEASE$" /tmp/said
/usr/lib/lg/lg inspect --json "$STOCK" | grep '"runs_by": "xen"'
[ ! -e /usr/lib/lg/vmlinux ] || /usr/lib/lg/lg inspect /usr/lib/lg/vmlinux | grep "^runs by  *lg's own ABI"
# A program, which is no kernel.
fails_with 1 /usr/lib/lg/lg inspect /usr/lib/lg/lg
/usr/lib/lg/lg run --dry-run "$STOCK" -- true | grep '^command line  *earlyprintk=xen$'
# The Host's own is the kernel of who has no other.
if [ -e /usr/lib/lg/vmlinux ]; then
	trap 'mv /tmp/vmlinux /usr/lib/lg/vmlinux' EXIT
	mv /usr/lib/lg/vmlinux /tmp/vmlinux
fi
cd /
/usr/lib/lg/lg run --dry-run -- true | grep "^kernel  */boot/vmlinuz-$(uname -r), Linux"
# A tree of modules that is none.
fails_with 125 /usr/lib/lg/lg run --dry-run --modules /etc "$STOCK" -- true 2>/tmp/said
grep 'error\[LG0058\]' /tmp/said
rm /tmp/said
