#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# cpus: 2 4
# The CPUs that lg run was told of are there, and each runs programs, has a clock that goes on, and gets IPIs.
set -eu

cpus=$(nproc)
[ "$cpus" -ge 2 ]
[ "$(grep -c ^processor /proc/cpuinfo)" = "$cpus" ]
[ "$(cat /sys/devices/system/cpu/online)" = "0-$((cpus - 1))" ]

# Field 39 of stat is the CPU that the program was on last.
for cpu in $(seq 0 $((cpus - 1))); do
	[ "$(taskset -c "$cpu" cut -d' ' -f39 /proc/self/stat)" = "$cpu" ]
	taskset -c "$cpu" sleep 0.01
done

# What interrupt KIND, at the begin or the end of its line, has come on CPU, if anything.
interrupts() {
	awk -v kind="$1" -v cpu="$2" '$1 == kind ":" || $NF == kind { print $(cpu + 2) }' /proc/interrupts
}
# By Xen's ABI the timers are ports.
xen=
if [ -e /sys/hypervisor/type ]; then xen=yes; fi
for cpu in $(seq 0 $((cpus - 1))); do
	timer=${xen:+timer$cpu}
	[ "$(interrupts "${timer:-LOC}" "$cpu")" -gt 0 ]
done
[ "$(interrupts CAL 1)" -gt 0 ]

# These are more than the Host has: they wait for a CPU, and that is steal time, field 9 of the first line.
if [ "$cpus" -ge 4 ]; then
	for cpu in $(seq 0 $((cpus - 1))); do
		taskset -c "$cpu" sh -c 'while ! [ -e /tmp/done ]; do :; done' &
	done
	until [ "$(awk '$1 == "cpu" { print $9 }' /proc/stat)" -gt 0 ]; do sleep 0.1; done
	touch /tmp/done
	wait
fi
