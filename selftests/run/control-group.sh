#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A Guest that its control group, or one around that, has no memory for is refused. lg would be killed, and
# could not say why. One that fits is not.
. "${0%/*}/../lib.sh"

TOP=/sys/fs/cgroup
GROUP=$TOP/lg-test
echo +memory >$TOP/cgroup.subtree_control
mkdir -p $GROUP/inner
inside() { (echo 0 >"$1/cgroup.procs"; shift; exec /usr/lib/lg/lg run "$@"); }
FILL='dd if=/dev/zero of=/dev/shm/fill bs=1M count=70'
# What the Host has of it does not count.
echo 0 >$GROUP/memory.swap.max
echo 100M >$GROUP/memory.max
for group in $GROUP $GROUP/inner; do
	fails_with 125 inside "$group" -m 128M -- true 2>/tmp/said
	grep 'error\[LG0053\]' /tmp/said
	grep "of the 100 MiB of $GROUP," /tmp/said
	fails_with 125 inside "$group" -m 128M --dry-run -- true
done
echo 300M >$GROUP/memory.max
inside $GROUP/inner -m 192M -- sh -c "$FILL"
fails_with 125 inside $GROUP/inner -m 300M -- true
echo max >$GROUP/memory.max
inside $GROUP/inner -m 192M -- true
rmdir $GROUP/inner $GROUP
