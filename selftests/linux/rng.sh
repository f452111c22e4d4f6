# SPDX-License-Identifier: GPL-2.0
# The entropy device: it fills what is read, differently each time, and Linux has it from the start.
set -e

grep -q virtio_rng /sys/class/misc/hw_random/rng_current
[ "$(head -c 4096 /dev/hwrng | wc -c)" -eq 4096 ]
first=$(head -c 32 /dev/hwrng | hexdump -v -e '/1 "%02x"')
second=$(head -c 32 /dev/hwrng | hexdump -v -e '/1 "%02x"')
[ ${#first} -eq 64 ]
[ "$first" != "$second" ]

# Whoever wants random numbers gets them: they are there before the first program.
dmesg | grep -m 1 -e 'crng init done' -e 'Run /init' | grep crng
