#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What the Host changes while the Guest looks on: the Guest sees it, wherever it has changed nothing itself.
# Both take turns: a Guest says `next`, and waits until `turn` counts on.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

d=/root/changes
rm -rf $d
mkdir -p $d/dir $d/gone
cd $d
echo 0 >turn
echo old >file; echo old >log; echo old >mine; echo x >dir/x; ln -s file link; echo other >other
printf '#!/bin/sh\necho old program\n' >program; chmod +x program
mkfifo /tmp/turns
lg -- sh -exc '
	turn() { echo "next $1"; until [ "$(cat turn)" -ge "$1" ]; do :; done; }
	# What was looked at a moment ago may be remembered for another moment.
	see() { until [ "$($1 2>/dev/null)" = "$2" ]; do :; done; }
	cat file log link dir/x; ./program; ls
	echo changed >mine; rm other
	turn 1
	see "cat file" new; see "cat link" new; see "tail -n 1 log" more; see "ls dir" y; see "cat dir/y" y
	see ./program "new program"; see "ls new" new; see "ls -d gone" ""
	[ "$(cat mine)" = changed ]; [ ! -e other ]
	turn 2
	see "cat log" short; see "cat gone/again" again; see "readlink link" new
	echo done' >/tmp/turns &
guest=$!
while read -r word number; do
	case "$word $number" in
	"next 1")
		echo new >file.new; mv file.new file; echo more >>log; rm -r dir; mkdir dir; echo y >dir/y
		rmdir gone; echo listed >new; echo host >mine.new; mv mine.new mine
		rm other; echo back >other
		printf '#!/bin/sh\necho new program\n' >program.new; chmod +x program.new; mv program.new program
		echo 1 >turn ;;
	"next 2")
		echo short >log; mkdir gone; echo again >gone/again; ln -sf new link; echo 2 >turn ;;
	*) echo "$word $number" >>/tmp/turns.log ;;
	esac
done </tmp/turns
wait $guest
grep -q '^done' /tmp/turns.log
[ "$(cat mine)" = host ]
rm -r $d /tmp/turns /tmp/turns.log
