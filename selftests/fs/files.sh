#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# All that files can do in a share, and that the Host sees it.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

share=/tmp/files
rm -rf $share
mkdir $share
echo hello >$share/from-host
ln -s / $share/root
/usr/lib/lg/lg run -m 256M --initrd "$LG_INITRD" --share $share:src -- sh -euc '
	cd /mnt/src
	[ "$(cat from-host)" = hello ]
	/selftests/linux-tests files
	/selftests/linux-tests future
	# A link is followed in the Guest.
	[ "$(cat root/proc/sys/kernel/hostname)" = lguest ]
	echo hi >from-guest; mkdir directory; ln -s from-guest link; chown 1000:1000 from-guest'
[ "$(cat $share/from-guest)" = hi ]
[ "$(dd if=$share/mapped bs=1 skip=8192 count=8)" = mapped! ]
[ "$(readlink $share/link)" = from-guest ]
# The Guest is root's.
[ "$(stat -c %u $share/from-guest)" = 1000 ]
rm -r $share
