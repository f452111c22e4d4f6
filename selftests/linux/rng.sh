# SPDX-License-Identifier: GPL-2.0
# The entropy device: it fills what is read, differently each time, and Linux has it from the start.
set -e

grep -q virtio_rng /sys/class/misc/hw_random/rng_current
[ "$(head -c 4096 /dev/hwrng | wc -c)" -eq 4096 ]
first=$(head -c 32 /dev/hwrng | hexdump -v -e '/1 "%02x"')
second=$(head -c 32 /dev/hwrng | hexdump -v -e '/1 "%02x"')
[ ${#first} -eq 64 ]
[ "$first" != "$second" ]

# Whoever wants random numbers in the guest's first second gets them.
ready=$(dmesg | sed -n 's/^\[ *\([0-9]*\)\..*crng init done.*/\1/p')
[ -n "$ready" ]
[ "$ready" -lt 2 ]
