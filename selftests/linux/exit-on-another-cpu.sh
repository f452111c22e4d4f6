#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# cpus: 2
# expect: 7
taskset -p 2 1
exec taskset -c 1 sh -c 'exit 7'
