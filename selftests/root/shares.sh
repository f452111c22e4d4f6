#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# More directories, which are where they are looked for, in every kind of root.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

rm -rf /tmp/shares
mkdir -p /tmp/shares/a /tmp/shares/b
echo a >/tmp/shares/a/file
cd /tmp/shares
for root in '--root /' '--initrd /usr/lib/lg/busybox.cpio'; do
	# shellcheck disable=SC2086 # they are words
	lg $root --share a:first:ro --share b:second -- sh -exc '
		[ "$(cat /mnt/first/file)" = a ]
		if echo b >/mnt/first/file; then exit 1; fi
		cp /mnt/first/file /mnt/second/copy'
	[ "$(cat a/file)" = a ]
	cmp a/file b/copy
	rm b/copy
done
