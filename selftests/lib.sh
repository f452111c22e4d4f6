# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Sourced by the scripts of the tests that run on the Host.

set -eux

# fails_with STATUS COMMAND... - that is the status of COMMAND.
fails_with() {
	expected=$1 status=0
	shift
	"$@" || status=$?
	[ "$status" -eq "$expected" ]
}

# accounts_for_all TRACE STATS - each counter of exits that `lg run --stats` has printed to STATS is the trace's as well, and
# the same. Makes files in the current directory.
accounts_for_all() {
	/usr/lib/lg/lg trace --summary "$1" >summary
	grep -E '^[a-z_0-9]+( [a-z_]+)? +[0-9]+$' summary | sort >of-the-trace
	# Behind the sums are those of each vCPU, where there are several.
	sed -nE 's/^([a-z_0-9]+( [a-z_]+)? +[0-9]+)( +[0-9]+)*$/\1/p' "$2" | sort >of-the-module
	[ "$(wc -l <of-the-trace)" -ge 25 ]
	# Only what is no exit is the module's alone.
	diff of-the-trace of-the-module >differences || :
	sed -n 's/^[-+]\([a-z]\)/\1/p' differences | sed 's/ *[0-9]*$//' >names
	[ "$(cat names)" = 'cr3_loads
known_pages
msr_writes
prefilled
sections
shadow_pages
shadow_recycled
tlb_flushes' ]
}

# lg ARGUMENT... - run a Guest, which is small.
lg() {
	/usr/lib/lg/lg run -m 128M "$@"
}
