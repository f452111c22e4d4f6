# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the scripts that measure, behind lib.sh: what their Guests boot from.

dir=build/bench
mkdir -p "$dir/root/usr/bin" "$dir/command/lg"

# pack DIRECTORY FILE... - write an archive of these files in a directory.
pack() {
	# shellcheck disable=SC2016 # for the shell in there
	scripts/in-root sh -c 'cd "$1" && shift && printf "%s\n" "$@" | cpio --quiet -o -H newc' sh "$@"
}

# make_archives SCRIPT - build the program that measures, and make $dir/bench.cpio, which has it and busybox;
# and $dir/direct.cpio, which runs SCRIPT besides. For its Guest, lg run adds that by itself.
make_archives() {
	scripts/in-root cargo build --quiet --release --locked -p lguest-bench
	install -C -t "$dir/root/usr/bin" target/x86_64-unknown-linux-gnu/release/lguest-bench
	printf 'sh\0-c\0%s\0' "$1" >"$dir/command/lg/cmd"
	# The kernel unpacks one archive after the other.
	pack "$dir/root" usr/bin/lguest-bench | cat build/busybox.cpio - >"$dir/bench.cpio"
	pack "$dir/command" lg lg/cmd | cat "$dir/bench.cpio" - >"$dir/direct.cpio"
}
