# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# The Guest is run twice; the module's own count says whether the exceptions were real.
test_lab() {
	local source=rust/lguest-guest/examples/lab1.rs lines
	needs $source
	lines=$(grep -cvE '^[[:space:]]*(//|$)' $source)
	[ "$lines" -le 30 ] || not_yet "it has $lines lines of code, and 30 are enough" "$lab/README.md, the hints"
	build
	greets Ada 3
	greets Grace 11
}

# greets NAME FAULTS - all that it should do for these.
greets() {
	machine -- lg run guests/lab1 -m 64M --stats --append "name=$1 faults=$2"
	prints "Hello $1, from CPL 3." "command_line() in rust/lguest-guest/src/params.rs, cpl() in the example hello.rs"
	prints 'Interrupts: off. PUSHF: on.' "rust/lguest-call/src/irq.rs, and hint 2"
	prints "$2 exceptions later." "rust/lguest-guest/src/event.rs, and hint 3"
	[ "$ended" -eq "$2" ] || not_yet "its exit status is $ended, not $2" "rust/lguest-guest/src/lib.rs, at entry!"
	[ "$(counter exceptions)" -eq "$2" ] ||
		not_yet "lg.ko has given it $(counter exceptions) exceptions, not $2" "rust/lguest-guest/src/event.rs, and hint 3"
	saw "for $1: three lines, $2 exceptions by the module's own count, and exit status $2"
}

# prints LINE READ - it has said that.
prints() {
	grep -qxF "$1" "$seen" || {
		echo "it said:"
		grep -vE '^[a-z_0-9]+( [a-z_0-9]+)? +[0-9]+$' "$seen" | head -n 15 | sed 's/^/    /'
		not_yet "there is no line '$1'" "$2"
	}
}
