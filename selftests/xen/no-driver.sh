#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# A kernel that has no driver for the bus of the devices, although its modules say so, is told of at once.
. "${0%/*}/lib.sh"

# It cannot be taken from a kernel that has it built in.
! grep -q '/xen-pcifront[.]ko$' "/lib/modules/$RELEASE/modules.builtin" || exit 0

tree=$(mktemp -d)
cp -r "/lib/modules/$RELEASE/." "$tree"
name=$(grep -o '^[^:]*/xen-pcifront[.]ko[^:]*' "$tree/modules.dep")
grep -v "^$name:" "$tree/modules.dep" >"$tree/modules.new"
mv "$tree/modules.new" "$tree/modules.dep"
echo kernel/drivers/pci/xen-pcifront.ko >>"$tree/modules.builtin"
fails_with 125 stock --modules "$tree" -- true 2>"$tree/said"
grep 'the bus of the devices has no driver: is CONFIG_XEN_PCIDEV_FRONTEND in the kernel' "$tree/said"
rm -r "$tree"
