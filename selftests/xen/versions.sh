#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 900
# Each kernel that is installed runs a command, on two CPUs: what it needs of modules, lg finds by its release.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

for kernel in /boot/vmlinuz-*; do
	said=$(fails_with 5 /usr/lib/lg/lg run "$kernel" -m 256M --smp 2 -- sh -c 'echo $(uname -r) $(nproc); exit 5')
	[ "$said" = "${kernel#/boot/vmlinuz-} 2" ]
done
