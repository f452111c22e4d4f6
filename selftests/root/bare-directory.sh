#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A root that has nothing at all is furnished, in memory.
. "${0%/*}/../lib.sh"

rm -rf /tmp/bare
mkdir /tmp/bare
cd /usr/lib/lg
fails_with 127 lg --root /tmp/bare -- sh -c true 2>/tmp/bare.log
grep -q 'cannot run sh: No such file' /tmp/bare.log
fails_with 1 grep 'instead of' /tmp/bare.log
fails_with 127 lg -v --root /tmp/bare -- sh -c true 2>/tmp/bare.log
grep -q 'in / instead of /usr/lib/lg: No such file' /tmp/bare.log
fails_with 127 lg --root /tmp/bare </dev/null
cp /usr/bin/busybox /tmp/bare/
lg --root /tmp/bare -- /busybox sh -c '[ -d /proc/1 ] && [ -c /dev/null ] && [ -d /run ]'
[ "$(ls /tmp/bare)" = busybox ]
