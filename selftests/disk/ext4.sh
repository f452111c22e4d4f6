#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# prints: first.img
# prints: write back
# Files on ext4, read back from the disk; a second disk as it is; clean after power-off.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

first=/tmp/first.img second=/tmp/second.img
ext4 $first
noise $second
cp $second /tmp/expected.img
dd if=$second of=/tmp/expected.img bs=4k seek=1000 count=3840 conv=notrunc
guest '
	mkdir /mnt
	mount -t ext4 /dev/vda /mnt
	cd /mnt
	# Many small ones, and one of many requests at a time.
	mkdir small
	for n in $(seq 100); do dd if=/dev/urandom of=small/$n bs=1000 count=$n 2>/dev/null; done
	dd if=/dev/vdb of=large bs=64k count=240 conv=fsync
	rm small/*5
	find . -type f | xargs md5sum >/tmp/sums
	cp /tmp/sums .
	cd /
	umount /mnt
	mount -t ext4 /dev/vda /mnt
	cd /mnt
	md5sum -c /tmp/sums >/dev/null
	cmp -n $((240 << 16)) large /dev/vdb
	dd if=large of=/dev/vdb bs=4k seek=1000 conv=fsync,notrunc
	cd /
	umount /mnt
	cat /sys/block/vda/serial; echo
	cat /sys/block/vda/cache_type' --disk $first --disk $second
is_clean $first
cmp $second /tmp/expected.img
on_host $first 'md5sum -c sums >/dev/null && [ $(ls small | wc -l) = 90 ]'
rm $first $second /tmp/expected.img
