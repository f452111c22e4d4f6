// SPDX-License-Identifier: GPL-2.0
//! The subcommands that run no guest, where they look at a real Host.

use crate::command::{self, End};
use crate::Outcome;
use std::fs;
use std::time::Duration;

/// Name, time limit in seconds, test.
type Row = (&'static str, u64, fn(Duration) -> Outcome);

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[
    ("doctor", 20, doctor),
    ("doctor-as-user", 20, doctor_as_user),
    ("doctor-without-the-group", 20, doctor_without_the_group),
    ("doctor-without-the-module", 60, doctor_without_the_module),
    ("mitigations", 300, mitigations),
    ("refusals", 60, refusals),
    ("second-guest", 180, second_guest),
];

/// Runs a shell command: its status, and all words that must be in its output.
fn shell(script: &str, timeout: Duration, end: i32, words: &[&str]) -> Outcome {
    let finished =
        command::run(&["sh", "-c", script], timeout).map_err(|error| error.to_string())?;
    finished.expect(End::Exit(end))?;
    match words.iter().find(|word| !finished.output.contains(**word)) {
        Some(word) => Err(finished.report(&format!("did not print {word:?} but:"))),
        None => Ok(()),
    }
}

/// On a machine that runs guests, the doctor has no complaint that matters.
fn doctor(timeout: Duration) -> Outcome {
    let words = [
        "ok    cpu",
        "ok    module",
        "ok    device",
        "ok    guest",
        "ok    cpu bugs",
    ];
    shell("lg doctor", timeout, 0, &words)?;
    // Every CPU has this one, and is told of it.
    shell(
        "lg doctor | grep spectre_v1",
        timeout,
        0,
        &["| lg: the guest's registers are cleared"],
    )?;
    shell(
        "lg doctor --json",
        timeout,
        0,
        &[r#""name": "device""#, r#""verdict": "ok""#],
    )
}

/// A member of group lguest.
fn doctor_as_user(timeout: Duration) -> Outcome {
    shell("su user -c 'lg doctor'", timeout, 0, &["ok    device"])
}

/// An ordinary user outside of it.
fn doctor_without_the_group(timeout: Duration) -> Outcome {
    let script =
        "chgrp root /dev/lguest; su user -c 'lg doctor'; s=$?; chgrp lguest /dev/lguest; exit $s";
    shell(script, timeout, 1, &["FAIL  device", "usermod -aG lguest"])
}

fn doctor_without_the_module(timeout: Duration) -> Outcome {
    let script = "rmmod lg && { lg doctor; s=$?; lg run guests/hello; t=$?; insmod lg.ko && \
        chgrp lguest /dev/lguest && chmod 660 /dev/lguest && exit $s$t; }";
    // 1 of the doctor's and 125 of the run's, as far as a status can hold them.
    let words = ["FAIL  module", "insmod", "error[LG0019]"];
    shell(script, timeout, 1125 % 256, &words)
}

/// Which words of the Host's kernel about a bug mean that the module does what.
const POLICY: [(&str, &[&str], &[&str]); 7] = [
    (
        "buffers",
        &[
            "mds",
            "mmio_stale_data",
            "reg_file_data_sampling",
            "tsa",
            "tsx_async_abort",
        ],
        &["Clear CPU buffers"],
    ),
    ("rsb", &["spectre_v2"], &["Vulnerable", "Mitigation"]),
    ("bhb", &["spectre_v2"], &["BHI: SW loop"]),
    ("ibrs", &["spectre_v2"], &["Mitigation: IBRS"]),
    (
        "untrain",
        &["retbleed", "spec_rstack_overflow"],
        &["untrained return thunk", "afe RET"],
    ),
    (
        "ibpb",
        &["retbleed", "spec_rstack_overflow"],
        &["Mitigation: IBPB;", "Mitigation: IBPB\n", "IBPB on VMEXIT"],
    ),
    ("vmscape", &["vmscape"], &["IBPB before exit"]),
];

/// What the module does against the CPU's bugs is what the Host's kernel says that it does itself; the
/// parameter relaxes it, and guests run either way.
fn mitigations(timeout: Duration) -> Outcome {
    const PARAMETER: &str = "/sys/module/lg/parameters/mitigations";
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let load = |parameter: &str| {
        format!(
            "rmmod lg; insmod lg.ko {parameter} && chgrp lguest /dev/lguest && \
             chmod 660 /dev/lguest && lg run guests/hello && cat {PARAMETER}"
        )
    };
    let mut expected = Vec::new();
    for (word, bugs, marks) in POLICY {
        for bug in bugs {
            let host = read(&format!("/sys/devices/system/cpu/vulnerabilities/{bug}"))?;
            if marks.iter().any(|mark| host.contains(mark)) {
                expected.push(word);
                break;
            }
        }
    }
    let told = read(PARAMETER)?;
    if told.trim() != expected.join(",") {
        return Err(format!("{told:?}, and the kernel says {expected:?}"));
    }
    let relaxed: Vec<_> = expected.iter().map(|word| format!("no_{word}")).collect();
    let relaxed = format!("\n{}\n", relaxed.join(","));
    shell(&load("mitigations=off"), timeout, 0, &[&relaxed])?;
    // Stronger than the kernel, where the CPU can.
    let barrier = load("mitigations=ibpb");
    if read("/proc/cpuinfo")?
        .split_whitespace()
        .any(|flag| flag == "ibpb")
    {
        shell(&barrier, timeout, 0, &[",ibpb"])?;
    } else {
        shell(&barrier, timeout, libc::EINVAL, &["Invalid argument"])?;
    }
    let nonsense = "rmmod lg 2>/dev/null; insmod lg.ko mitigations=no_rbs";
    // busybox's insmod ends with the errno.
    shell(nonsense, timeout, libc::EINVAL, &["Invalid argument"])?;
    let plain = format!("\n{}\n", expected.join(","));
    shell(&load("2>/dev/null"), timeout, 0, &[&plain])
}

/// What is refused before there is a guest, by the real lg on a real Host. (What needs no Host is
/// tested in `launcher/tests/refusals.rs`.)
fn refusals(timeout: Duration) -> Outcome {
    let too_long = format!("lg run --append {} -- true", "x".repeat(2100));
    let table = [
        ("lg run nowhere", "error[LG0003]"),
        ("chmod 600 /tmp/secret; su user -c 'lg run /tmp/secret'", "error[LG0003]"),
        ("lg run --initrd nowhere -- true", "error[LG0003]"),
        ("lg run /usr/lib/lg/initramfs.cpio", "error[LG0004]"),
        ("lg run guests/hello -- true", "error[LG0013]"),
        ("lg run guests/hello --env A=b", "error[LG0055]"),
        (&too_long, "error[LG0014]"),
        ("lg run -m 8M -- true", "error[LG0015]"),
        ("lg run -m 128M --initrd /tmp/large -- true", "error[LG0015]"),
        ("chgrp root /dev/lguest; su user -c 'lg run guests/hello'; s=$?; chgrp lguest /dev/lguest; exit $s", "error[LG0020]"),
    ];
    shell(
        "truncate -s 200M /tmp/large; echo > /tmp/secret",
        timeout,
        0,
        &[],
    )?;
    for (script, code) in table {
        shell(script, timeout, 125, &[code, "why: ", "fix: "])?;
    }
    shell("rm /tmp/large /tmp/secret", timeout, 0, &[])
}

/// Where the memory is enough for one guest, a second is refused, and a small one is not.
fn second_guest(timeout: Duration) -> Outcome {
    let script = r#"
        mebibytes=$(awk '/^MemAvailable:/ { print int($2 / 1024 * 6 / 10) }' /proc/meminfo)
        lg run -m ${mebibytes}M --initrd busybox.cpio -- sh -c "
            dd if=/dev/zero of=/tmp/fill bs=1M count=$((mebibytes * 4 / 10))
            dd if=/dev/zero of=/dev/shm/fill bs=1M count=$((mebibytes * 4 / 10))
            echo full
            sleep 1000" >/tmp/first &
        first=$!
        until grep -q full /tmp/first; do kill -0 $first && sleep 0.1 || exit 1; done
        lg run -m ${mebibytes}M -- true
        status=$?
        lg run -m 64M guests/hello || status=1
        kill $first
        wait $first
        rm /tmp/first
        exit $status"#;
    let words = ["error[LG0049]", "why: ", "end another guest", "Hello"];
    shell(script, timeout, 125, &words)
}
