#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What a Guest discards, the Host has again; what it zeroes, is zero.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

image=/tmp/discard.img
noise $image
before=$(stat -c %b $image)
kept=$(tail -c $((6 << 20)) $image | md5sum)
guest '
	blkdiscard -o 0 -l $((24 << 20)) /dev/vda
	dd if=/dev/zero of=/dev/vda bs=1M seek=24 count=2 conv=fsync,notrunc' --disk $image
[ "$(stat -c %b $image)" -le $((before / 4 + 64)) ]
cmp -n $((26 << 20)) $image /dev/zero
[ "$(stat -c %s $image)" = $((32 << 20)) ]
[ "$(tail -c $((6 << 20)) $image | md5sum)" = "$kept" ]
rm $image
