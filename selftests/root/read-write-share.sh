#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The place of a share, in a root that is written through, is made and removed again.
. "${0%/*}/../lib.sh"

rm -rf /tmp/rws
mkdir /tmp/rws
echo hi >/tmp/rws/f
[ ! -e /mnt ]
[ "$(lg --rw --share /tmp/rws:out -- cat /mnt/out/f)" = hi ]
[ ! -e /mnt ]
mkdir /mnt
[ "$(lg --rw --share /tmp/rws:out -- cat /mnt/out/f)" = hi ]
[ -z "$(ls /mnt)" ]
rmdir /mnt
rm -r /tmp/rws
