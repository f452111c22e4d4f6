# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# The Guest tests it; and it must be the student's one hypercall that did it.
test_lab() {
	local calls
	needs selftests/guests/src/bin/lab6.rs
	build
	machine -- lg run selftests/guests/lab6 -m 64M --stats
	! grep -qxE 'flush of kind [0-9]+: -22' "$seen" ||
		not_yet "the Host answers -EINVAL: it knows no such flush" \
			"flush_tlb() in rust/lg/guest/lguest/hypercall.rs, and hint 1"
	grep -E '^(a list of|what makes)' "$seen" | sed 's/^/    /' || true
	[ "$ended" -eq 0 ] || not_yet "$(grep -E -A 3 'panicked|killed|^flush of' "$seen" | head -n 4)" \
		"selftests/guests/src/bin/lab6.rs, which is the test, and the hints"
	calls=$(counter 'hypercall flush_tlb')
	[ "$calls" -le 13 ] || not_yet "that were $calls flushes, and a list is one" "$lab/README.md"
	saw "in $calls hypercalls, where one for each page would be more than 70"
}
