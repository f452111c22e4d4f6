#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# An output that cannot be written: the command hears of it when it goes on to write, lg says what is wrong,
# and the log of the Guest's kernel is no part of that.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

fails_with 125 /usr/lib/lg/lg run -m 128M -- echo lost >/dev/full 2>/tmp/said
grep -q 'error\[LG0024\]' /tmp/said
grep -q 'No space left on device' /tmp/said
! grep -q 'kernel said' /tmp/said || exit 1
# It may do what is still to be done: here, to say how its programs have ended.
fails_with 125 /usr/lib/lg/lg run -m 128M -- sh -c 'yes; echo "yes: $?" >&2' >/dev/full 2>/tmp/said
grep -q '^yes: 141' /tmp/said
# Nobody reads any more: so ends who writes, not the rest, and a signal that is ignored is an error.
[ "$( (lg -- sh -c 'yes; echo "yes: $?" >&2; exit 3' 2>/tmp/said; echo $? >/tmp/status) | head -n 1)" = y ]
grep -q '^yes: 141' /tmp/said
[ "$(cat /tmp/status)" = 3 ]
(trap '' PIPE; lg -- sh -c 'yes 2>/dev/null; echo "yes: $?" >&2' 2>/tmp/said) | head -n 1
grep -q '^yes: 1$' /tmp/said
# The other stream goes on.
lg -- sh -c 'yes >&2; echo out' 2>/dev/full >/tmp/out || [ $? = 125 ]
[ "$(cat /tmp/out)" = out ]
