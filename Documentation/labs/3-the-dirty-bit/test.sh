# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# The student's test must pass with the shadow as it is, and fail with each of the broken ones.
test_lab() {
	local patch name survivors=0
	needs rust/lg-core/tests/lab3.rs
	scripts/setup root
	with_shadow as-it-is || {
		! grep -q '^error' "$scratch/3/as-it-is.log" || {
			grep -E -A 12 '^error' "$scratch/3/as-it-is.log" | head -n 40
			not_yet "it does not build" "$scratch/3/as-it-is.log"
		}
		grep -E "panicked|left:|right:" -A 1 "$scratch/3/as-it-is.log" | head -n 15
		not_yet "your test fails although nothing is broken" "$scratch/3/as-it-is.log"
	}
	saw "nothing is broken, and your test passes"
	for patch in "$lab"/broken/*.patch; do
		name=$(basename "$patch" .patch)
		if with_shadow "$name" "$patch"; then
			saw "$name survives. $(head -n 1 "$patch")"
			survivors=$((survivors + 1))
		elif grep -q '^error' "$scratch/3/$name.log"; then
			status=2 die "$patch does not build" "$scratch/3/$name.log says why"
		else
			saw "$name is caught: $(sed -n '/panicked at/{n;p;q}' "$scratch/3/$name.log")"
		fi
	done
	[ "$survivors" -eq 0 ] ||
		not_yet "your test does not notice $survivors of the broken shadows" \
			"Documentation/shadow-memory.md, A TLB, not a mirror"
}

# with_shadow NAME [PATCH] - does the test pass with lg-core as it is here, changed by PATCH?
with_shadow() {
	local to=$scratch/3/$1
	rm -rf "$to"
	mkdir -p "$to/rust/lg-core"
	cp -r rust/lg-core/src "$to/rust/lg-core"
	[ -z "${2:-}" ] || apply "$lg_top/$to" "$2" || status=2 die "$2 does not apply"
	# It needs no other crate, so this takes seconds.
	# shellcheck disable=SC2016 # for the inner shell
	scripts/in-root sh -euc '
		rustc --edition 2021 -O --crate-type rlib --crate-name lg_core -o "$1/liblg_core.rlib" "$1/rust/lg-core/src/lib.rs"
		rustc --edition 2021 -O --test --extern lg_core="$1/liblg_core.rlib" -o "$1/lab3" rust/lg-core/tests/lab3.rs
		"$1/lab3"' sh "$to" >"$to.log" 2>&1
}
