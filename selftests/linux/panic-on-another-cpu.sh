#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# cpus: 2 4
# expect: 255
# prints: kernel panicked: sysrq triggered crash
# Another CPU than the first panics, while all are busy, one of them with printing.
for cpu in $(seq 0 $(($(nproc) - 1))); do
	taskset -c "$cpu" sh -c 'while :; do :; done' &
done
while :; do echo more >/dev/kmsg; done &
exec taskset -c 1 sh -c 'echo c >/proc/sysrq-trigger'
