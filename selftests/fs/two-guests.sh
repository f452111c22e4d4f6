#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Two Guests at a time append to one file, and each sees what the other does.
. "${0%/*}/../lib.sh"

rm -rf /tmp/both
mkdir /tmp/both
# start MINE OTHER - a Guest that appends when the other one is there, and looks when that has done so.
start() {
	exec /usr/lib/lg/lg run -m 128M --initrd "$LG_INITRD" --share /tmp/both:src -- sh -euc "
		cd /mnt/src; touch $1; until [ -e $2 ]; do sleep 0.1; done
		for i in \$(seq 50); do echo $1 \$i >>log; done
		echo done >$1; until [ \"\$(cat $2)\" = done ]; do sleep 0.1; done; wc -l <log"
}
start one two >/tmp/both.one &
one=$!
start two one >/tmp/both.two &
two=$!
wait $one
wait $two
[ "$(cat /tmp/both.one)" = 100 ]
[ "$(cat /tmp/both.two)" = 100 ]
rm -r /tmp/both /tmp/both.one /tmp/both.two
