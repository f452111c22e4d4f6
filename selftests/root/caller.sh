#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The same script says the same on the Host and in the Guest: who, where, and with what rights.
. "${0%/*}/../lib.sh"

rm -rf /tmp/caller
mkdir -p /tmp/caller/here
echo secret >/tmp/caller/here/secret
chmod 600 /tmp/caller/here/secret
cat >/tmp/caller/script <<'END'
id
pwd
umask
echo "$HOME $USER $LOGNAME $SHELL $PATH"
touch /tmp/made
stat -c '%a %u %g' /tmp/made
rm /tmp/made
cat secret || echo "cat: $?"
[ -w /usr/lib/lg ] || echo 'not writable'
stat -c '%a %u %g %n' . secret /usr/bin/busybox
END
cat >/tmp/caller/both <<'END'
cd /tmp/caller/here
umask 027
export LOGNAME=user SHELL=/bin/sh
sh /tmp/caller/script >/tmp/caller.host
cp /tmp/caller/script /tmp/caller.script
lg run -m 128M -- sh -c "$(cat /tmp/caller/script)" >/tmp/caller.guest
END
su user -c 'sh /tmp/caller/both'
diff /tmp/caller.host /tmp/caller.guest
grep -q 'uid=1000(user) gid=1000(user) groups=.*100(lguest)' /tmp/caller.guest
grep -q '^640 1000 1000$' /tmp/caller.guest
grep -q '^cat: 1$' /tmp/caller.guest
rm /tmp/caller.*
