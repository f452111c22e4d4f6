# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# Three habits, and behind them the oracle: whichever context goes, the shadow must still be one that a TLB could be.
test_lab() {
	needs rust/lg-core/tests/lab5.rs
	scripts/setup root
	tried lab5 --nocapture || {
		grep '100 are still there' "$log" | sed 's/^/    /'
		not_yet "$(sed -n '/panicked at/{n;p;q}' "$log")" "evict() in rust/lg-core/src/shadow/mod.rs, and the hints"
	}
	grep '100 are still there' "$log" | sed 's/^/    /'
	echo "now the oracle"
	tried shadow || {
		grep -E -A 3 'panicked at' "$log" | head -n 12
		not_yet "the oracle complains: either the shadow is wrong, or it holds what you have changed on purpose" \
			"rust/lg-core/tests/shadow/main.rs, and hint 4" "$log"
	}
}

# tried TEST [OPTION] - does that pass? What it says goes to $log; without an option, that is what fails. (Some tests of
# the oracle have to panic.)
tried() {
	log=$scratch/5-$1.log
	mkdir -p "$scratch"
	# As many steps of the oracle as a change like this needs.
	scripts/in-root env SHADOW_STEPS=20000 cargo test --locked -p lg-core --test "$1" -- ${2:+"$2"} >"$log" 2>&1 || {
		! grep -qE '^error(\[|: could not)' "$log" || {
			grep -E -A 12 '^error' "$log" | head -n 40
			not_yet "it does not build" "$log"
		}
		return 1
	}
}
