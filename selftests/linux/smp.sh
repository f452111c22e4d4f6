#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# cpus: 2 4
# timeout: 600
exec /selftests/linux-tests smp
