#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# An output that nobody reads stops who writes there. Other output comes, the log too, and the end.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

mkfifo /tmp/frozen
exec 3<>/tmp/frozen
fails_with 4 /usr/lib/lg/lg run -m 128M -- sh -c '
	head -c 10000000 /dev/zero >&2 &
	# It waits for somebody who reads.
	until grep -q pipe_write /proc/$!/wchan; do sleep .1; done
	echo out; exit 4' 2>/tmp/frozen >/tmp/frozen.out
[ "$(cat /tmp/frozen.out)" = out ]
# Nor does a log that nobody reads stop the kernel.
fails_with 3 /usr/lib/lg/lg run -v -m 128M -- sh -c '
	n=0; while [ $((n += 1)) -lt 2000 ]; do echo "message $n of many" >/dev/kmsg; done
	exit 3' 2>/tmp/frozen
exec 3<&-
# Who goes on writing in the background keeps nobody.
fails_with 5 /usr/lib/lg/lg run -m 128M -- sh -c 'yes & exit 5' >/dev/null
rm /tmp/frozen*
