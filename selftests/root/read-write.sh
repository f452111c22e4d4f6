#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What the Guest writes with --rw is on the Host; it makes no directories of its own there.
. "${0%/*}/../lib.sh"

rm -rf /tmp/rw
mkdir -p /tmp/rw/bin /tmp/rw/work
cp /usr/bin/busybox /tmp/rw/bin/sh
cd /tmp/rw/work
fails_with 125 lg --root /tmp/rw --rw -- sh -c 'true' 2>/tmp/rw.log
grep -q 'cannot mount /proc: the root has no such directory' /tmp/rw.log
[ "$(ls /tmp/rw)" = "$(printf 'bin\nwork')" ]
mkdir /tmp/rw/proc /tmp/rw/sys /tmp/rw/dev /tmp/rw/tmp /tmp/rw/run
lg --root /tmp/rw --rw -- sh -c 'pwd >here; mkdir made; echo x >/tmp/gone'
[ "$(cat here)" = /work ]
[ -d made ] && [ ! -e /tmp/rw/tmp/gone ]
