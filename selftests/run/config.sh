#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The same file of options from two directories: its paths are its own, the command's directory is the
# caller's; and the command line counts more.
. "${0%/*}/../lib.sh"

rm -rf /tmp/config
mkdir -p /tmp/config/shared /tmp/config/below
echo seen >/tmp/config/shared/file
cat >/tmp/config/lg.toml <<'END'
# A test.
memory = "192M"
timeout = 60
share = ["shared:one:ro"]
env = ["A=file", "B=file"]
append = "lg.first"
command = ["sh", "-c", "pwd; cat /mnt/*/file; echo $A $B; cat /proc/cmdline; exit 3"]
END
cd /tmp/config/below
fails_with 3 /usr/lib/lg/lg run --config ../lg.toml >out
[ "$(sed -n 1,3p out)" = "$(printf '/tmp/config/below\nseen\nfile file')" ]
grep -q ' lg.first$' out
fails_with 3 /usr/lib/lg/lg run --config ../lg.toml --env A=here --append lg.second \
	--share ../shared:two >out
[ "$(sed -n 2,4p out)" = "$(printf 'seen\nseen\nhere file')" ]
grep -q ' lg.first lg.second$' out
cd /
/usr/lib/lg/lg run --config /tmp/config/lg.toml -- cat /mnt/one/file
rm -rf /tmp/config
