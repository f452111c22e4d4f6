# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # the variables are those of scripts/lab
#
# Sourced by scripts/lab.

# It must die, of something of which no Guest of the selftests dies; and the Host must not mind.
test_lab() {
	local table=selftests/runner/src/tests.rs reason known
	needs selftests/hostile/src/bin/lab8.rs
	build
	# shellcheck disable=SC2016 # for the machine's shell
	machine -- sh -c 'timeout 60 lg run selftests/hostile/lab8 -m 64M; echo "it ended with $?"; lg run guests/hello -m 64M'
	case $ended in
	0) ;;
	121 | 122)
		sed 's/^/    /' "$seen"
		echo "The Host did not survive that, or complains. If lg.ko is as it was, you have found what nobody has: do not"
		echo "solve this lab, report it."
		not_yet "the Host must not mind" Documentation/threat-model.md
		;;
	*) status=2 die "the next Guest, guests/hello, does not run: $(tail -n 1 "$seen")" ;;
	esac
	reason=$(sed -n 's/.*the guest was killed: //p' "$seen")
	[ "$reason" ] || not_yet "it was not killed, but $(sed -n 's/^it ended/ended/p' "$seen"): lg can live with that" \
		"Documentation/threat-model.md, What a Guest can do; the enum Death in rust/lg/blame.rs"
	while read -r known; do
		[[ $reason != *"$known"* ]] || not_yet "it died, of \"$reason\"; that did others before: \"$known\"" \
			"the constants and the table HOSTILE in $table; and what is left of the enum Death, in rust/lg/blame.rs"
	done < <(sed -n 's/.*Dies("\([^"]*\)").*/\1/p' $table)
	grep -q 'Hello from guest kernel mode' "$seen" || not_yet "the Host's next Guest says nothing" "$seen"
	saw "it died, of \"$reason\", of which no Guest in $table dies" "the Host's log is clean, and its next Guest ran"
}
