#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A stream that is closed for lg is closed for the command, which can open another in its place.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

[ "$(lg -- sh -c 'echo lost; echo $? >&2' 2>&1 >&- | tail -n 1)" = 1 ]
[ "$(lg -- sh -c 'cat 2>/dev/null; echo $?' <&-)" = 1 ]
[ "$(lg -- sh -c 'echo lost >&2; echo $?' 2>&-)" = 1 ]
fails_with 5 /usr/lib/lg/lg run -m 128M -- sh -c 'echo lost; exit 5' <&- >&- 2>&-
# The one that is open is not disturbed.
[ "$(lg -- sh -c 'exec >/tmp/here; echo kept; cat /tmp/here >&2' 2>&1 >&- | tail -n 1)" = kept ]
# In the Guest itself it is the Guest's kernel's affair.
[ "$(lg -- sh -c '(echo lost) 2>/dev/null >&- || echo closed')" = closed ]
