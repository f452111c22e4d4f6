#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Several shells at once, each of which starts programs as fast as it can.
set -eu

for job in 1 2 3 4; do
	(
		i=0
		while [ $i -lt 40 ]; do
			i=$((i + 1))
			/bin/busybox true
			[ "$(/bin/busybox echo $job.$i)" = $job.$i ]
		done
		echo $job >/tmp/done.$job
	) &
done
wait
[ "$(cat /tmp/done.* | tr -d '\n')" = 1234 ]
