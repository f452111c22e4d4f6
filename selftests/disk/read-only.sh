#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A disk that may only be read is read, and refuses writes, whoever owns the file.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

image=/tmp/read-only.img
ext4 $image
before=$(md5sum $image)
guest '
	[ $(cat /sys/block/vda/ro) = 1 ]
	if dd if=/dev/zero of=/dev/vda bs=4k count=1; then exit 1; fi
	mkdir /mnt
	mount -t ext4 -o ro /dev/vda /mnt
	ls /mnt/lost+found' --disk $image,ro
[ "$(md5sum $image)" = "$before" ]
rm $image
