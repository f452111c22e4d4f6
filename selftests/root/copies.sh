#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What the Guest changes stays its own: names, links, sizes, holes; and nothing is left of it.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

d=/root/copies
rm -rf $d
mkdir -p $d/tree/in
cd $d
echo one >a; ln a b; echo x >tree/in/x; echo plain >plain
truncate -s 10G big; echo mine >user; chown 1000:1000 user . tree tree/in
before=$(find . | sort | xargs ls -ldn; cat a tree/in/x plain)
lg -- sh -exc '
	echo two >>a; [ "$(cat b)" = "$(printf "one\ntwo")" ]; [ "$(stat -c %h b)" = 2 ]
	ln a c; [ "$(stat -c %h a)" = 3 ]; echo three >>b; [ "$(wc -l <c)" = 3 ]
	rm a b; [ "$(stat -c %h c)" = 1 ]; [ "$(wc -l <c)" = 3 ]
	mv tree moved; [ "$(cat moved/in/x)" = x ]; [ ! -e tree ]; mkdir tree; [ -z "$(ls tree)" ]
	echo y >moved/in/y; mv moved/in tree/in; [ "$(ls tree/in | xargs)" = "x y" ]
	rm -r tree; [ ! -e tree ]; mkdir tree; echo z >tree/in; [ "$(cat tree/in)" = z ]
	echo end >>big; [ "$(stat -c %s big)" = 10737418244 ]; [ "$(tail -c 4 big)" = end ]
	exec 5<>plain; rm plain; echo unlinked >&5; [ ! -e plain ]; echo again >plain; [ "$(cat plain)" = again ]
	chmod 600 user; chown 7:8 user; touch -d "2001-02-03 04:05:06" user
	[ "$(stat -c "%a %u %g %Y" user)" = "600 7 8 981173106" ]
	chmod 4755 c; echo changed >>c; [ "$(stat -c %a c)" = 4755 ] || [ "$(stat -c %a c)" = 755 ]
	mknod null c 1 3; echo x >null; mkfifo fifo; [ -p fifo ]
	if dd if=/dev/zero of=full bs=1M; then exit 1; fi; ls -l full; [ "$(df . | tail -n 1 | tr -s " " | cut -d " " -f 5)" -eq 0 ] || df .
	rm full; echo room >room; [ "$(cat room)" = room ]'
cat >/tmp/copies.user <<'END'
cd /root/copies
lg run -m 128M -- sh -exc '
	chmod 640 user; echo more >>user; [ "$(cat user | wc -l)" = 2 ]; [ "$(stat -c %a user)" = 640 ]
	refused() { if "$@"; then exit 1; fi; }
	refused chown 0 user; refused chmod 600 plain; refused sh -c "echo x >plain"; mv user moved; mkdir d; echo d >d/d
	rm -r tree; [ ! -e tree ]'
END
chmod 755 /root
su user -c 'sh -e /tmp/copies.user'
[ "$(find . | sort | xargs ls -ldn; cat a tree/in/x plain)" = "$before" ]
rm -r $d /tmp/copies.user
