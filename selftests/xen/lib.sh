# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Sourced by the scripts of the tests of kernels as Debian ships them, which run by Xen's ABI. Each does all that it
# can in one boot, which takes long where all is emulated.
. "${0%/*}/../lib.sh"

# The one that scripts/testhost was told, or that the Host runs.
STOCK=$(readlink -f /boot/vmlinuz)
# shellcheck disable=SC2034 # for the scripts
RELEASE=${STOCK#/boot/vmlinuz-}

# stock ARGUMENT... - run it as a Guest.
stock() {
	/usr/lib/lg/lg run "$STOCK" -m 256M "$@"
}
