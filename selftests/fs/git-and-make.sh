#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 240
# The Host's git and make, from a share, at work in another one.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

tree=/tmp/tree
rm -rf $tree
mkdir $tree
/usr/lib/lg/lg run -m 256M --initrd "$LG_INITRD" --share $tree:tree --share /usr:usr:ro -- sh -euc '
	for d in lib lib64; do [ -e /$d ] || ln -s /mnt/usr/$d /$d; done
	PATH=$PATH:/mnt/usr/bin HOME=/tmp; cd /mnt/tree
	git config --global user.name lg; git config --global user.email lg@localhost
	git config --global maintenance.auto false
	git init -q; seq 1000 >numbers
	printf "sum: numbers\n\tmd5sum numbers >sum\n" >Makefile
	make; git add .; git commit -qm first
	[ -z "$(git status --porcelain)" ]
	echo 1001 >>numbers; mv Makefile makefile
	git status --porcelain
	git diff | grep +1001
	sleep 0.1; make; md5sum -c sum; make | grep "up to date"
	git add -A; git commit -qm second; git fsck --strict
	git log --oneline | wc -l' >/tmp/tree.log
for words in ' D Makefile' ' M numbers' '?? makefile' 'numbers: OK'; do
	grep -F -- "$words" /tmp/tree.log
done
[ -e $tree/.git/HEAD ]
rm -r $tree /tmp/tree.log
