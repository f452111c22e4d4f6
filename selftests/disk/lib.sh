# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Sourced by the scripts here: images of 32 MiB, with or without a file system, and Guests with disks.
. "${0%/*}/../lib.sh"

# noise FILE - an image of bytes by chance.
noise() {
	dd if=/dev/urandom of="$1" bs=1M count=32
}

# ext4 FILE - an image with an empty file system.
ext4() {
	rm -f "$1"
	truncate -s 32M "$1"
	# By its path: the shell has one of its own, which makes ext2.
	/usr/sbin/mke2fs -q -t ext4 "$1"
}

# is_clean FILE - its file system is consistent, and was unmounted: the journal is empty.
is_clean() {
	e2fsck -fn "$1" >/tmp/e2fsck
	fails_with 1 grep recovery /tmp/e2fsck
}

# load_loop - the Host's driver for on_host and losetup.
load_loop() {
	[ -e /dev/loop-control ] || insmod /usr/lib/modules/loop.ko
}

# on_host FILE SCRIPT - mount its file system on the Host, and run a script there.
on_host() {
	load_loop
	mkdir -p /tmp/mnt
	mount -t ext4 -o loop,ro "$1" /tmp/mnt
	(cd /tmp/mnt && sh -exc "$2")
	umount -d /tmp/mnt
}

# guest SCRIPT OPTION... - run a Guest with that script and these options, the kernel's log along.
guest() {
	script=$1
	shift
	lg -v "$@" -- sh -exc "$script"
}
