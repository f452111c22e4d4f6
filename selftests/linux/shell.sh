#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What a shell does all day: variables, pipes, loops, here-documents, background jobs, traps, files.
set -eu

# fails_with STATUS COMMAND... - that is the status of COMMAND.
fails_with() {
	expected=$1 status=0
	shift
	"$@" || status=$?
	[ "$status" -eq "$expected" ]
}

[ "$(echo one two three | tr ' ' '\n' | sort | head -n 1)" = one ]
[ $((6 * 7)) -eq 42 ]
i=0
while [ $i -lt 200 ]; do
	i=$((i + 1))
	[ "$(printf %d $i)" -eq $i ]
done
sum=$(seq 1 1000 | awk '{ sum += $1 } END { print sum }')
[ "$sum" -eq 500500 ]

cd /tmp
cat >poem <<-EOF
	one
	two
EOF
[ "$(wc -l <poem)" -eq 2 ]
sed s/two/three/ poem | grep -q three
mkdir -p a/b/c
touch a/b/c/file
[ "$(find a -type f)" = a/b/c/file ]
ln -s a/b link
[ -e link/c/file ]
chmod 700 a
tar cf archive.tar a
rm -r a link
tar xf archive.tar
[ -e a/b/c/file ]
gzip archive.tar
gunzip -c archive.tar.gz | tar t | grep -q a/b/c/file

sleep 0.2 &
wait $!
fails_with 9 sh -c 'exit 9'
fails_with 5 sh -c 'trap "exit 5" TERM; kill -TERM $$; sleep 5'
fails_with 127 no-such-command 2>/dev/null
dd if=/dev/urandom of=random bs=64k count=16 2>/dev/null
cp random copy
cmp random copy
[ "$(md5sum <random)" = "$(md5sum <copy)" ]
[ "$(cat /proc/1/comm)" = init ]
[ "$(cat /proc/sys/kernel/ostype)" = Linux ]
