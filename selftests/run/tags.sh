#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Where the CPU has PCIDs and lg is not told to do without, thousands of a bare Guest's system calls, which load CR3 twice each, make it
# forget nothing; and else, everything each time.
. "${0%/*}/../lib.sh"

guest=${0%/*}/../guests/syscalls
lg --stats "$guest" >/tmp/out 2>&1
grep -E '^(entries|direct_syscalls|direct_erets|tlb_flushes) ' /tmp/out
count() {
	sed -n "s/^$1 *\([0-9]*\)\$/\1/p" /tmp/out
}
[ "$(count direct_syscalls)" -gt 20000 ]
if grep -qw invpcid /proc/cpuinfo && ! grep -qw lg.pcids=0 /proc/cmdline; then
	[ "$(count tlb_flushes)" -lt 200 ]
else
	[ "$(count tlb_flushes)" -gt 40000 ]
fi
rm /tmp/out
