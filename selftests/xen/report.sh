#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 900
# The page about a run of a stock kernel has its phases, its initcalls by their levels, its log, and every exit
# that the counters count; and so has the trace.
. "${0%/*}/lib.sh"

rm -rf /tmp/report
mkdir /tmp/report
cd /tmp/report
trap 'rm -rf /tmp/report' EXIT
# shellcheck disable=SC2016 # for the Guest's shell
stock --report stock.html --trace trace --stats -- sh -c 'for i in $(seq 100); do /bin/true; done' >stats 2>&1
accounts_for_all trace stats
for id in phases exits time kinds pages initcalls counters log; do grep "<section id=\"$id\">" stock.html; done
for phase in 'kernel read' 'memory mapped' 'kernel, before initcalls' 'initcalls: core' 'initcalls: device' init command; do
	grep -o "\"name\":\"$phase\"" stock.html
done
grep -o "\"kernel_version\":\"Linux version $RELEASE\"" stock.html
count=$(grep -o '"initcalls":{"count":[0-9]*' stock.html | grep -o '[0-9]*$')
[ "$count" -gt 500 ]
grep -o '"log":\[".*reboot: ' stock.html >log
# The record's counters, which come last, are those of the module.
for counter in entries page_faults pf_filled interrupts halts; do
	[ "$(grep -o "\"$counter\":[0-9]*" stock.html | tail -n 1 | cut -d: -f2)" -eq "$(sed -n "s/^$counter  *//p" stats)" ]
done
