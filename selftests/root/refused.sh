#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Before anything boots.
. "${0%/*}/../lib.sh"

for directory in /no/such/directory /etc/passwd; do
	fails_with 125 lg --root $directory -- true 2>/tmp/refused.log
	grep -q 'error\[LG0044\]' /tmp/refused.log
	grep -q " $directory cannot be the guest's root" /tmp/refused.log
	grep -q 'fix: ' /tmp/refused.log
done
