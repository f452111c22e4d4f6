#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The streams of the command are the caller's, for a user too, and what goes through arrives whole.
. "${0%/*}/../lib.sh"

[ "$(echo hi | lg -- cat | wc -c)" -eq 3 ]
lg -- sh -c 'echo out; echo err >&2' >/tmp/pipes.out 2>/tmp/pipes.err
[ "$(cat /tmp/pipes.out)" = out ]
grep -q '^err$' /tmp/pipes.err
[ "$(echo 'echo from a shell' | lg)" = 'from a shell' ]
# They are opened again, by an ordinary user too, and arrive whole.
cat >/tmp/pipes.script <<'END'
echo hi | lg run -m 128M -- sh -c 'cat /dev/stdin >/dev/stdout; echo err >/proc/self/fd/2' 2>/tmp/pipes.user
END
[ "$(su user -c 'sh /tmp/pipes.script')" = hi ]
grep -q '^err$' /tmp/pipes.user
head -c 10000000 /dev/urandom >/tmp/pipes.in
lg -- cat </tmp/pipes.in >/tmp/pipes.out
cmp /tmp/pipes.in /tmp/pipes.out
rm -f /tmp/pipes.*
