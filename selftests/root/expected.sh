#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Mounts and directories that programs expect, the Guest's name, and what an ordinary user may mount: in a
# user namespace, what Linux allows there.
. "${0%/*}/../lib.sh"

cat >/tmp/expected.sh <<'END'
lg run -m 128M -- sh -exc '
	[ -e /sys/fs/cgroup/cgroup.controllers ]; [ -d /sys/kernel/debug ]
	grep " /dev/mqueue mqueue" /proc/mounts; grep " /sys/kernel/tracing tracefs" /proc/mounts
	grep " /sys/kernel/debug debugfs" /proc/mounts
	[ "$(stat -c %a /dev/fuse)" = 666 ]; [ "$(stat -c %a /run/lock)" = 1777 ]; echo x >/run/lock/x
	[ -O "$XDG_RUNTIME_DIR" ]; [ "$(stat -c %a "$XDG_RUNTIME_DIR")" = 700 ]
	ping -c 1 -W 9 "$(hostname)" || [ "$(id -u)" -ne 0 ]
	grep -w "$(hostname)" /etc/hosts
	unshare -Urm sh -exc "mount -t tmpfs none /mnt || mount -t tmpfs none /media || mount -t tmpfs none /tmp"'
END
sh -e /tmp/expected.sh
su user -c 'sh -e /tmp/expected.sh'
fails_with 1 grep -w lguest /etc/hosts
rm /tmp/expected.sh
