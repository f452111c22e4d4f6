#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
# A directory with many more files than the Launcher may have descriptors.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

share=/tmp/many
rm -rf $share
mkdir $share
(cd $share && seq 0 99999 | xargs touch)
/usr/lib/lg/lg run -m 256M --initrd "$LG_INITRD" --share $share:src:ro -- sh -euc '
	cd /mnt/src
	[ $(ls -a | wc -l) -eq 100002 ]
	[ $(ls -ln | grep -c -- -rw) -eq 100000 ]
	cat 0 50000 99999'
rm -r $share
