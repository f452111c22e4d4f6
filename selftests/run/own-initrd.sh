#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
# An init that is not lg's runs no command, so its good end is none. What it does without a command is its own
# affair, and so is what a command does with the Guest.
. "${0%/*}/../lib.sh"

rm -rf /tmp/own
mkdir -p /tmp/own/bin
cp /bin/busybox /tmp/own/bin
own() {
	printf '#!/bin/busybox sh\n%s\n' "$1" >/tmp/own/init
	chmod +x /tmp/own/init
	(cd /tmp/own; find . | cpio -o -H newc) >/tmp/own.cpio
}
fails() {
	fails_with 125 lg --initrd /tmp/own.cpio "$@" 2>/tmp/said
	grep 'error\[LG0054\]' /tmp/said
}
own 'exec /bin/busybox poweroff -f'
fails -- false
fails --append quiet -- false
lg --initrd /tmp/own.cpio
own 'exec /bin/busybox reboot -f'
fails -- false
own 'exec /bin/busybox sleep 1000'
fails_with 124 lg --timeout 20 --initrd /tmp/own.cpio -- true 2>/tmp/said
grep 'the command was not started' /tmp/said
lg --append quiet -- true
lg --append loglevel=0 -- true
lg --append quiet --initrd /usr/lib/lg/busybox.cpio -- poweroff -f
rm -r /tmp/own /tmp/own.cpio
