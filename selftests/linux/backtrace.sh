#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# cpus: 2
# needs: nmi
# prints: NMI backtrace for cpu 1
# A CPU tells where it is, though it takes no interrupts meanwhile or is in user mode.
set -eu
taskset -c 1 sh -c 'while :; do :; done' &
echo 9 >/proc/sysrq-trigger
for _ in 1 2 3 4 5 6 7 8 9 10; do
	taskset -c 0 sh -c 'echo l >/proc/sysrq-trigger'
done
kill "$!"
dmesg | grep -q 'NMI backtrace for cpu 1'
