#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
# The record of a run accounts for every exit that the counters count, and is read in every form.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

rm -rf /tmp/trace
mkdir /tmp/trace
cd /tmp/trace
trap 'rm -rf /tmp/trace' EXIT
lg --trace file --stats -- sh -c 'for i in $(seq 100); do /bin/true; done' >stats 2>&1
accounts_for_all file stats

# The same in JSON; and the forms that are for other programs.
/usr/lib/lg/lg trace --summary --json file | grep '"entries"'
records=$((($(stat -c %s file) - 64) / 128))
[ "$(/usr/lib/lg/lg trace file | wc -l)" -eq $((records + 1)) ]
[ "$(/usr/lib/lg/lg trace --json file | wc -l)" -eq "$records" ]
/usr/lib/lg/lg trace --perfetto file >perfetto.json
[ "$(grep -c '"tid":2,' perfetto.json)" -gt 1000 ]
# Functions have their names: this is where a Guest begins.
/usr/lib/lg/lg trace file | grep -q 'fetch .* at startup_lguest$'
# Another kernel's are not.
fails_with 125 /usr/lib/lg/lg trace --kernel /usr/lib/lg/guests/hello file 2>said
grep -F 'error[LG0060]' said
grep 'build ID' said

# Where nobody knows them, that is said, and how to name who does; and once that is done it is not.
lg --trace bare /usr/lib/lg/guests/hello
/usr/lib/lg/lg trace bare 2>said >lines
grep 'functions have no names.*--kernel' said
/usr/lib/lg/lg trace --kernel /usr/lib/lg/guests/hello bare 2>said >lines
grep 'hypercall console.* at [a-z_]*::' lines
[ ! -s said ]
rm bare lines

# With each system call in it, none is the switcher's alone: here are the programs that the shell starts (execve is 59), and
# what they have returned.
lg --trace calls --trace-calls --stats -- sh -c 'for i in $(seq 100); do /bin/true; done' >stats 2>&1
accounts_for_all calls stats
grep -x 'direct_syscalls *0' summary
grep -x 'direct_erets *0' summary
/usr/lib/lg/lg trace calls >lines
[ "$(grep -c ' user .* system call 59(' lines)" -ge 100 ]
[ "$(grep -c 'hypercall eret' lines)" -gt "$(grep -c ' user .* system call ' lines)" ]
rm calls lines

# Of several vCPUs, the records of all are there, in order of their times, and Perfetto has a process for each.
# shellcheck disable=SC2016 # for the Guest's shell
lg --smp 2 --trace two --stats -- sh -c 'for i in $(seq 30); do /bin/true & /bin/true; done; wait' >stats 2>&1
accounts_for_all two stats
/usr/lib/lg/lg trace two >lines
grep '^CPU  *time us' lines
[ "$(grep -c '^  0 ' lines)" -gt 1000 ]
[ "$(grep -c '^  1 ' lines)" -gt 1000 ]
sed 1d lines | awk '$2 < before { exit 1 } { before = $2 }'
/usr/lib/lg/lg trace --perfetto two | grep -o '"name":"vCPU [01]"' | sort -u | wc -l | grep -x 2
rm two lines

# A run that is cut off has its end.
fails_with 124 lg --trace file --timeout 20s -- sh -c 'echo there; while :; do :; done' >said
grep there said
/usr/lib/lg/lg trace file | tail -n 1 | grep 'to lg: signal$'
# No trace: nothing is written, and the error says it.
fails_with 125 lg --trace /dev/full -- true 2>said
grep -F 'error[LG0045]' said
fails_with 125 /usr/lib/lg/lg trace stats 2>said
grep -F 'error[LG0060]' said
