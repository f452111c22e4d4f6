# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# The answers are laid beside traces that are taken now.
test_lab() {
	needs "$lab/answers"
	local empty
	empty=$(sed -n 's/^\([a-z_]*\) = *$/\1/p' "$lab/answers" | head -n 1)
	[ -z "$empty" ] || not_yet "there is no answer yet to '$empty'" "$lab/README.md, Start" "$lab/answers"
	[ -e build/vmlinux ] || status=3 die "this lab is about lg's own kernel, and there is none" "run: make kernel"
	build
	make --no-print-directory rootfs >"$scratch/rootfs.log" 2>&1
	machine --add "$lab/look.sh" -- sh look.sh
	[ "$ended" -eq 0 ] || status=2 die "the traces could not be taken" "$seen says why"
	about page_faults "$(per subshell page_faults)" "the counter page_faults"
	about heard "$(per subshell pf_injected)" "the counter pf_injected; Documentation/shadow-memory.md, A fault, in full"
	about filled "$(per subshell pf_filled)" "the counter pf_filled; Documentation/shadow-memory.md, A fault, in full"
	about again "$(per subshell 'filled, after a fault of the guest')" "hint 2"
	half
	about roots "$(per subshell 'hypercall drop_root')" "LHCALL_DROP_ROOT in include/uapi/linux/lguest.h"
	about program_roots "$(per program 'hypercall drop_root')" "hint 3"
	about system_calls "$(per program direct_syscalls)" \
		"the counter direct_syscalls; Documentation/world-switch.md, A system call"
	about left "$(awk "BEGIN { print $(per subshell page_faults) - $(per subshell pf_filled) }")" "hint 4"
}

# per LOOP NAME - what look.sh has printed of that.
per() {
	awk -v loop="$1" -v name="$2" '
		$1 == loop { number = $2; sub(/^[a-z]+ [-0-9.]+ /, ""); if ($0 == name) print number }' "$seen"
}

# answer NAME - what the student says.
answer() {
	sed -n "s/^$1 = *//p" "$lab/answers" | tail -n 1
}

# about NAME NUMBER READ - that is the answer, or nearly: no two traces are the same.
about() {
	awk -v a="$(answer "$1")" -v b="$2" \
		'BEGIN { d = a - b; exit !(a ~ /^[0-9.]+$/ && (d < 0 ? -d : d) <= b / 4) }' </dev/null ||
		not_yet "'$1' is not $(answer "$1"), within a quarter" "$3"
	saw "$1: $2, and you say $(answer "$1")"
}

half() {
	local lower=lower
	awk "BEGIN { exit !($(per subshell 'filled, upper half') > $(per subshell 'filled, lower half')) }" && lower=upper
	[ "$(answer half)" = $lower ] || not_yet "'half' is not $(answer half)" \
		"Documentation/shadow-memory.md, Two roots for each of the Guest's"
	saw "half: $lower"
}
