#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# With --rw what a stock kernel's command writes is in the Host's files, in a share as well; a signal is its status.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

rm -rf /srv/rw /srv/share
mkdir -p /srv/rw /srv/share /mnt
cd /srv/rw
fails_with 137 stock --rw --share /srv/share:out -- sh -c '
	echo one >here; echo two >/mnt/out/there; ls /dev/hwrng; kill -9 $$'
[ "$(cat /srv/rw/here /srv/share/there)" = "$(printf 'one\ntwo')" ]
rm -r /srv/rw /srv/share
