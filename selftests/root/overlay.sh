#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Writes anywhere in the default root succeed, and are gone afterwards.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

tree() { find /usr /etc | sort | md5sum; md5sum /etc/passwd; }
before=$(tree)
cd /usr/lib/lg
lg -- sh -exc '
	[ "$(pwd)" = /usr/lib/lg ]
	echo new >new
	echo more >>/etc/passwd
	rm /usr/bin/lg
	mv selftests moved
	[ -d moved/linux ] && [ ! -e selftests ]
	mkdir -p /mnt/a/b
	[ ! -e /tmp/on-the-host ]
	grep -q "^lg.root / virtiofs rw" /proc/mounts
	for directory in /proc/1 /sys/class /dev/pts /dev/shm /dev/fd /tmp /run; do [ -d $directory ]; done
'
[ "$(tree)" = "$before" ]
[ ! -e /mnt/a ]
