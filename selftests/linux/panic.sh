#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# memory: 96M
# expect: 255
# prints: kernel panicked
# The Guest's kernel panics, and the Launcher says why.
echo 1 >/proc/sys/vm/overcommit_memory
echo 2 >/proc/sys/vm/panic_on_oom
exec /bin/busybox tail /dev/zero
