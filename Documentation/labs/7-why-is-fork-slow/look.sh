#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# look.sh - what does one more process cost? For a test machine: scripts/testhost --add FILE -- sh look.sh
#
# Two traces of each of two loops, which differ in nothing but in how often they go round: what one has more
# of than the other is the loop's, and the boot is in neither. Prints a line 'LOOP NUMBER NAME' for each thing
# that one round has.
# shellcheck disable=SC2016 # for the Guest's shell
set -eu

few=20 many=120
dir=$(mktemp -d)
for loop in subshell program; do
	case $loop in
	subshell) body='( : )' ;;
	program) body='/bin/true' ;;
	esac
	for rounds in $few $many; do
		lg run -m 128M --trace "$dir/trace" -- sh -c "for i in \$(seq $rounds); do $body; done"
		lg trace "$dir/trace" >"$dir/text"
		{
			# The counters, in the second part of the summary.
			lg trace --summary "$dir/trace" | awk '/^[a-z_0-9]+( [a-z_0-9]+)? +[0-9]+$/ {
				number = $NF; sub(/ +[0-9]+$/, ""); print number, $0 }'
			# What was filled in, in which half.
			echo "$(grep -c 'page fault, filled: [a-z]* 0xffff' "$dir/text") filled, upper half"
			echo "$(grep 'page fault, filled: ' "$dir/text" | grep -vc ': [a-z]* 0xffff') filled, lower half"
			# Pages that are filled in when their fault was the Guest's own a moment ago.
			sed -n "s/.*page fault, \(filled\|the guest's\): [a-z]* \(0x[0-9a-f]*\)[0-9a-f]\{3\} .*/\2 \1/p" "$dir/text" |
				awk '$2 == "the" { page = $1 } $2 == "filled" && $1 == page { again++; page = "" }
					END { print again + 0, "filled, after a fault of the guest" }'
		} >"$dir/$rounds"
	done
	awk -v loop=$loop -v rounds=$((many - few)) '
		{ number = $1; sub(/^[0-9]+ /, "") }
		NR == FNR { before[$0] = number; next }
		{ printf "%s %.1f %s\n", loop, (number - before[$0]) / rounds, $0 }' "$dir/$few" "$dir/$many"
done
rm -r "$dir"
