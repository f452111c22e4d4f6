#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# A stock kernel's panic is told with its message, and a program that is not there as by a shell.
. "${0%/*}/lib.sh"

fails_with 255 stock -- sh -c 'echo c >/proc/sysrq-trigger' 2>/tmp/said
grep 'the guest.s kernel panicked: sysrq triggered crash' /tmp/said
fails_with 127 stock -- /no/such/program 2>/tmp/said
grep 'cannot run /no/such/program' /tmp/said
rm /tmp/said
