#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# TCP at full speed by passt: from the Guest, to the Guest, and both at once. UDP by a forwarded port.
. "${0%/*}/lib.sh"

serve_iperf3 127.0.0.1 5301 5302 5303
lg run --initrd "$(initrd)" --net user -- sh -e -c '
	iperf3 -c 10.0.2.2 -p 5301 -t 2
	iperf3 -c 10.0.2.2 -p 5302 -t 2 -R
	iperf3 -c 10.0.2.2 -p 5303 -t 2 --bidir
' | tee "$work/out"
same "the number of results" 8 "$(grep -c 'sender\|receiver' "$work/out")"

# A datagram may get lost, that with which iperf3 begins as well: then both ends wait for it, and once more helps.
background lg run --initrd "$(initrd)" --net user,forward=5202:5202,forward=5202:5202/udp -- iperf3 -s -p 5202
until_true timeout 10 iperf3 -c 127.0.0.1 -p 5202 -t 1 -u -b 2M

! grep ' 0.00 bits/sec.*receiver' "$work/out" || fail "nothing arrived"
