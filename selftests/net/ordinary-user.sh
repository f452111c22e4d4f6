#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# --net user takes no rights: a member of the group lguest has a network.
. "${0%/*}/lib.sh"

serve
got=$(su user -c 'lg run --net user -- sh -c "wget -q -O - http://10.0.2.2:8000/file | sha256sum"')
same "the checksum" "$sum" "$got"
