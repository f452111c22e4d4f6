#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# prints: ok    device
# The doctor of a member of group lguest.
. "${0%/*}/../lib.sh"

su user -c '/usr/lib/lg/lg doctor'
