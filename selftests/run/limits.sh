#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The caller's limits and ignored signals are the command's. None keeps lg from running it.
# shellcheck disable=SC2016,SC3045 # for the Guest's shell; the Host's, too, is busybox's, which has these limits
. "${0%/*}/../lib.sh"

(ulimit -Sn 99; [ "$(lg -- sh -c 'ulimit -Sn')" = 99 ])
(ulimit -s 1234; [ "$(lg -- sh -c 'ulimit -s')" = 1234 ])
(ulimit -c 0; [ "$(lg -- sh -c 'ulimit -c; ulimit -Hc' | tr '\n' ' ')" = "0 0 " ])
[ "$(lg -- sh -c 'ulimit -n; ulimit -Hn')" = "$(sh -c 'ulimit -n; ulimit -Hn')" ]
# A file that may not get large: of the command, which ends by SIGXFSZ; not the Guest's memory.
mkdir /tmp/share
(ulimit -f 8; fails_with 153 /usr/lib/lg/lg run -m 128M --share /tmp/share:share -- \
	sh -c 'exec head -c 100000 /dev/zero >/mnt/share/file')
[ "$(stat -c %s /tmp/share/file)" -le 8192 ]
# Of lg, which writes the command's output.
(ulimit -f 8; fails_with 125 /usr/lib/lg/lg run -m 128M -- head -c 100000 /dev/zero >/tmp/out 2>/tmp/said)
grep -q 'File too large' /tmp/said
(trap '' HUP; [ "$(lg -- sh -c 'kill -HUP $$; echo alive')" = alive ])
fails_with 129 /usr/lib/lg/lg run -m 128M -- sh -c 'kill -HUP $$; echo alive'
# Too few files for lg itself: it says which limit.
(ulimit -n 12; fails_with 125 /usr/lib/lg/lg run -m 128M -- true 2>/tmp/said)
grep -q 'ulimit -n' /tmp/said
