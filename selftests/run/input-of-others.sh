#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
# What a command does not read of its standard input is for who comes next.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

seq 3 >/tmp/list
lines() { n=0; while read -r line; do lg -- true; n=$((n + 1)); done; echo $n; }
[ "$(lines </tmp/list)" = 3 ]
[ "$(seq 3 | lines)" = 3 ]
# And what it reads is gone, in a file and in a pipe which others write to at the same time.
seq 100000 >/tmp/list
[ "$( (lg -- sh -c 'read a; read a'; read -r line; echo "$line") </tmp/list)" = 3 ]
[ "$(seq 100000 | (lg -- sh -c 'n=0; while [ $((n += 1)) -le 5000 ]; do read a; done'; head -n 1))" = 5001 ]
[ "$(seq 100000 | lg -- cat | md5sum)" = "$(md5sum </tmp/list)" ]
[ "$( (sleep 3; echo late; sleep 3; echo later) | lg -- cat)" = "$(printf 'late
later')" ]
# What nobody shall have, nobody has.
[ "$(seq 3 | (lg -n -- wc -c; cat))" = "$(printf '0
1
2
3')" ]
rm /tmp/list
