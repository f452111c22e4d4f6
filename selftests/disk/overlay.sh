#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What is written to an overlay is there, and only there.
. "${0%/*}/lib.sh"

image=/tmp/overlay.img
ext4 $image
before=$(md5sum $image)
guest '
	mkdir /mnt
	mount -t ext4 /dev/vda /mnt
	dd if=/dev/urandom of=/mnt/file bs=64k count=200
	md5sum /mnt/file >/tmp/sum
	umount /mnt
	mount -t ext4 /dev/vda /mnt
	md5sum -c /tmp/sum
	rm /mnt/file
	fstrim /mnt
	umount /mnt' --disk $image,overlay
[ "$(md5sum $image)" = "$before" ]
rm $image
