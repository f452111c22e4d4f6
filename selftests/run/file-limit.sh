#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A file that may not get large is an error of three lines, and no death by SIGXFSZ.
. "${0%/*}/../lib.sh"

(ulimit -f 1000; fails_with 125 /usr/lib/lg/lg run -m 128M -- true)
