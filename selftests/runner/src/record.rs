// SPDX-License-Identifier: GPL-2.0
//! What `lg run` tells programs: how a run ended, and what it would do.

use crate::command::{self, End};
use crate::test::{text, Outcome, Row};
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// The file that the tests have `--json` write.
const RECORD: &str = "/tmp/record.json";

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[("json", 180, json), ("dry-run", 120, dry_run)];

/// Runs a few lines of shell to this end.
fn shell(lines: &str, status: i32, timeout: Duration) -> Outcome {
    let finished = command::run(&["sh", "-euxc", lines], timeout).map_err(text)?;
    finished.expect(End::Exit(status))
}

/// Ends of every kind, as the record of each tells them to somebody else's parser.
fn json(timeout: Duration) -> Outcome {
    let lg = format!("/usr/lib/lg/lg run -m 128M --json {RECORD}");
    let run = |arguments: &str, status: i32| -> Result<Value, String> {
        shell(&format!("{lg} {arguments}"), status, timeout)?;
        let record: Value =
            serde_json::from_slice(&fs::read(RECORD).map_err(text)?).map_err(text)?;
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

    // As long as the Guest runs there is no record, nor that of the run before.
    let body = format!(
        "{lg} -- sh -c 'echo runs; sleep 60' >/tmp/runs &
        until grep -q runs /tmp/runs; do kill -0 $!; sleep 0.1; done
        [ -e {RECORD} -a ! -s {RECORD} ]; kill $!; wait $! || exit $?"
    );
    shell(&body, 143, timeout)?;
    let record = fs::read_to_string(RECORD).map_err(text)?;
    let is_there = |words| record.contains(words);
    match is_there(r#""reason": "signal""#) && is_there(r#""message": "SIGTERM""#) {
        true => Ok(()),
        false => Err(format!(
            "the record of a run that was terminated: {record:?}"
        )),
    }
}

/// What is said to run is what runs then: the same command line, the same devices in the same order.
/// And it is said without /dev/lguest, and leaves nothing behind.
fn dry_run(timeout: Duration) -> Outcome {
    const LG: &str = "/usr/lib/lg/lg run -m 128M --disk /tmp/plan.raw,overlay --share /usr:usr:ro \
        --vsock /tmp/plan.sock --net user,forward=7777:7";
    const COMMAND: &str = "sh -c 'cat /proc/cmdline /sys/bus/virtio/devices/*/device'";
    shell(
        &format!(
            "truncate -s 1M /tmp/plan.raw; mv /dev/lguest /dev/away; status=0
             {LG} --dry-run --json {RECORD} -- {COMMAND} >/tmp/plan || status=$?
             mv /dev/away /dev/lguest
             [ $status = 0 ]
             [ ! -e /tmp/plan.sock ]
             if pidof passt; then exit 2; fi
             grep -q '^command .* /proc/cmdline .*/device' /tmp/plan
             rm /tmp/plan"
        ),
        0,
        timeout,
    )?;
    let record = fs::read(RECORD).map_err(text)?;
    let record: Value = serde_json::from_slice(&record).map_err(text)?;
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
        "balloon" => Some("0x0005"),
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
