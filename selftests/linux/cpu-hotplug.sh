#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# cpus: 2 4
# timeout: 400
# CPUs go and come while programs run on all of them.
set -eu

busy() {
	while ! [ -e /tmp/done ]; do
		/bin/busybox true
		[ "$(/bin/busybox echo here)" = here ]
	done
	echo "$1" >"/tmp/busy.$1"
}
last=$(($(nproc) - 1))
for job in $(seq 0 "$last"); do
	busy "$job" &
done
for round in 1 2 3 4 5 6 7 8; do
	for cpu in $(seq 1 "$last"); do
		echo 0 >"/sys/devices/system/cpu/cpu$cpu/online"
		[ "$(nproc)" = "$last" ]
		! taskset -c "$cpu" true 2>/dev/null || exit
		echo 1 >"/sys/devices/system/cpu/cpu$cpu/online"
		[ "$(taskset -c "$cpu" cut -d' ' -f39 /proc/self/stat)" = "$cpu" ]
	done
	# All but one at a time.
	for cpu in $(seq 1 "$last"); do echo 0 >"/sys/devices/system/cpu/cpu$cpu/online"; done
	[ "$(nproc)" = 1 ]
	for cpu in $(seq "$last" -1 1); do echo 1 >"/sys/devices/system/cpu/cpu$cpu/online"; done
	[ "$(nproc)" = $((last + 1)) ]
	echo "round $round"
done
touch /tmp/done
wait
[ "$(cat /tmp/busy.* | wc -l)" = $((last + 1)) ]
