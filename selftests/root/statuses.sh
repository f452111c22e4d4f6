#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The status of lg is that of the command, as a shell tells it.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

fails_with 7 lg -- sh -c 'exit 7'
fails_with 137 lg -- sh -c 'kill -9 $$'
fails_with 127 lg -- no-such-program
fails_with 126 lg -- /etc/passwd
fails_with 3 lg --initrd /usr/lib/lg/busybox.cpio -- sh -c '[ "$(pwd)" = /root ] && exit 3'
