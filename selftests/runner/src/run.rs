// SPDX-License-Identifier: GPL-2.0
//! What `lg run` takes from a file, what it tells programs, and what it says that it would do.

use crate::command::{self, End};
use crate::root::script;
use crate::Outcome;
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// Name, time limit in seconds, test.
type Row = (&'static str, u64, fn(Duration) -> Outcome);

/// Where the tests have `--json` written.
const RECORD: &str = "/tmp/record.json";

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[
    ("config", 60, |timeout| script(CONFIG, timeout)),
    ("json", 120, json),
    ("dry-run", 60, dry_run),
    ("one-log", 60, |timeout| script(ONE_LOG, timeout)),
    ("gdb-socket", 60, |timeout| script(GDB_SOCKET, timeout)),
    ("file-limit", 30, |timeout| script(FILE_LIMIT, timeout)),
    ("stuck-output", 120, |timeout| script(STUCK_OUTPUT, timeout)),
    ("timeout", 120, |timeout| script(TIMEOUT, timeout)),
    ("control-group", 120, |timeout| {
        script(CONTROL_GROUP, timeout)
    }),
    ("own-initrd", 180, |timeout| script(OWN_INITRD, timeout)),
    ("frozen-writer", 60, |timeout| {
        script(FROZEN_WRITER, timeout)
    }),
    ("input-of-others", 180, |timeout| {
        script(INPUT_OF_OTHERS, timeout)
    }),
    ("no-hang-up", 60, |timeout| script(NO_HANG_UP, timeout)),
];

/// The socket of --gdb is for nobody else, and goes with lg.
const GDB_SOCKET: &str = r#"
umask 0
/usr/lib/lg/lg run -m 128M --gdb /tmp/gdb -- true 2>/tmp/said &
until grep 'waiting for gdb' /tmp/said; do sleep .1; done
[ "$(stat -c %a /tmp/gdb)" = 600 ]
kill $!
wait $! && exit 1
until [ ! -e /tmp/gdb ]; do sleep .1; done
"#;

/// A file that may not get large is an error of three lines, and no death by SIGXFSZ.
const FILE_LIMIT: &str = r#"
(ulimit -f 1000; fails_with 125 /usr/lib/lg/lg run -m 128M -- true)
"#;

/// Who writes waits; neither the end nor lg's own last words do, and nothing is lost for who reads late.
const STUCK_OUTPUT: &str = r#"
mkfifo /tmp/pipe
exec 3<>/tmp/pipe
fails_with 124 /usr/lib/lg/lg run -m 128M --timeout 5 -- yes >/tmp/pipe 2>&1
grep -q '^lg: the time is up' <&3
exec 3<&- 3<>/tmp/pipe
fails_with 9 /usr/lib/lg/lg run -m 128M -- sh -c 'head -c 200000 /dev/zero; exit 9' >/tmp/pipe
[ "$(head -c 200000 <&3 | wc -c)" -eq 200000 ]
rm /tmp/pipe
"#;

/// All that lg waits for counts: gdb, and the other end of a FIFO.
const TIMEOUT: &str = r#"
mkfifo /tmp/fifo
ends() {
    fails_with 124 /usr/lib/lg/lg run -m 128M --timeout 2 "$@" 2>/tmp/said
    grep 'the time is up' /tmp/said
}
ends --gdb /tmp/gdb --json /tmp/record.json -- true
grep '"reason": "timeout"' /tmp/record.json
until [ ! -e /tmp/gdb ]; do sleep .1; done
ends --json /tmp/fifo -- true
ends --config /tmp/fifo -- true
ends --initrd /tmp/fifo -- true
ends --initrd /tmp/fifo --dry-run -- true
ends /tmp/fifo -- true
echo 'timeout = 2' >/tmp/short.toml
fails_with 124 /usr/lib/lg/lg run --config /tmp/short.toml --gdb /tmp/gdb
rm /tmp/fifo /tmp/short.toml
# There is no time to wait for in this, and it counts for nothing later.
lg --timeout 1000000h -- true
"#;

/// A guest that its control group, or one around that, has no memory for is refused. lg would be
/// killed, and could not say why. One that fits is not.
const CONTROL_GROUP: &str = r#"
TOP=/sys/fs/cgroup
GROUP=$TOP/lg-test
echo +memory >$TOP/cgroup.subtree_control
mkdir -p $GROUP/inner
inside() { (echo 0 >$1/cgroup.procs; shift; exec /usr/lib/lg/lg run "$@"); }
FILL='dd if=/dev/zero of=/dev/shm/fill bs=1M count=70'
echo 100M >$GROUP/memory.max
for group in $GROUP $GROUP/inner; do
    fails_with 125 inside $group -m 128M -- true 2>/tmp/said
    grep 'error\[LG0053\]' /tmp/said
    grep "of the 100 MiB of $GROUP," /tmp/said
    fails_with 125 inside $group -m 128M --dry-run -- true
done
echo 300M >$GROUP/memory.max
inside $GROUP/inner -m 192M -- sh -c "$FILL"
fails_with 125 inside $GROUP/inner -m 300M -- true
echo max >$GROUP/memory.max
inside $GROUP/inner -m 192M -- true
rmdir $GROUP/inner $GROUP
"#;

/// An init that is not lg's runs no command, so its good end is none. What it does without a command
/// is its own affair, and so is what a command does with the guest.
const OWN_INITRD: &str = r#"
rm -rf /tmp/own
mkdir -p /tmp/own/bin
cp /bin/busybox /tmp/own/bin
own() {
    printf '#!/bin/busybox sh\n%s\n' "$1" >/tmp/own/init
    chmod +x /tmp/own/init
    (cd /tmp/own; find . | cpio -o -H newc) >/tmp/own.cpio
}
fails() {
    fails_with 125 lg --initrd /tmp/own.cpio "$@" 2>/tmp/said
    grep 'error\[LG0054\]' /tmp/said
}
own 'exec /bin/busybox poweroff -f'
fails -- false
fails --append quiet -- false
lg --initrd /tmp/own.cpio
own 'exec /bin/busybox reboot -f'
fails -- false
own 'exec /bin/busybox sleep 1000'
fails_with 124 lg --timeout 10 --initrd /tmp/own.cpio -- true 2>/tmp/said
grep 'the command was not started' /tmp/said
lg --append quiet -- true
lg --append loglevel=0 -- true
lg --append quiet --initrd /usr/lib/lg/busybox.cpio -- poweroff -f
rm -r /tmp/own /tmp/own.cpio
"#;

/// An output that nobody reads stops who writes there. Other output comes, the log too, and the end.
const FROZEN_WRITER: &str = r#"
mkfifo /tmp/frozen
exec 3<>/tmp/frozen
fails_with 4 /usr/lib/lg/lg run -m 128M -- sh -c '
    head -c 10000000 /dev/zero >&2 &
    # It waits for somebody who reads.
    until grep -q pipe_write /proc/$!/wchan; do sleep .1; done
    echo out; exit 4' 2>/tmp/frozen >/tmp/frozen.out
[ "$(cat /tmp/frozen.out)" = out ]
# Nor does a log that nobody reads stop the kernel.
fails_with 3 /usr/lib/lg/lg run -v -m 128M -- sh -c '
    n=0; while [ $((n += 1)) -lt 2000 ]; do echo "message $n of many" >/dev/kmsg; done
    exit 3' 2>/tmp/frozen
exec 3<&-
# Who goes on writing in the background keeps nobody.
fails_with 5 /usr/lib/lg/lg run -m 128M -- sh -c 'yes & exit 5' >/dev/null
rm /tmp/frozen*
"#;

/// What a command does not read of its standard input is for who comes next.
const INPUT_OF_OTHERS: &str = r#"
seq 3 >/tmp/list
lines() { n=0; while read -r line; do lg -- true; n=$((n + 1)); done; echo $n; }
[ "$(lines </tmp/list)" = 3 ]
[ "$(seq 3 | lines)" = 3 ]
# And what it reads is gone, in a file and in a pipe which others write to at the same time.
seq 100000 >/tmp/list
[ "$( (lg -- sh -c 'read a; read a'; read -r line; echo $line) </tmp/list)" = 3 ]
[ "$(seq 100000 | (lg -- sh -c 'n=0; while [ $((n += 1)) -le 5000 ]; do read a; done'; head -n 1))" = 5001 ]
[ "$(seq 100000 | lg -- cat | md5sum)" = "$(md5sum </tmp/list)" ]
[ "$( (sleep 3; echo late; sleep 3; echo later) | lg -- cat)" = "$(printf 'late
later')" ]
# What nobody shall have, nobody has.
[ "$(seq 3 | (lg -n -- wc -c; cat))" = "$(printf '0
1
2
3')" ]
rm /tmp/list
"#;

/// A signal that is ignored stays ignored.
const NO_HANG_UP: &str = r#"
: >/tmp/survivor
mkfifo /tmp/survivor.in
(trap '' HUP; exec /usr/lib/lg/lg run -m 128M -- sh -c 'echo up; read line; echo $line; exit 6'     >/tmp/survivor </tmp/survivor.in) &
LG=$!
wait_for() { until grep -q "$1" /tmp/survivor; do kill -0 $LG; sleep .1; done; }
exec 4>/tmp/survivor.in
wait_for up
kill -HUP $LG
echo survived >&4
wait_for survived
fails_with 6 wait $LG
rm /tmp/survivor*
"#;

/// What a command writes by turns to both outputs is in that order in a log of both.
const ONE_LOG: &str = r#"
/usr/lib/lg/lg run -m 128M -- sh -c '
    for n in $(seq 500); do echo $n out; echo $n err >&2; done' >/tmp/log 2>&1
for n in $(seq 500); do echo $n out; echo $n err; done | cmp - /tmp/log
rm /tmp/log
"#;

/// A script for the Host's shell, which must end with 0: the same file from two directories: its paths are its own, the command's directory is the
/// caller's; and the command line counts more.
const CONFIG: &str = r#"
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
"#;

/// Ends of every kind, as the record of each tells them to somebody else's parser.
fn json(timeout: Duration) -> Outcome {
    let lg = format!("/usr/lib/lg/lg run -m 128M --json {RECORD}");
    let run = |arguments: &str, status: i32| -> Result<Value, String> {
        script(&format!("fails_with {status} {lg} {arguments}"), timeout)?;
        let text = fs::read(RECORD).map_err(|error| error.to_string())?;
        let record: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        check(&record, record["status"] == status).map(|()| record)
    };
    let seconds = |record: &Value, key: &str| record["seconds"][key].as_f64().unwrap_or(-1.0);

    let record = run("--stats -- sh -c 'exit 7'", 7)?;
    check(
        &record,
        record["reason"] == "exited" && record["message"].is_null(),
    )?;
    check(
        &record,
        record["kernel"] == "/usr/lib/lg/vmlinux" && record["memory"] == 128 << 20,
    )?;
    check(
        &record,
        record["code"].is_null() && record["counters"]["entries"].as_u64() > Some(100),
    )?;
    let times = ["setup", "command", "total"].map(|key| seconds(&record, key));
    check(
        &record,
        times[0] > 0.0 && times.is_sorted() && times[2] < 60.0,
    )?;

    let record = run("-- sh -c 'echo c >/proc/sysrq-trigger'", 255)?;
    let message = record["message"].as_str().unwrap_or_default();
    check(
        &record,
        record["reason"] == "panic" && message.contains("sysrq"),
    )?;
    check(&record, record["counters"].is_null())?;

    let record = run(
        "/usr/lib/lg/selftests/hostile/roots --append crime=root-outside",
        255,
    )?;
    check(
        &record,
        record["reason"] == "killed" && record["message"].is_string(),
    )?;
    check(&record, record["seconds"]["command"].is_null())?;

    let record = run("--timeout 3 -- sleep 60", 124)?;
    check(
        &record,
        record["reason"] == "timeout" && (3.0..50.0).contains(&seconds(&record, "total")),
    )?;

    let record = run("-m 8M -- true", 125)?;
    check(
        &record,
        record["reason"] == "error" && record["code"] == "LG0015",
    )?;
    check(
        &record,
        record["fix"].is_string() && record["seconds"]["setup"].is_null(),
    )?;
    let record = run("--config /nowhere", 125)?;
    check(
        &record,
        record["code"] == "LG0003" && record["memory"].is_null(),
    )?;

    // As long as the guest runs there is no record, nor that of the run before.
    let body = format!(
        "{lg} -- sh -c 'echo runs; sleep 60' >/tmp/runs &
        until grep -q runs /tmp/runs; do kill -0 $!; sleep 0.1; done
        [ -e {RECORD} -a ! -s {RECORD} ]; kill $!; wait $! || exit $?"
    );
    command::run(&["sh", "-ec", &body], timeout)
        .map_err(|error| error.to_string())?
        .expect(End::Exit(143))?;
    let text = fs::read_to_string(RECORD).map_err(|error| error.to_string())?;
    let is_there = |words| text.contains(words);
    match is_there(r#""reason": "signal""#) && is_there(r#""message": "SIGTERM""#) {
        true => Ok(()),
        false => Err(format!("the record of a run that was terminated: {text:?}")),
    }
}

/// What is said to run is what runs then: the same command line, the same devices in the same order.
/// And it is said without /dev/lguest, and leaves nothing behind.
fn dry_run(timeout: Duration) -> Outcome {
    const LG: &str = "/usr/lib/lg/lg run -m 128M --disk /tmp/plan.raw,overlay --share /usr:usr:ro \
        --vsock /tmp/plan.sock --net user,forward=7777:7";
    const COMMAND: &str = "sh -c 'cat /proc/cmdline /sys/bus/virtio/devices/*/device'";
    let text = |error: std::io::Error| error.to_string();
    script(
        &format!(
            "truncate -s 1M /tmp/plan.raw; mv /dev/lguest /dev/away; status=0
             {LG} --dry-run --json {RECORD} -- {COMMAND} >/tmp/plan || status=$?
             mv /dev/away /dev/lguest
             [ $status = 0 ]
             [ ! -e /tmp/plan.sock ]
             fails_with 1 pidof passt
             grep -q '^command .* /proc/cmdline .*/device' /tmp/plan
             rm /tmp/plan"
        ),
        timeout,
    )?;
    let record = fs::read(RECORD).map_err(text)?;
    let record: Value = serde_json::from_slice(&record).map_err(|error| error.to_string())?;
    check(
        &record,
        record["reason"] == "dry-run" && record["status"] == 0,
    )?;
    let plan = &record["plan"];

    let body = format!("{LG} -- {COMMAND}; rm /tmp/plan.raw");
    let ran = command::run(&["sh", "-c", &body], timeout).map_err(text)?;
    ran.expect(End::Exit(0))?;
    let mut lines = ran.output.lines();
    let command_line = lines.next().unwrap_or_default();
    check(&record, plan["command_line"] == command_line)?;
    let id = |device: &Value| match device["kind"].as_str()? {
        "net" => Some("0x0001"),
        "blk" => Some("0x0002"),
        "console" | "ports" => Some("0x0003"),
        "rng" => Some("0x0004"),
        "vsock" => Some("0x0013"),
        "fs" => Some("0x001a"),
        _ => None,
    };
    let planned = plan["devices"].as_array().into_iter().flatten().map(id);
    match planned.eq(lines.map(Some)) {
        true => Ok(()),
        false => Err(ran.report(&format!("other devices than planned: {plan:#}"))),
    }
}

/// `Ok` if what `record` was asked for holds.
fn check(record: &Value, holds: bool) -> Outcome {
    match holds {
        true => Ok(()),
        false => Err(format!("not so:\n{record:#}")),
    }
}
