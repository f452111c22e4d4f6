#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A block device of the Host: flushes get there, and nobody takes it while it is mounted.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

image=/tmp/device.img device=/dev/loop7
ext4 $image
load_loop
[ -e $device ] || mknod $device b 7 7
losetup $device $image
# The 16th number is that of the flushes that were done.
flushes() {
	awk '{ print $16 }' /sys/block/loop7/stat
}
before=$(flushes)
guest '
	mkdir /mnt
	mount -t ext4 /dev/vda /mnt
	for n in $(seq 20); do dd if=/dev/zero of=/mnt/$n bs=4k count=1 conv=fsync; done
	rm /mnt/1?
	fstrim /mnt
	umount /mnt' --disk $device
[ $(($(flushes) - before)) -ge 20 ]
mkdir -p /tmp/mnt
mount -t ext4 $device /tmp/mnt
fails_with 125 guest true --disk $device 2>/tmp/said
umount /tmp/mnt
grep 'it is in use' /tmp/said
losetup -d $device
rm $image
