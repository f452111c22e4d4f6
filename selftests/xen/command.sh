#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# A stock kernel runs a command, which has its streams, its directory, its variables and the Host's
# files; what it writes there stays in the Guest; and its status comes back.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

mkdir -p /tmp/xen /srv/xen
echo host >/srv/xen/file
cd /srv/xen
seq 20000 >/tmp/xen/in
set +x
fails_with 7 stock --env A=b -- sh -c '
	uname -r; pwd; echo $A; id -u; cat file; cat /sys/hypervisor/type
	echo guest >file; cat file
	echo to stderr >&2
	md5sum
	head -c 300000 /dev/zero
	exit 7' </tmp/xen/in >/tmp/xen/out 2>/tmp/xen/err
set -x
head -n 8 /tmp/xen/out >/tmp/xen/head
sum=$(md5sum </tmp/xen/in)
printf '%s\n' "$RELEASE" /srv/xen b 0 host xen guest "$sum" | cmp - /tmp/xen/head
[ "$(wc -c </tmp/xen/out)" = $((300000 + $(wc -c </tmp/xen/head))) ]
[ "$(cat /tmp/xen/err)" = 'to stderr' ]
[ "$(cat file)" = host ]
# The status takes another way than the log, and needs no file system of the kernel's.
fails_with 7 stock --append printk.devkmsg=off -- sh -c 'echo 0 >/proc/sys/kernel/printk; umount -l /sys; exit 7'
rm -r /tmp/xen /srv/xen
