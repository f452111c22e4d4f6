#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What is refused before there is a Guest, by the real lg on a real Host. (What needs no Host is tested in
# launcher/tests/refusals.rs.)
. "${0%/*}/../lib.sh"

# refuses CODE COMMAND... - with that code, and why and what to do.
refuses() {
	code=$1
	shift
	fails_with 125 "$@" >/tmp/said 2>&1
	for word in "error[$code]" 'why: ' 'fix: '; do
		grep -F "$word" /tmp/said
	done
}

back() {
	chgrp lguest /dev/lguest
	rm -f /tmp/large /tmp/secret
}
trap back EXIT
truncate -s 200M /tmp/large
: >/tmp/secret
chmod 600 /tmp/secret
refuses LG0003 /usr/lib/lg/lg run nowhere
refuses LG0003 su user -c 'lg run /tmp/secret'
refuses LG0003 /usr/lib/lg/lg run --initrd nowhere -- true
refuses LG0004 /usr/lib/lg/lg run /usr/lib/lg/initramfs.cpio
refuses LG0013 /usr/lib/lg/lg run guests/hello -- true
refuses LG0055 /usr/lib/lg/lg run guests/hello --env A=b
refuses LG0014 /usr/lib/lg/lg run --append "$(printf '%2100d' 0 | tr ' ' x)" -- true
refuses LG0015 /usr/lib/lg/lg run -m 8M -- true
refuses LG0015 /usr/lib/lg/lg run -m 128M --initrd /tmp/large -- true
chgrp root /dev/lguest
refuses LG0020 su user -c 'lg run guests/hello'
