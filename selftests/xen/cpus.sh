#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 1200
# A stock kernel has the CPUs that it is given; a device interrupts the one that it is bound to; counters, trace and page know
# of all. (What the kernel does with several CPUs, `stock` tests.)
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

rm -rf /tmp/cpus
mkdir /tmp/cpus
cd /tmp/cpus
trap 'rm -rf /tmp/cpus' EXIT

# As many as there can be, which is more than the Host has.
stock --smp 32 -m 512M -- sh -c 'nproc; cat /sys/devices/system/cpu/online; for cpu in $(seq 0 31); do
	taskset -c $cpu cut -d" " -f39 /proc/self/stat; done' >said
{ echo 32; echo 0-31; seq 0 31; } | cmp - said
fails_with 125 stock --smp 33 -- true 2>said
grep 'there can be no guest with 33 CPUs' said

# The file system's queue, which has an interrupt in use, to CPU 3, and then to CPU 0: files are still read.
dd if=/dev/urandom of=file bs=1M count=2
sum=$(md5sum <file)
stock --smp 4 --stats --trace trace --report page.html -- sh -c '
	line() { grep virtio.*requests.0 /proc/interrupts; }
	irq=$(line | cut -d: -f1)
	for cpu in 3 0; do
		echo $((1 << cpu)) >/proc/irq/$((irq))/smp_affinity
		before=$(line | awk -v cpu=$cpu "{ print \$(cpu + 2) }")
		taskset -c 1 md5sum <file
		echo 1 >/proc/sys/vm/drop_caches
		after=$(line | awk -v cpu=$cpu "{ print \$(cpu + 2) }")
		[ "$after" -gt "$before" ] && echo interrupts on $cpu
	done' >said 2>stats
printf '%s\n' "$sum" 'interrupts on 3' "$sum" 'interrupts on 0' | cmp - said
accounts_for_all trace stats
grep -o '"vcpus":4' page.html
