// SPDX-License-Identifier: GPL-2.0
//! Is a directory of the Host's a good root, and the command in it the caller's own?

use crate::command::{self, End};
use crate::Outcome;
use std::time::Duration;

/// Name, time limit in seconds, test.
type Row = (&'static str, u64, fn(Duration) -> Outcome);

/// The rows of the table. A test is a script for the Host's shell, which must end with 0.
pub(crate) const TESTS: &[Row] = &[
    ("caller", 60, |timeout| script(CALLER, timeout)),
    ("environment", 60, |timeout| script(ENVIRONMENT, timeout)),
    ("disk", 60, |timeout| script(DISK, timeout)),
    ("overlay", 60, |timeout| script(OVERLAY, timeout)),
    ("host-changes", 120, |timeout| script(HOST_CHANGES, timeout)),
    ("copies", 120, |timeout| script(COPIES, timeout)),
    ("expected", 60, |timeout| script(EXPECTED, timeout)),
    ("read-write-share", 60, |timeout| {
        script(READ_WRITE_SHARE, timeout)
    }),
    ("read-write", 60, |timeout| script(READ_WRITE, timeout)),
    ("bare-directory", 60, |timeout| {
        script(BARE_DIRECTORY, timeout)
    }),
    ("refused", 60, |timeout| script(REFUSED, timeout)),
    ("shares", 60, |timeout| script(SHARES, timeout)),
    ("statuses", 120, |timeout| script(STATUSES, timeout)),
    ("pipes", 120, |timeout| script(PIPES, timeout)),
    ("ends-of-pipes", 120, |timeout| {
        script(ENDS_OF_PIPES, timeout)
    }),
];

/// `fails_with STATUS COMMAND...`: that is the status of COMMAND.
const HEAD: &str = r#"
set -eux
fails_with() {
    expected=$1 status=0
    shift
    "$@" || status=$?
    [ "$status" -eq "$expected" ]
}
lg() { /usr/lib/lg/lg run -m 128M "$@"; }
"#;

/// Runs `body`, which may say `fails_with` and `lg`.
pub(crate) fn script(body: &str, timeout: Duration) -> Outcome {
    let argv = ["sh", "-c", &format!("{HEAD}{body}")];
    let finished = command::run(&argv, timeout).map_err(|error| error.to_string())?;
    finished.expect(End::Exit(0))
}

/// The same script says the same on the Host and in the guest: who, where, and with what rights.
const CALLER: &str = r#"
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
"#;

/// What `--env` gives, takes over from the caller, and leaves out; behind what comes by itself.
const ENVIRONMENT: &str = r#"
export MINE='a caller'\''s' HIDDEN=secret
lg --env 'A=b=c d' --env EMPTY= --env MINE --env NOBODY_HAS_IT --env HOME=/elsewhere -- env >/tmp/env
grep -qx 'A=b=c d' /tmp/env
grep -qx 'EMPTY=' /tmp/env
grep -qx "MINE=a caller's" /tmp/env
grep -qx 'HOME=/elsewhere' /tmp/env
grep -qx "PATH=$PATH" /tmp/env
fails_with 1 grep -E 'HIDDEN|NOBODY' /tmp/env
rm /tmp/env
"#;

/// A disk of the caller's is his in the guest, too, and nobody else's.
const DISK: &str = r#"
cat >/tmp/disk.script <<'END'
truncate -s 1M /tmp/disk.raw
lg run -m 128M --disk /tmp/disk.raw -- sh -exc '
    [ "$(stat -c "%a %U" /dev/vda)" = "600 user" ]
    echo mine | dd of=/dev/vda conv=fsync'
END
su user -c 'sh -e /tmp/disk.script'
[ "$(head -n 1 /tmp/disk.raw)" = mine ]
rm /tmp/disk.*
"#;

/// Writes anywhere in the default root succeed, and are gone afterwards.
const OVERLAY: &str = r#"
tree() { find /usr /etc | sort | md5sum; md5sum /etc/passwd; }
before=$(tree)
cd /usr/lib/lg
lg -- sh -exc '
    [ "$(pwd)" = /usr/lib/lg ]
    echo new >new
    echo more >>/etc/passwd
    rm /usr/bin/lg
    mv selftests moved
    [ -d moved/linux ] && [ ! -e selftests ]
    mkdir -p /mnt/a/b
    [ ! -e /tmp/on-the-host ]
    grep -q "^lg.root / virtiofs rw" /proc/mounts
    for directory in /proc/1 /sys/class /dev/pts /dev/shm /dev/fd /tmp /run; do [ -d $directory ]; done
'
[ "$(tree)" = "$before" ]
[ ! -e /mnt/a ]
"#;

/// What the Host changes while the guest looks on: the guest sees it, wherever it has changed nothing
/// itself. Both take turns: a guest says `next`, and waits until `turn` counts on.
const HOST_CHANGES: &str = r#"
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
"#;

/// What the guest changes stays its own: names, links, sizes, holes; and nothing is left of it.
const COPIES: &str = r#"
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
    ! dd if=/dev/zero of=full bs=1M; ls -l full; [ "$(df . | tail -n 1 | tr -s " " | cut -d " " -f 5)" -eq 0 ] || df .
    rm full; echo room >room; [ "$(cat room)" = room ]'
cat >/tmp/copies.user <<'END'
cd /root/copies
lg run -m 128M -- sh -exc '
    chmod 640 user; echo more >>user; [ "$(cat user | wc -l)" = 2 ]; [ "$(stat -c %a user)" = 640 ]
    ! chown 0 user; ! chmod 600 plain; ! sh -c "echo x >plain"; mv user moved; mkdir d; echo d >d/d
    rm -r tree; [ ! -e tree ]'
END
chmod 755 /root
su user -c 'sh -e /tmp/copies.user'
[ "$(find . | sort | xargs ls -ldn; cat a tree/in/x plain)" = "$before" ]
rm -r $d /tmp/copies.user
"#;

/// Mounts and directories that programs expect, the guest's name, and what an ordinary user may
/// mount: in a user namespace, what Linux allows there.
const EXPECTED: &str = r#"
cat >/tmp/expected.sh <<'END'
lg run -m 128M -- sh -exc '
    [ -e /sys/fs/cgroup/cgroup.controllers ]; [ -d /sys/kernel/debug ]
    grep " /dev/mqueue mqueue" /proc/mounts; grep " /sys/kernel/tracing tracefs" /proc/mounts
    grep " /sys/kernel/debug debugfs" /proc/mounts
    [ "$(stat -c %a /dev/fuse)" = 666 ]; [ "$(stat -c %a /run/lock)" = 1777 ]; echo x >/run/lock/x
    [ -O "$XDG_RUNTIME_DIR" ]; [ "$(stat -c %a "$XDG_RUNTIME_DIR")" = 700 ]
    ping -c 1 -W 9 "$(hostname)" || [ "$(id -u)" -ne 0 ]
    grep -w "$(hostname)" /etc/hosts
    unshare -Urm sh -exc "mount -t tmpfs none /mnt || mount -t tmpfs none /media || mount -t tmpfs none /tmp"'
END
sh -e /tmp/expected.sh
su user -c 'sh -e /tmp/expected.sh'
! grep -w lguest /etc/hosts
rm /tmp/expected.sh
"#;

/// The place of a share, in a root that is written through, is made and removed again.
const READ_WRITE_SHARE: &str = r#"
rm -rf /tmp/rws
mkdir /tmp/rws
echo hi >/tmp/rws/f
[ ! -e /mnt ]
[ "$(lg --rw --share /tmp/rws:out -- cat /mnt/out/f)" = hi ]
[ ! -e /mnt ]
mkdir /mnt
[ "$(lg --rw --share /tmp/rws:out -- cat /mnt/out/f)" = hi ]
[ -z "$(ls /mnt)" ]
rmdir /mnt
rm -r /tmp/rws
"#;

/// What the guest writes with --rw is on the Host; it makes no directories of its own there.
const READ_WRITE: &str = r#"
rm -rf /tmp/rw
mkdir -p /tmp/rw/bin /tmp/rw/work
cp /usr/bin/busybox /tmp/rw/bin/sh
cd /tmp/rw/work
fails_with 125 lg --root /tmp/rw --rw -- sh -c 'true' 2>/tmp/rw.log
grep -q 'cannot mount /proc: the root has no such directory' /tmp/rw.log
[ "$(ls /tmp/rw)" = "$(printf 'bin\nwork')" ]
mkdir /tmp/rw/proc /tmp/rw/sys /tmp/rw/dev /tmp/rw/tmp /tmp/rw/run
lg --root /tmp/rw --rw -- sh -c 'pwd >here; mkdir made; echo x >/tmp/gone'
[ "$(cat here)" = /work ]
[ -d made ] && [ ! -e /tmp/rw/tmp/gone ]
"#;

/// A root that has nothing at all is furnished, in memory.
const BARE_DIRECTORY: &str = r#"
rm -rf /tmp/bare
mkdir /tmp/bare
cd /usr/lib/lg
fails_with 127 lg --root /tmp/bare -- sh -c true 2>/tmp/bare.log
grep -q 'cannot run sh: No such file' /tmp/bare.log
fails_with 1 grep 'instead of' /tmp/bare.log
fails_with 127 lg -v --root /tmp/bare -- sh -c true 2>/tmp/bare.log
grep -q 'in / instead of /usr/lib/lg: No such file' /tmp/bare.log
fails_with 127 lg --root /tmp/bare </dev/null
cp /usr/bin/busybox /tmp/bare/
lg --root /tmp/bare -- /busybox sh -c '[ -d /proc/1 ] && [ -c /dev/null ] && [ -d /run ]'
[ "$(ls /tmp/bare)" = busybox ]
"#;

/// Before anything boots.
const REFUSED: &str = r#"
for directory in /no/such/directory /etc/passwd; do
    fails_with 125 lg --root $directory -- true 2>/tmp/refused.log
    grep -q 'error\[LG0044\]' /tmp/refused.log
    grep -q " $directory cannot be the guest's root" /tmp/refused.log
    grep -q 'fix: ' /tmp/refused.log
done
"#;

/// More directories, which are where they are looked for, in every kind of root.
const SHARES: &str = r#"
rm -rf /tmp/shares
mkdir -p /tmp/shares/a /tmp/shares/b
echo a >/tmp/shares/a/file
cd /tmp/shares
for root in '--root /' '--initrd /usr/lib/lg/busybox.cpio'; do
    lg $root --share a:first:ro --share b:second -- sh -exc '
        [ "$(cat /mnt/first/file)" = a ]
        ! echo b >/mnt/first/file
        cp /mnt/first/file /mnt/second/copy'
    [ "$(cat a/file)" = a ]
    cmp a/file b/copy
    rm b/copy
done
"#;

const STATUSES: &str = r#"
fails_with 7 lg -- sh -c 'exit 7'
fails_with 137 lg -- sh -c 'kill -9 $$'
fails_with 127 lg -- no-such-program
fails_with 126 lg -- /etc/passwd
fails_with 3 lg --initrd /usr/lib/lg/busybox.cpio -- sh -c '[ "$(pwd)" = /root ] && exit 3'
"#;

const PIPES: &str = r#"
[ "$(echo hi | lg -- cat | wc -c)" -eq 3 ]
lg -- sh -c 'echo out; echo err >&2' >/tmp/pipes.out 2>/tmp/pipes.err
[ "$(cat /tmp/pipes.out)" = out ]
grep -q '^err$' /tmp/pipes.err
[ "$(echo 'echo from a shell' | lg)" = 'from a shell' ]
# They are opened again, by an ordinary user too, and arrive whole.
cat >/tmp/pipes.script <<'END'
echo hi | lg run -m 128M -- sh -c 'cat /dev/stdin >/dev/stdout; echo err >/proc/self/fd/2' 2>/tmp/pipes.user
END
[ "$(su user -c 'sh /tmp/pipes.script')" = hi ]
grep -q '^err$' /tmp/pipes.user
head -c 10000000 /dev/urandom >/tmp/pipes.out
lg -- cat </tmp/pipes.out | cmp - /tmp/pipes.out
rm -f /tmp/pipes.*
"#;

const ENDS_OF_PIPES: &str = r#"
# What stays in the background keeps nobody waiting, and what was written before it is not lost.
[ "$(lg -- sh -c 'sleep 1000 & head -c 50000 /dev/zero' | wc -c)" -eq 50000 ]
# Input that the command does not want, and output that nobody wants.
[ "$(yes | lg -- head -n 1)" = y ]
[ "$(lg -- yes | head -n 1)" = y ]
"#;
