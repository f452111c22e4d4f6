#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
# A Guest that runs is seen, with counters that go on, and feels nothing; one that is stopped is told as such; one of several
# vCPUs has counters, too.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

rm -rf /tmp/top
mkdir -m 700 /tmp/top
cd /tmp/top
trap 'rm -rf /tmp/top' EXIT
top() { /usr/lib/lg/lg top "$@"; }
entries() { top --json | sed -n 's/.*"entries": \([0-9]*\).*/\1/p'; }

top --once | grep 'no guest of yours is running'
[ "$(top --json)" = '[]' ]
mkfifo began ended
/usr/lib/lg/lg run -m 128M -- sh -c 'echo there; while read -r word; do echo "$word"; [ "$word" = go ] || exit 7; done' \
	<ended >began &
launcher=$!
exec 3>ended 4<began
read -r line <&4
[ "$line" = there ]
top --once >table
grep "^ *$launcher .* 128M .*  vmlinux sh -c echo there" table
top --json >json
grep "\"pid\": $launcher" json
grep '"path": "/usr/lib/lg/vmlinux"' json
first=$(entries)
[ "$first" -gt 1000 ]
# What it does meanwhile is seen; and it has felt nothing.
for _ in 1 2 3 4 5; do
	echo go >&3
	read -r line <&4
	[ "$line" = go ]
	now=$(entries)
	[ "$now" -gt "$first" ]
	first=$now
done
# Stopped, it cannot answer, and nobody waits for that.
kill -STOP "$launcher"
until grep '^State:.T' "/proc/$launcher/status"; do sleep .1; done
top --once | grep "^ *$launcher .*is stopped"
kill -CONT "$launcher"
until grep '^State:.S' "/proc/$launcher/status"; do sleep .1; done
[ "$(entries)" -ge "$first" ]
echo stop >&3
fails_with 7 wait "$launcher"
exec 3>&- 4<&-
top --once | grep 'no guest of yours is running'

# One that halts, of two vCPUs, has counters.
/usr/lib/lg/lg run -m 128M --smp 2 /usr/lib/lg/selftests/guests/walked >walked 2>&1 &
launcher=$!
until grep '^read ' walked; do
	kill -0 "$launcher"
	sleep .1
done
top --once | grep "^ *$launcher .* 128M .*  walked"
[ "$(entries)" -gt 0 ]
kill "$launcher"
fails_with 143 wait "$launcher"
