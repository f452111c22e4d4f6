#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What a command writes by turns to both outputs is in that order in a log of both.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

/usr/lib/lg/lg run -m 128M -- sh -c '
	for n in $(seq 500); do echo $n out; echo $n err >&2; done' >/tmp/log 2>&1
for n in $(seq 500); do echo "$n out"; echo "$n err"; done | cmp - /tmp/log
rm /tmp/log
