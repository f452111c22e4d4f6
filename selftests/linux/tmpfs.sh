#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Files come and go in memory, several writers at a time, and nothing stays.
set -eu

mkdir /tmp/t
mount -t tmpfs -o size=96m tmpfs /tmp/t
cd /tmp/t
for job in 1 2 3 4; do
	(
		mkdir $job
		i=0
		while [ $i -lt 60 ]; do
			i=$((i + 1))
			dd if=/dev/zero of=$job/file$i bs=4k count=32 2>/dev/null
			echo "$job $i" >>$job/file$i
		done
	) &
done
wait
for job in 1 2 3 4; do
	[ "$(tail -q -n 1 $job/file60 | tr -d '\0')" = "$job 60" ]
done
[ "$(find . -type f | wc -l)" -eq 240 ]
# Full is full, and is told.
if dd if=/dev/zero of=big bs=1M count=200 2>/dev/null; then
	exit 1
fi
rm -r big 1 2 3 4
dd if=/dev/zero of=big bs=1M count=64 2>/dev/null
[ "$(wc -c <big)" -eq $((64 << 20)) ]
cd /
umount /tmp/t
