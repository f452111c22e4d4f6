#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# inside.sh VCPUS... - on a test machine with --toolchain: tortures Guests of so many vCPUs, one after the other; prints KTAP,
# and 'N passed, N failed' last. Each must do what it has to do and say of it that it was right, and neither its kernel's log
# nor the Host's may complain. What has no end of its own goes on for some seconds of the Guest's.

set -u

stress=/toolchain/cache/stress
kernel=/toolchain/cache/torture/vmlinux
passed=0 failed=0
# What a kernel says when something is wrong with it; but for these words the logs are not judged.
wrong='WARNING:|BUG:|INFO: (task|rcu|possible)|Oops|lockup|hogged|!!!|circular|inconsistent'

# judge NAME COMMAND... - runs it; its output is that of a Guest with the kernel's log.
judge() {
	name=$1
	shift
	dmesg -C 2>/dev/null || dmesg -c >/dev/null
	"$@" >/tmp/out 2>&1 </dev/null
	status=$?
	dmesg >/tmp/host
	if [ "$status" -eq 0 ] && ! grep -aqE "$wrong" /tmp/out /tmp/host; then
		passed=$((passed + 1))
		echo "ok $((passed + failed)) $name"
		return
	fi
	failed=$((failed + 1))
	echo "not ok $((passed + failed)) $name # status $status"
	grep -ahE "$wrong" -A 25 /tmp/out /tmp/host | head -n 60 | sed 's/^/# /'
	tail -n 25 /tmp/out | sed 's/^/# /'
}

# guest VCPUS COMMAND... - one with the programs as its root.
guest() {
	vcpus=$1
	shift
	lg run -v --smp "$vcpus" -m 1G --timeout 20m --root "$stress" -- "$@"
}

# tortured VCPUS TYPE OPTION... - the kernel's own torture of that TYPE, which says how it went.
tortured() {
	vcpus=$1 kind=$2
	shift 2
	lg run -v --smp "$vcpus" -m 512M --timeout 20m "$kernel" "$@" --append "$kind.shutdown_secs=30 $kind.stat_interval=5" -- \
		sleep 3600
	grep -aq "torture.*End of test: SUCCESS" /tmp/out
}

# Two at a time for each vCPU: more than there are, so that they are preempted and migrate.
for vcpus; do
	n=$((vcpus * 2))
	for stressor in fork mmap vm mprotect mremap futex membarrier switch sem signal pthread clone madvise pipe \
		shm sigsegv vfork mlock brk stack fault; do
		judge "stress-ng $stressor, $vcpus vCPUs" guest "$vcpus" \
			stress-ng --no-rand-seed --verify --oomable --temp-path /tmp --vm-bytes 64m --mmap-bytes 64m \
			--$stressor "$n" --timeout 10
	done
	for how in "" "--threads" "--pipe" "--pipe --threads"; do
		# shellcheck disable=SC2086 # the options are words
		judge "hackbench $how, $vcpus vCPUs" guest "$vcpus" hackbench $how -g 4 -f 5 -l 50
	done
	judge "perf bench futex, $vcpus vCPUs" guest "$vcpus" sh -euc '
		perf bench futex wake -t 32
		perf bench futex wake-parallel -t 32
		perf bench futex requeue -t 32
		perf bench sched messaging -g 2 -l 20
		perf bench sched pipe -l 2000'
	# shellcheck disable=SC2016 # for the shell in there
	[ "$vcpus" -eq 1 ] || judge "CPUs that go and come, $vcpus vCPUs" guest "$vcpus" sh -euc '
		stress-ng --oomable --temp-path /tmp --mmap-bytes 64m --fork 4 --futex 4 --mmap 2 --timeout 30 &
		for i in $(seq 10); do
			for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
				echo 0 >$cpu/online
				echo 1 >$cpu/online
			done
		done
		wait $!'
	for type in spin_lock mutex_lock rwsem_lock rtmutex_lock percpu_rwsem_lock; do
		judge "locktorture $type, $vcpus vCPUs" tortured "$vcpus" locktorture \
			--append "locktorture.torture_type=$type locktorture.onoff_interval=500 locktorture.onoff_holdoff=5"
	done
	for type in rcu srcu tasks; do
		judge "rcutorture $type, $vcpus vCPUs" tortured "$vcpus" rcutorture --append "locktorture.torture_type=none" \
			--append "rcutorture.torture_type=$type rcutorture.onoff_interval=500 rcutorture.onoff_holdoff=5"
	done
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
