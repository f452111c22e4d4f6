#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Two Guests at once, each with a network of its own; one reaches the other by a forwarded port.
. "${0%/*}/lib.sh"

serve
background lg run -m 128M --net user,forward=8081:80 -- sh -c '
	wget -q http://10.0.2.2:8000/file && httpd -p 80 -h . &&
	until wget -q -O - http://10.0.2.2:8000/done 2>/dev/null | grep -q yes; do sleep 0.1; done'
first=$!
until_true wget -q -O /dev/null http://127.0.0.1:8081/file
got=$(lg run -m 128M --net user,forward=8082:80 -- sh -c 'wget -q -O - http://10.0.2.2:8081/file | sha256sum')
same "the checksum from guest to guest" "$sum" "$got"
echo yes >"$work/www/done"
wait $first
