# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# What the Guest is told must be what the module counts, and tell apart what leaves and what does not.
test_lab() {
	local all entries calls
	needs selftests/guests/src/bin/lab2.rs
	build
	machine -- lg run selftests/guests/lab2 -m 64M --stats
	grep -E '^(hypercall [0-9]+:|[a-z ]+: -?[0-9]+ switches)' "$seen" | sed 's/^/    /'
	! grep -qxE 'hypercall [0-9]+: -38' "$seen" ||
		not_yet "the Host answers -ENOSYS: it knows no such hypercall" \
			"call() in rust/lg/guest/lguest/hypercall.rs, and hint 1"
	[ "$ended" -eq 0 ] || not_yet "the Guest ended with $ended, and said:
$(tail -n 5 "$seen")" "$lab/README.md"
	all=$(switches_of all) entries=$(counter entries) calls=$(counter 'hypercall switches')
	# Behind its last call it prints, and ends; the Host's interrupts make that a few more.
	((all <= entries && all >= entries - 200)) ||
		not_yet "it was told of $all switches when lg.ko had counted about $entries" "Counts::with in rust/lg/counts.rs, and hint 2"
	(($(switches_of hypercalls) >= 1000 && $(switches_of breakpoints) >= 1000)) ||
		not_yet "1000 hypercalls, or 1000 breakpoints, are fewer switches" "Counts::with in rust/lg/counts.rs"
	[ "$(switches_of 'system calls')" -lt 500 ] ||
		not_yet "system calls are told as switches, and the switcher does them alone" "struct Alone in rust/lg/sys/switcher/mod.rs"
	[ "$calls" -eq 10 ] ||
		not_yet "lg run --stats does not have 10 of 'hypercall switches', but $calls" \
			"launcher/src/report/stats.rs, and hint 3"
	grep -qE '^#define LHCALL_SWITCHES[[:space:]]+[0-9]+$' include/uapi/linux/lguest.h ||
		not_yet "the header does not define LHCALL_SWITCHES" "include/uapi/linux/lguest.h"
}

# switches_of NAME - what the Guest printed of that.
switches_of() {
	local number
	number=$(sed -n "s/^$1: \(-\?[0-9]*\) switches\$/\1/p" "$seen")
	echo "${number:--1}"
}
