#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# A stock kernel loads a module of its own, uses it, and unloads it, more than once. Until then the Host has not done many
# instructions for it: what a kernel reads again and again as it looks for a timer has an end. (Before 7.0 it executes some
# thousand CLI, until it has found out that its CPU has CMPXCHG16B.)
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

# Nothing is to load where it is built in.
! grep -q '/loop[.]ko$' "/lib/modules/$RELEASE/modules.builtin" || exit 0

mkdir -p /srv/image
dd if=/dev/zero of=/srv/image/zeros bs=1M count=2
stock --stats -- sh -euc '
	for round in 1 2 3; do
		modprobe loop
		grep "^loop " /proc/modules
		losetup /dev/loop0 /srv/image/zeros
		dd if=/dev/loop0 bs=4k count=16 | cmp -n 65536 - /dev/zero
		losetup -d /dev/loop0
		rmmod loop
		! grep "^loop " /proc/modules
	done' 2>/tmp/stats
[ "$(sed -n 's/^emulated *//p' /tmp/stats)" -lt 20000 ]
rm /tmp/stats
rm -r /srv/image
