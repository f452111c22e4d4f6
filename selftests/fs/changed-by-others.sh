#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What somebody else changes in a file takes its set-ID bits, in a share and in the root as natively.
. "${0%/*}/../lib.sh"

cat >/tmp/change.sh <<'END'
# change.sh DIRECTORY - change files of each mode in each way, as a user, and tell their modes.
mkdir -p "$1"
cd "$1"
for mode in 2666 4666 6666 2676 6777; do
	for way in 'printf x 1<>' 'printf x >>' ': >' 'fallocate -l 9999 '; do
		: >file
		chmod $mode file
		su user -c "$way$PWD/file"
		stat -c "$mode $way %a" file
		rm file
	done
done
END
mkdir -p /changed/share
chmod 755 /changed
sh /tmp/change.sh /changed/here >/tmp/natively
[ "$(wc -l </tmp/natively)" = 20 ]
grep -q '^2666 printf x >> 666' /tmp/natively
cp /tmp/change.sh /changed/change.sh
lg -- sh /changed/change.sh /changed/own >/tmp/own
diff /tmp/natively /tmp/own
lg --share /changed/share:share -- sh /changed/change.sh /mnt/share/in >/tmp/shared
diff /tmp/natively /tmp/shared
rm -r /changed /tmp/change.sh
