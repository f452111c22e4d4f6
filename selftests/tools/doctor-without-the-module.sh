#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What the doctor and a run say when lg.ko is not loaded.
. "${0%/*}/../lib.sh"

trap 'test -e /dev/lguest || load-lg' EXIT
rmmod lg
fails_with 1 /usr/lib/lg/lg doctor >/tmp/said
grep 'FAIL  module' /tmp/said
grep insmod /tmp/said
fails_with 125 /usr/lib/lg/lg run guests/hello 2>/tmp/said
grep -F 'error[LG0019]' /tmp/said
