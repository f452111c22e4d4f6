# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# The Guest must see nothing where nothing is wrong; and with global leaves, see it on the machine that has a TLB.
test_lab() {
	local broken=$lg_top/$scratch/4 bochs=bochs:corei7_icelake_u
	needs selftests/guests/src/bin/lab4.rs
	build
	says "$lg_top" "$bochs" "lg as it is, on Bochs"
	[ "$said" = 'kept apart' ] || not_yet "it says so although nothing is wrong" "$lab/README.md, the task"
	copied "$broken"
	apply "$broken" "$lab/broken.patch" || status=2 die "$lab/broken.patch does not apply"
	echo "building lg.ko with global leaves, in $broken"
	built make make --no-print-directory -C "$broken" module
	says "$broken" q35 "global leaves, on QEMU"
	saw "(QEMU empties its TLB whenever CR3 is loaded, global or not)"
	says "$broken" "$bochs" "global leaves, on Bochs"
	[ "$said" = 'mixed up' ] ||
		not_yet "your Guest does not notice" \
			"Documentation/shadow-memory.md, Two roots for each of the Guest's; hints 1 and 2"
	rm -rf "$broken"
}

# says TREE MACHINE WHERE - what the Guest says on that machine, with the lg.ko of that tree, goes to $said.
says() {
	echo "on the test machine: $3"
	mkdir -p "$scratch"
	"$1/scripts/testhost" --machine "$2" --smp 1 -- lg run selftests/guests/lab4 -m 64M \
		>"$scratch/seen" 2>&1 </dev/null || true
	said=$(grep -xE 'kept apart|mixed up' "$scratch/seen") ||
		not_yet "it said neither of the two, but: $(tail -n 5 "$scratch/seen")" "$lab/README.md"
	saw "$said"
}
