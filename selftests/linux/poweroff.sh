#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
poweroff -f
sleep 60
