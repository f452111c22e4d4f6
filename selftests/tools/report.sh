#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# The page about a run has its sections and the exits that the counters count, however the run has ended; and what a
# Guest prints stays text in it.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

rm -rf /tmp/report
mkdir /tmp/report
cd /tmp/report
trap 'rm -rf /tmp/report' EXIT

# number KEY FILE - the last number of that name in the data of a page.
number() {
	grep -o "\"$1\":[0-9]*" "$2" | tail -n 1 | cut -d: -f2
}

# sections FILE ID... - the page has these, and one element that could be a program, which is its data.
sections() {
	file=$1
	shift
	for id; do grep "<section id=\"$id\">" "$file"; done
	[ "$(grep -o '<script' "$file" | wc -l)" -eq 1 ]
	[ "$(stat -c %s "$file")" -lt 1000000 ]
}

lg --report boot.html --stats -- sh -c 'for i in $(seq 20); do /bin/true; done' >stats 2>&1
sections boot.html phases exits time kinds pages initcalls counters log
# Neither a word nor an exit is lost: the record's counters, which come last, are those of the module.
for counter in entries page_faults pf_filled direct_syscalls interrupts; do
	[ "$(number $counter boot.html)" -eq "$(sed -n "s/^$counter  *//p" stats)" ]
done
for phase in 'kernel read' 'memory mapped' 'initcalls: device' init command; do
	grep "\"name\":\"$phase\"" boot.html >found
done
[ "$(grep -o '"took":' boot.html | wc -l)" -gt 50 ]

# What changed since: the same file may be the old one and the new one.
lg --report boot.html --report-since boot.html -- true
sections boot.html changes phases exits

# A Guest that dies, and says what a browser would take for its own.
fails_with 255 lg --report panic.html -- sh -c '
	echo "</pre></script><script>alert(1)</script>" >/dev/kmsg; echo c >/proc/sysrq-trigger' 2>said
sections panic.html ending phases exits log
grep 'the guest&#39;s kernel panicked' panic.html
grep 'sysrq triggered crash' panic.html >found
grep '&lt;script&gt;alert(1)' panic.html
# One that is killed, and has no log.
fails_with 255 lg --report killed.html /usr/lib/lg/selftests/hostile/roots --append crime=root-outside 2>said
sections killed.html ending phases exits
grep 'bad root' killed.html >found
# One that never ends by itself, by the time and by a signal. (SIGINT is ignored by what a script runs beside itself.)
fails_with 124 lg --report time.html --timeout 20s -- sh -c 'while :; do :; done' 2>said
# How far it has come by then, depends on the machine.
sections time.html phases
grep 'the time was up' time.html
mkfifo began
/usr/lib/lg/lg run -m 128M --report signal.html -- sh -c 'echo there; while :; do :; done' >began &
launcher=$!
read -r line <began
[ "$line" = there ]
kill "$launcher"
fails_with 143 wait "$launcher"
sections signal.html phases exits
grep 'lg got a signal: SIGTERM' signal.html

# What cannot be is refused before anything runs; a run that is refused has a page, which says why.
fails_with 125 lg --report /no/such/page -- echo ran >out 2>said
grep -F 'error[LG0045]' said
fails_with 125 lg --report new.html --report-since stats -- echo ran >out 2>said
grep -F 'error[LG0064]' said
fails_with 125 lg --report-since boot.html -- echo ran >out 2>said
grep -F 'error[LG0064]' said
[ ! -s out ] && [ ! -e new.html ]
fails_with 125 /usr/lib/lg/lg run --report refused.html /no/such/kernel 2>said
sections refused.html ending
grep 'No such file' refused.html
