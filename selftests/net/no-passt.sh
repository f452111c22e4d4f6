#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# What is lacking for --net user is said before the Guest boots.
. "${0%/*}/lib.sh"

refused() {
	status=0
	"$@" >"$work/said" 2>&1 || status=$?
	same "the status" 125 "$status"
}

refused env PATH=/usr/lib/lg lg run --net user -- true
same "what it says" "lg: error[LG0027]: there is no passt
     why: --net user needs it, and no directory in PATH has it
     fix: sudo apt install passt, or leave out --net user" "$(cat "$work/said")"

background httpd -f -p 127.0.0.1:8080 -h "$work/www"
until_true grep -q ':1F90 00000000:0000 0A' /proc/net/tcp
refused lg run --net user,forward=8080:80 -- true
grep -q 'why: Failed to bind port 8080 (Address already in use)' "$work/said" || fail "$(cat "$work/said")"
