#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# prints: the guest restarts
reboot -f
sleep 60
