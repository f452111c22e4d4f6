#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A file system that knows no access control lists: the mode says who may.
. "${0%/*}/../lib.sh"

share=/tmp/plain
mkdir -p $share
mount -t ramfs -o mode=755 ramfs $share
trap 'umount $share' EXIT
for name in group others secret; do
	echo content >$share/$name
done
chmod 640 $share/group
chmod 604 $share/others
chmod 660 $share/secret
chgrp 1000 $share/group
su user -c "lg run -m 256M --share $share:src -- \
	sh -euc 'cd /mnt/src; cat group others; if cat secret; then exit 1; fi'"
