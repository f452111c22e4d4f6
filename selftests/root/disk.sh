#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A disk of the caller's is his in the Guest, too, and nobody else's.
. "${0%/*}/../lib.sh"

cat >/tmp/disk.script <<'END'
truncate -s 1M /tmp/disk.raw
lg run -m 128M --disk /tmp/disk.raw -- sh -exc '
	[ "$(stat -c "%a %U" /dev/vda)" = "600 user" ]
	echo mine | dd of=/dev/vda conv=fsync'
END
su user -c 'sh -e /tmp/disk.script'
[ "$(head -n 1 /tmp/disk.raw)" = mine ]
rm /tmp/disk.*
