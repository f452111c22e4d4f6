#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The socket of --gdb is for nobody else, and goes with lg.
. "${0%/*}/../lib.sh"

umask 0
/usr/lib/lg/lg run -m 128M --gdb /tmp/gdb -- true 2>/tmp/said &
until grep 'waiting for gdb' /tmp/said; do sleep .1; done
[ "$(stat -c %a /tmp/gdb)" = 600 ]
kill $!
wait $! && exit 1
until [ ! -e /tmp/gdb ]; do sleep .1; done
