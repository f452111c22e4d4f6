#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Where the Host does not allow io_uring, disks work all the same, and -v tells.
. "${0%/*}/lib.sh"

image=/tmp/plain.img
ext4 $image
trap 'echo 0 >/proc/sys/kernel/io_uring_disabled' EXIT
echo 2 >/proc/sys/kernel/io_uring_disabled
guest '
	mkdir /mnt
	mount -t ext4 /dev/vda /mnt
	dd if=/dev/urandom of=/mnt/file bs=64k count=200 conv=fsync
	cd /mnt
	md5sum file >sum
	cd /
	umount /mnt' --disk $image >/tmp/said 2>&1
echo 0 >/proc/sys/kernel/io_uring_disabled
grep 'without io_uring' /tmp/said
is_clean $image
on_host $image 'md5sum -c sum'
# Nobody forbids it any more.
guest 'cat /dev/vda >/dev/null' --disk $image >/tmp/said 2>&1
fails_with 1 grep 'without io_uring' /tmp/said
rm $image
