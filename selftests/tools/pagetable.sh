#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
# An address in the tables of a Guest that halts, of one that spins and of Linux; of none and of several.
. "${0%/*}/../lib.sh"

# starts FILE TEXT ARGUMENT... - run a Guest in the background, its output in FILE, until it prints TEXT.
starts() {
	file=$1 text=$2
	shift 2
	/usr/lib/lg/lg run -m 128M "$@" >"$file" 2>&1 &
	until grep "$text" "$file"; do
		kill -0 $! || exit 1
		sleep .1
	done
}

# ends PID - it still runs; now it does no more.
ends() {
	kill "$1"
	status=0
	wait "$1" || status=$?
	[ "$status" -eq 143 ]
}

# shows LINE - that is a line of the last answer.
shows() {
	grep -Fx -- "$1" /tmp/answer
}

lgpt() {
	/usr/lib/lg/lg pagetable "$@" >/tmp/answer
}

fails_with 125 lgpt 1000 2>/tmp/said
grep 'no guest of yours is running' /tmp/said

# Known tables, while it halts.
starts /tmp/walked '^read ' /usr/lib/lg/selftests/guests/walked
halts=$!
read -r _ read _ written _ large </tmp/walked
lgpt 40002008
cat /tmp/answer
shows '  level 4, index 0'
shows '  level 1, index 2'
grep -E "    guest's entry at 0x[0-9a-f]+: 0x80000000[0-9a-f]{5}025, page $read: present, user, accessed, no execute" /tmp/answer
shows '    shadow, kernel mode: present, user, accessed, dirty, no execute'
shows "  kernel mode  read   goes through to ${read%000}008"
shows '  kernel mode  write  exit: the guest gets #PF, error 0x3 (not allowed, write, kernel)'
shows '  user mode    fetch  exit: the guest gets #PF, error 0x15 (not allowed, fetch, user)'
lgpt 0x40003000
shows "  kernel mode  write  goes through to $written"
shows '  user mode    read   exit: the guest gets #PF, error 0x5 (not allowed, read, user)'
lgpt 60001000
shows "  user mode    write  exit: lg.ko sets accessed and dirty, and fills the shadow, for ${large%00000}01000"
grep -E ": present, writable, user, huge$" /tmp/answer
lgpt 800000000000
shows '  user mode    read   the guest gets #GP: not canonical'
lgpt --json 40002008
grep '"gva": 1073750024' /tmp/answer
# Nobody has woken it, and it can be asked as often as one likes.
for _ in 1 2 3 4 5 6 7 8 9 10; do lgpt 1000; done

# Linux by its names, beside it: which one must be said, and that it does not mind.
# shellcheck disable=SC2016 # for the Guest's shell
starts /tmp/linux '^there' -- sh -c 'echo there; while :; do :; done'
linux=$!
fails_with 125 lgpt linux_banner 2>/tmp/said
grep "^ *$halts  /usr/lib/lg/lg run -m 128M /usr/lib/lg/selftests/guests/walked" /tmp/said
grep "^ *$linux  /usr/lib/lg/lg run" /tmp/said
fails_with 125 lgpt --guest 1 linux_banner 2>/tmp/said
grep 'process 1 is no lg run of yours' /tmp/said
lgpt --guest "$linux" linux_banner
cat /tmp/answer
grep -E '^  user mode    read   exit: the guest gets #PF, error 0x[45] ' /tmp/answer
grep -E '^  kernel mode  read   (goes through to|exit: lg.ko .*fills the shadow, for) 0x[0-9a-f]+$' /tmp/answer
fails_with 125 lgpt --guest "$linux" no_such_name 2>/tmp/said
grep -F 'error[LG0062]' /tmp/said
fails_with 125 lgpt --guest "$linux" --kernel /usr/lib/lg/guests/hello linux_banner 2>/tmp/said
grep 'build ID' /tmp/said
for _ in 1 2 3 4 5 6 7 8 9 10; do lgpt --guest "$linux" linux_banner; done
ends "$linux"
lgpt 40002008
ends "$halts"
fails_with 125 lgpt 1000 2>/tmp/said
