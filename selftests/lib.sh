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

# lg ARGUMENT... - run a Guest, which is small.
lg() {
	/usr/lib/lg/lg run -m 128M "$@"
}
