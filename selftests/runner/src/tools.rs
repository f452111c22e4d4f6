// SPDX-License-Identifier: GPL-2.0
//! This module tells what lg.ko does against the CPU's bugs, and what the Host's kernel says of
//! them.

use crate::command::{self, End};
use crate::test::{Outcome, Row};
use std::fs;
use std::time::Duration;

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[("mitigations", 300, mitigations)];

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
/// parameter relaxes it, and Guests run either way.
fn mitigations(timeout: Duration) -> Outcome {
    const PARAMETER: &str = "/sys/module/lg/parameters/mitigations";
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let load = |parameter: &str| {
        format!("rmmod lg; load-lg {parameter} && lg run guests/hello && cat {PARAMETER}")
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
    let nonsense = "rmmod lg 2>/dev/null; load-lg mitigations=no_rbs";
    shell(nonsense, timeout, libc::EINVAL, &["Invalid argument"])?;
    let plain = format!("\n{}\n", expected.join(","));
    shell(&load("2>/dev/null"), timeout, 0, &[&plain])
}
