#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A share that is read-only stays as it is, however it is mounted, and another beside it does not.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

rm -rf /tmp/fixed /tmp/free
mkdir /tmp/fixed /tmp/free
echo content >/tmp/fixed/file
/usr/lib/lg/lg run -m 256M --initrd "$LG_INITRD" --share /tmp/fixed:fixed:ro --share /tmp/free:free -- sh -euc '
	cd /mnt/fixed
	mount -o remount,rw /mnt/fixed
	fails() {
		if "$@" 2>/tmp/why; then echo "$* is possible"; exit 1; fi
		grep -q Read-only /tmp/why
	}
	fails touch new; fails rm file; fails mv file new; fails chmod 777 file; fails mkdir d
	fails ln file new; fails ln -s x new; fails truncate -s 0 file; fails touch file
	[ "$(cat file)" = content ]
	cp file ../free/'
[ "$(ls -A /tmp/fixed)" = file ]
[ "$(cat /tmp/free/file)" = content ]
rm -r /tmp/fixed /tmp/free
