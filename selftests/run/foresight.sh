#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The page faults of which a bare Guest knows that the switcher gave it these are those that --stats counts; and where a
# record is made, there are none, since all belong in that.
. "${0%/*}/../lib.sh"

guest=${0%/*}/../guests/foresight
lg --stats "$guest" >/tmp/out 2>&1
foreseen=$(sed -n 's/^page faults that were foreseen: \([0-9]*\).*/\1/p' /tmp/out)
[ "$foreseen" -gt 100 ]
grep -E "^direct_faults +$foreseen\$" /tmp/out
rm /tmp/out
