#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Who writes waits; neither the end nor lg's own last words do, and nothing is lost for who reads late.
. "${0%/*}/../lib.sh"

mkfifo /tmp/pipe
exec 3<>/tmp/pipe
fails_with 124 /usr/lib/lg/lg run -m 128M --timeout 5 -- yes >/tmp/pipe 2>&1
grep -q '^lg: the time is up' <&3
exec 3<&- 3<>/tmp/pipe
fails_with 9 /usr/lib/lg/lg run -m 128M -- sh -c 'head -c 200000 /dev/zero; exit 9' >/tmp/pipe
[ "$(head -c 200000 <&3 | wc -c)" -eq 200000 ]
rm /tmp/pipe
