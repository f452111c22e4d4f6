# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Sourced by the scripts here, which run on the Host: servers, a file to transfer, Guests that have curl and iperf3.

set -eu
work=/tmp/net
rm -rf "$work" && mkdir -p "$work/www"
children=''
trap 'status=$?; end; exit $status' EXIT

# end - end all children. The next script wants their ports, so they must be gone.
end() {
	[ -n "$children" ] || return 0
	# shellcheck disable=SC2086 # they are words
	kill $children 2>/dev/null || :
	# shellcheck disable=SC2086 # they are words
	wait $children || :
}

fail() {
	echo "failed: $*" >&2
	exit 1
}

# background CMD... - start it, and end it with the script.
background() {
	"$@" &
	children="$children $!"
}

# serve - let port 8000 of the Host's loopback interface serve 4 MB by chance, whose checksum is $sum.
serve() {
	dd if=/dev/urandom of="$work/www/file" bs=1M count=4 2>/dev/null
	sum=$(sha256sum <"$work/www/file")
	background httpd -f -p 127.0.0.1:8000 -h "$work/www"
}

# serve_iperf3 ADDRESS PORT... - a server at each port, for one test each: one that has just served another refuses the next
# for a moment.
serve_iperf3() {
	address=$1
	shift
	for port; do
		background iperf3 -s -B "$address" -p "$port" >/dev/null
	done
}

# initrd - print the name of an initrd with curl and iperf3, the Host's own.
initrd() {
	archive=$work.cpio
	if [ ! -e "$archive" ]; then
		{
			cat /usr/lib/lg/busybox.cpio
			(cd / && {
				printf '%s\n' lib lib64 usr/lib usr/lib64 usr/bin/curl usr/bin/iperf3
				find usr/lib64/* usr/lib/x86_64-linux-gnu
			} | cpio -o -H newc 2>/dev/null)
		} >"$archive"
	fi
	echo "$archive"
}

# until_true CMD... - wait until it is, for 30 s.
until_true() {
	for _ in $(seq 300); do
		! "$@" >/dev/null 2>&1 || return 0
		sleep 0.1
	done
	fail "never true: $*"
}

# same WHAT EXPECTED GOT
same() {
	[ "$2" = "$3" ] || fail "$1 is '$3' instead of '$2'"
}
