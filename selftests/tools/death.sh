#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
# A Guest that is killed and a kernel that panics leave an account: who called whom, the last switches, page tables.
. "${0%/*}/../lib.sh"

rm -rf /tmp/death
mkdir /tmp/death
trap 'rm -rf /tmp/death' EXIT
export XDG_STATE_HOME=/tmp/death

# names - the functions in the backtrace of what comes in, a line each.
names() {
	sed -n 's/^ *[0-9a-f]\{16\} [ ?] \([A-Za-z_0-9]*\)[.a-z0-9]*+0x[0-9a-f]*$/\1/p'
}

# in_order NAME... - these are among the lines of what comes in, in this order.
in_order() {
	cat >/tmp/death/lines
	at=0
	for name; do
		at=$(grep -nxF -- "$name" /tmp/death/lines | cut -d: -f1 |
			while read -r line; do [ "$line" -le "$at" ] || { echo "$line"; break; }; done)
		[ -n "$at" ]
	done
}

# A bare Guest that died three calls deep, and was recorded.
guest=/usr/lib/lg/selftests/hostile/roots
fails_with 255 lg --trace /tmp/death/trace "$guest" --append crime=root-three-calls-deep 2>/tmp/death/said
cat /tmp/death/said
grep 'lg: the guest was killed: bad root' /tmp/death/said
names </tmp/death/said | in_order deep_inner deep_middle deep_outer
account=$(sed -n 's/^lg: more of it: lg explain //p' /tmp/death/said)
[ "$(stat -c %a "$account")" = 600 ]
/usr/lib/lg/lg explain "$account" >/tmp/death/text
cat /tmp/death/text
names </tmp/death/text | in_order deep_inner deep_middle deep_outer
grep '^to read: Documentation/shadow-memory.md' /tmp/death/text
grep 'hypercall write_cr3(0x2000000000) .*to lg: death$' /tmp/death/text
grep '^  kernel mode  fetch  goes through to 0x' /tmp/death/text

# Without --trace the switches have no times, and end with the one that it died of; the page walk is of the address that
# the reason names.
fails_with 255 lg "$guest" --append crime=table-outside 2>/tmp/death/said
account=$(sed -n 's/^lg: more of it: lg explain //p' /tmp/death/said)
/usr/lib/lg/lg explain "$account" >/tmp/death/text
sed -n '/^the last world switches:/,/^$/p' /tmp/death/text >/tmp/death/switches
grep '^            -          -        -  kernel  ' /tmp/death/switches | tail -n 1 | grep 'page fault: '
grep -- '--trace /dev/null' /tmp/death/switches
grep "not in the guest's RAM$" /tmp/death/text
grep '^  .* mode  read   exit: the guest is killed$' /tmp/death/text

# Linux, by the tables of its vmlinux.
fails_with 255 lg -- sh -c 'echo c >/proc/sysrq-trigger' 2>/tmp/death/said
cat /tmp/death/said
account=$(sed -n 's/^lg: more of it: lg explain //p' /tmp/death/said)
/usr/lib/lg/lg explain "$account" >/tmp/death/text
cat /tmp/death/text
grep "^the guest's kernel panicked: .*sysrq" /tmp/death/text
[ "$(grep -c '^            -          -        -  ' /tmp/death/text)" -eq 20 ]
names </tmp/death/text | in_order lguest_panic panic sysrq_handle_crash write_sysrq_trigger
grep '^ *[0-9a-f]\{16\} ?' /tmp/death/text && exit 1

# On another CPU than the first, which has stopped meanwhile.
fails_with 255 lg --smp 2 -- taskset -c 1 sh -c 'echo c >/proc/sysrq-trigger' 2>/tmp/death/said
cat /tmp/death/said
names </tmp/death/said | in_order lguest_panic panic sysrq_handle_crash write_sysrq_trigger

# Who does not die leaves nothing; there are never more than ten.
lg -- true
for _ in 1 2 3 4 5 6 7 8 9 10; do
	fails_with 255 lg "$guest" --append crime=root-outside 2>/tmp/death/said
done
[ "$(find /tmp/death/lg/deaths -type f | wc -l)" -eq 10 ]
fails_with 1 /usr/lib/lg/lg explain /proc/version 2>/tmp/death/said
grep "is no account of a guest's death" /tmp/death/said
