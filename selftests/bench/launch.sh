#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# launch - on the Host: how long `lg run -- true` takes, and how much memory lg has beyond its Guest's RAM.
#
# Under -icount a nanosecond of the clock is an instruction, lg's, the Host kernel's and the Guest's together. RAM is
# shmem, so what is not is lg's own: code, heap, stacks. What lg.ko has is counted apart, in pages of shadow.

RUNS=5
# Of what busybox has, the only clock in nanoseconds.
now() { awk '/^now at/ { print $3; exit }' /proc/timer_list; }

lg run -- true
start=$(now)
for _ in $(seq $RUNS); do
	lg run -- true || exit
done
end=$(now)
echo "lg-run-true $(((end - start) / RUNS))"

lg run -- sleep 20 &
sleep 10
awk '/^(Pss_Anon|Pss_File):/ { kib += $2 } END { print "lg-memory-kib", kib }' "/proc/$!/smaps_rollup"
kill $!
