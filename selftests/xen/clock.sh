#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# A stock kernel's wall clock is the Host's: no file of the Host's is from the future.
. "${0%/*}/lib.sh"

mkdir -p /srv/clock
stock --initrd "$LG_INITRD" --share /srv/clock:clock -- sh -euxc 'cd /mnt/clock; /selftests/linux-tests future'
rm -r /srv/clock
