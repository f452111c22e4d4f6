#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# kernel-make.sh - on a test machine with --toolchain: the kernel's own build makes modules in a Guest, where
# compiler, source, configured tree and output are on shared directories, and on the Host. Both must be the same.

set -eux

cat >/tmp/make.sh <<'END'
export KBUILD_BUILD_TIMESTAMP=0
make -C /cache/host M=/cache/src/samples/kobject MO=/mnt/out CONFIG_SAMPLE_KOBJECT=m modules
END

mkdir -p /tmp/guest /tmp/host
cd /
time lg run --root /toolchain --share /tmp/guest:out -- bash -exc "$(cat /tmp/make.sh)"

# The Host's turn, in the same place.
mount -t tmpfs tmpfs /toolchain/mnt
mkdir /toolchain/mnt/out
mount --bind /tmp/host /toolchain/mnt/out
mount -t proc proc /toolchain/proc
mount -t devtmpfs devtmpfs /toolchain/dev
mount -t tmpfs tmpfs /toolchain/tmp
time chroot /toolchain bash -exc "$(cat /tmp/make.sh)"

for module in kobject-example.ko kset-example.ko; do
	cmp /tmp/guest/$module /tmp/host/$module
done
