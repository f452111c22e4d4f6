#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# All kinds of lg's devices work on the PCI bus of a stock kernel: a disk, a share, a network, random numbers, sockets.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

work=/tmp/devices
mkdir -p $work/share $work/www
truncate -s 16M $work/image
/usr/sbin/mke2fs -q -t ext4 $work/image
echo from the share >$work/share/file
head -c 300000 /dev/urandom >$work/www/file
httpd -p 127.0.0.1:8000 -h $work/www
set +x
stock --disk $work/image --share $work/share:share --net user --vsock $work/socket -- sh -euc '
	mkdir /tmp/disk
	mount -t ext4 /dev/vda /tmp/disk
	cat /mnt/share/file >/tmp/disk/copy
	umount /tmp/disk
	mount -t ext4 /dev/vda /tmp/disk
	cat /tmp/disk/copy >/mnt/share/back
	umount /tmp/disk
	grep nameserver /etc/resolv.conf
	curl -sS http://10.0.2.2:8000/file | sha256sum
	cat /sys/class/misc/hw_random/rng_current
	head -c 64 /dev/hwrng | wc -c
	[ -c /dev/vsock ]
	grep -c "xen-pirq.*pcifront-msi-x.*virtio.*-config" /proc/interrupts' >$work/out
set -x
kill "$(pidof httpd)"
# Console, ports, root, share, network, sockets, disk, random numbers.
printf '%s\n' 'nameserver 10.0.2.3' "$(sha256sum <$work/www/file)" virtio_rng.0 64 8 | cmp - $work/out
[ "$(cat $work/share/back)" = 'from the share' ]
/usr/sbin/e2fsck -fn $work/image
rm -r $work
