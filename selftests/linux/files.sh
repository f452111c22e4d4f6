#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
cd /tmp && exec /selftests/linux-tests files
