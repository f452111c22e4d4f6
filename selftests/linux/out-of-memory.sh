#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# memory: 96M
# prints: the shell lives
# The kernel kills the one that eats all memory, and the others go on.
set -eu

echo 1 >/proc/sys/vm/overcommit_memory
echo 1000 >/proc/self/oom_score_adj
status=0
/bin/busybox tail /dev/zero || status=$?
[ $status -eq 137 ]
echo 0 >/proc/self/oom_score_adj
dd if=/dev/zero of=/tmp/file bs=1M count=8 2>/dev/null
echo 'the shell lives'
