// SPDX-License-Identifier: GPL-2.0
//! linux-tests GROUP - run a group of tests in a Linux Guest, or in any Linux: nothing here knows of lg.
//!
//! Each test is a function that panics when something is wrong, in a process of its own.

mod clocks;
mod cpu;
mod files;
mod memory;
mod processes;
mod signals;
mod smp;
mod sys;
mod threads;
mod vsock;

use std::process::ExitCode;
use std::time::Instant;

/// A test's name and what it does.
type Test = (&'static str, fn());

const GROUPS: &[(&str, &[Test])] = &[
    ("clocks", clocks::TESTS),
    ("cpu", cpu::TESTS),
    ("files", files::TESTS),
    ("future", files::FUTURE),
    ("memory", memory::TESTS),
    ("processes", processes::TESTS),
    ("signals", signals::TESTS),
    ("smp", smp::TESTS),
    ("threads", threads::TESTS),
    ("vsock", vsock::TESTS),
];

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some((_, tests)) = GROUPS.iter().find(|(group, _)| *group == name) else {
        // What `processes` executes: it proves that it arrived, and leaves.
        if name == "--exec" {
            return ExitCode::from(
                std::env::args()
                    .nth(2)
                    .and_then(|status| status.parse().ok())
                    .unwrap_or(99),
            );
        }
        // What holds a lock, or hears that somebody else does, for as long as the Host's tests want.
        let arguments: Vec<_> = std::env::args().skip(2).collect();
        match (name.as_str(), &arguments[..]) {
            ("--lock", [file, script]) => return files::run_with_locks(file, script),
            ("--locked", [file]) => return files::is_locked(file),
            _ => {}
        }
        eprintln!(
            "usage: linux-tests {}",
            GROUPS
                .iter()
                .map(|(group, _)| *group)
                .collect::<Vec<_>>()
                .join("|")
        );
        return ExitCode::from(2);
    };
    let mut failed = false;
    for (name, test) in *tests {
        let start = Instant::now();
        let status = sys::in_child(|| {
            test();
            0
        });
        println!(
            "{} {name} ({} ms)",
            if status == 0 { "ok" } else { "not ok" },
            start.elapsed().as_millis()
        );
        failed |= status != 0;
    }
    ExitCode::from(u8::from(failed))
}
