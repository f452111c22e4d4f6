#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The ends of the streams are passed on, in both directions.
. "${0%/*}/../lib.sh"

# What stays in the background keeps nobody waiting, and what was written before it is not lost.
[ "$(lg -- sh -c 'sleep 1000 & head -c 50000 /dev/zero' | wc -c)" -eq 50000 ]
# Input that the command does not want, and output that nobody wants.
[ "$(yes | lg -- head -n 1)" = y ]
[ "$(lg -- yes | head -n 1)" = y ]
