#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A signal that is ignored stays ignored.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

: >/tmp/survivor
mkfifo /tmp/survivor.in
(trap '' HUP; exec /usr/lib/lg/lg run -m 128M -- sh -c 'echo up; read line; echo $line; exit 6' \
	>/tmp/survivor </tmp/survivor.in) &
LG=$!
wait_for() { until grep -q "$1" /tmp/survivor; do kill -0 $LG; sleep .1; done; }
exec 4>/tmp/survivor.in
wait_for up
kill -HUP $LG
echo survived >&4
wait_for survived
fails_with 6 wait $LG
rm /tmp/survivor*
