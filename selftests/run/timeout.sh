#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# All that lg waits for counts: gdb, and the other end of a FIFO.
. "${0%/*}/../lib.sh"

mkfifo /tmp/fifo
ends() {
	fails_with 124 /usr/lib/lg/lg run -m 128M --timeout 2 "$@" 2>/tmp/said
	grep 'the time is up' /tmp/said
}
ends --gdb /tmp/gdb --json /tmp/record.json -- true
grep '"reason": "timeout"' /tmp/record.json
until [ ! -e /tmp/gdb ]; do sleep .1; done
ends --json /tmp/fifo -- true
ends --config /tmp/fifo -- true
ends --initrd /tmp/fifo -- true
ends --initrd /tmp/fifo --dry-run -- true
ends /tmp/fifo -- true
echo 'timeout = 2' >/tmp/short.toml
fails_with 124 /usr/lib/lg/lg run --config /tmp/short.toml --gdb /tmp/gdb
rm /tmp/fifo /tmp/short.toml
# There is no time to wait for in this, and it counts for nothing later.
lg --timeout 1000000h -- true
