#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# When passt dies, lg says so once, the Guest sees the link go down, and goes on.
. "${0%/*}/lib.sh"

serve
# shellcheck disable=SC2016 # for the Guest's shell
script='
	echo ready
	until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done
	wget -q -T 1 -O - http://10.0.2.2:8000/file | wc -c
	exit 7
'
lg run --net user -- sh -c "$script" >"$work/out" 2>"$work/said" &
guest=$!
children="$children $guest"
until_true grep -q ready "$work/out"
killall passt passt.avx2 2>/dev/null || :
status=0
wait $guest || status=$?
same "the guest's status" 7 "$status"
same "what the guest saw" "ready
0" "$(cat "$work/out")"
same "what lg says" "lg: the guest has no network any more: passt has ended" "$(grep ^lg "$work/said")"
