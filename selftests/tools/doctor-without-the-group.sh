#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# prints: FAIL  device
# prints: usermod -aG lguest
# The doctor of an ordinary user outside of group lguest.
. "${0%/*}/../lib.sh"

trap 'chgrp lguest /dev/lguest' EXIT
chgrp root /dev/lguest
fails_with 1 su user -c '/usr/lib/lg/lg doctor'
