#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# --net tap: an interface of the Host's, with addresses at both ends.
. "${0%/*}/lib.sh"

refused() {
	status=0
	"$@" >"$work/said" 2>&1 || status=$?
	same "the status" 125 "$status"
	cat "$work/said" >&2
}

refused lg run --net tap=lg0 -- true
grep -q 'LG0029.: there is no network interface lg0' "$work/said"
grep -q 'fix: make one of your own: sudo ip tuntap add lg0 mode tap user' "$work/said"

[ -e /dev/net/tun ] || insmod /usr/lib/modules/tun.ko
tunctl -t lg0
trap 'status=$?; end; tunctl -d lg0; exit $status' EXIT
refused lg run --net tap=lo -- true
grep -q 'why: it is no tap interface' "$work/said"

chmod 666 /dev/net/tun
refused su user -c 'lg run --net tap=lg0 -- true'
grep -q 'why: it belongs to another user' "$work/said"

ip address add 10.9.0.1/24 dev lg0
ip link set lg0 up
serve
background httpd -f -p 10.9.0.1:8000 -h "$work/www"
serve_iperf3 10.9.0.1 5201 5202
# shellcheck disable=SC2016 # for the Guest's shell
script='
	set -e
	ip address add 10.9.0.2/24 dev eth0
	ip link set eth0 up
	# Linux looks after new links once a second, and until then drops what is sent.
	until ping -q -c 1 -W 1 10.9.0.1 >/dev/null; do :; done
	ping -q -c 3 -i 0.2 10.9.0.1
	curl -sS http://10.9.0.1:8000/file | sha256sum
	iperf3 -c 10.9.0.1 -p 5201 -t 2
	iperf3 -c 10.9.0.1 -p 5202 -t 2 -R
	cp /usr/bin/curl / && httpd -p 80 -h /
	until [ -e /done ]; do sleep 0.1; curl -sS http://10.9.0.1:8000/done -f -o /done 2>/dev/null || :; done
'
background sh -c "exec lg run --initrd $(initrd) --net tap=lg0,mac=02:00:00:00:00:09 -- sh -c '$script' >$work/out"
guest=$!
until_true wget -q -O "$work/back" http://10.9.0.2/curl
cmp "$work/back" /usr/bin/curl || fail "a file from the guest is wrong"
grep -q '10.9.0.2 .* 02:00:00:00:00:09 ' /proc/net/arp || fail "the guest's address is wrong: $(cat /proc/net/arp)"
refused lg run --net tap=lg0 -- true
grep -q 'why: another program is using it' "$work/said"
echo yes >"$work/www/done"
wait $guest || fail "the guest failed: $(cat "$work/out")"
cat "$work/out"
grep -q '3 packets transmitted, 3 packets received' "$work/out" || fail "pings are lost"
grep -qF "$sum" "$work/out" || fail "the checksum from the Host is wrong"
! grep ' 0.00 bits/sec.*receiver' "$work/out" || fail "nothing arrived"
