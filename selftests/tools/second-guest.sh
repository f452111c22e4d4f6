#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
# prints: Hello
# Where the memory is enough for one Guest, a second is refused, and a small one is not.
. "${0%/*}/../lib.sh"

mebibytes=$(awk '/^MemAvailable:/ { print int($2 / 1024 * 6 / 10) }' /proc/meminfo)
/usr/lib/lg/lg run -m "${mebibytes}M" --initrd busybox.cpio -- sh -c "
	dd if=/dev/zero of=/tmp/fill bs=1M count=$((mebibytes * 4 / 10))
	dd if=/dev/zero of=/dev/shm/fill bs=1M count=$((mebibytes * 4 / 10))
	echo full
	sleep 1000" >/tmp/first &
first=$!
trap 'kill $first; wait $first || :' EXIT
until grep -q full /tmp/first; do
	kill -0 $first
	sleep 0.1
done
fails_with 125 /usr/lib/lg/lg run -m "${mebibytes}M" -- true 2>/tmp/said
for word in 'error[LG0049]' 'why: ' 'end another guest'; do
	grep -F "$word" /tmp/said
done
/usr/lib/lg/lg run -m 64M guests/hello
rm /tmp/first
