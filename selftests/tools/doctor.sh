#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# On a machine that runs Guests, the doctor has no complaint that matters.
. "${0%/*}/../lib.sh"

lg_says=$(/usr/lib/lg/lg doctor)
for word in cpu module device guest 'cpu bugs'; do
	echo "$lg_says" | grep "ok    $word"
done
# Every CPU has this one, and is told of it.
echo "$lg_says" | grep "spectre_v1.*| lg: the guest's registers are cleared"
/usr/lib/lg/lg doctor --json >/tmp/doctor.json
grep '"name": "device"' /tmp/doctor.json
grep '"verdict": "ok"' /tmp/doctor.json
rm /tmp/doctor.json
