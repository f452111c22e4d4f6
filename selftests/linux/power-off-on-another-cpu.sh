#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# cpus: 2
taskset -c 0 sh -c 'while :; do :; done' &
taskset -c 1 poweroff -f
sleep 60
