#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What the Guest has used and uses no more, the Host gets back while the Guest runs.
. "${0%/*}/../lib.sh"

mkfifo /tmp/go
# What lg has of the Guest's RAM, in MiB.
shared() { awk '/^RssShmem:/ { print int($2 / 1024) }' "/proc/$guest/status"; }

# shellcheck disable=SC2016 # for the Guest's shell
/usr/lib/lg/lg run -m 256M -- sh -c '
	dd if=/dev/urandom of=/dev/shm/large bs=1M count=100 2>/dev/null
	echo large
	read go
	rm /dev/shm/large
	read go' </tmp/go >/tmp/said &
guest=$!
exec 4>/tmp/go
until grep large /tmp/said; do sleep 0.1; done
[ "$(shared)" -ge 100 ]
most=$(($(shared) - 80))
echo go >&4
until [ "$(shared)" -lt "$most" ]; do sleep 0.1; done
echo go >&4
wait "$guest"
rm /tmp/go /tmp/said
