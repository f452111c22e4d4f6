#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# By passt, the Guest reaches a server at the Host's loopback interface, and is reached by a forwarded port.
. "${0%/*}/lib.sh"

serve
# shellcheck disable=SC2016 # for the Guest's shell
script='
	cat /sys/class/net/eth0/address
	grep nameserver /etc/resolv.conf
	curl -sS http://10.0.2.2:8000/file -o /file && sha256sum </file
	httpd -p 80 -h /
	until curl -sS http://10.0.2.2:8000/done 2>/dev/null | grep -q yes; do sleep 0.1; done
'
lg run --initrd "$(initrd)" --net user,mac=02:00:00:ab:cd:ef,forward=8080:80 -- sh -c "$script" >"$work/out" &
guest=$!
children="$children $guest"
until_true wget -q -O "$work/back" http://127.0.0.1:8080/file
same "the checksum from the guest" "$sum" "$(sha256sum <"$work/back")"
echo yes >"$work/www/done"
wait $guest
same "what the guest saw" "02:00:00:ab:cd:ef
nameserver 10.0.2.3
$sum" "$(cat "$work/out")"
until_true sh -c '! pidof passt passt.avx2'
