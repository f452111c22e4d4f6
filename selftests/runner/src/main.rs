// SPDX-License-Identifier: GPL-2.0
//! runner [--list] [FILTER...] - run the tests of lg on this Host, KTAP out, `N passed, N failed` last.
//!
//! A FILTER is part of a test's name, which is GROUP/NAME or GROUP/NAME:DETAIL; without one, all tests run, but for those
//! that have the rest of a `!FILTER` in it. After each test
//! the Host's log must be clean of warnings and the like, or the test has failed whatever else it did.
//!
//! ```text
//! tests                             the table of all
//! terminal                          a terminal with a user
//! disk, fs, gdb, host, nmi, record, tmux, tools, vsock  tests that are programs, by their subject
//! script                            tests that are scripts
//! busy                              guests that never end
//! command, module                   programs, and modules of the Host's kernel
//! kernel_log                        what a healthy kernel never says
//! test                              what a test is
//! ```

mod busy;
mod command;
mod disk;
mod fs;
mod gdb;
mod host;
mod kernel_log;
mod module;
mod nmi;
mod record;
mod script;
mod terminal;
mod test;
mod tests;
mod tmux;
mod tools;
mod vsock;

use kernel_log::KernelLog;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use test::{Test, PATIENCE};

/// The patched kernel, which is not there if its patches have no series for the version of the Host's kernel.
const PATCHED: &str = "/usr/lib/lg/vmlinux";

/// The status if no test is selected, which scripts/check knows.
const NO_TEST: u8 = 5;

fn main() -> io::Result<ExitCode> {
    let (options, filters): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|arg| arg.starts_with('-'));
    let list = match options.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--list"] => true,
        _ => {
            eprintln!("usage: runner [--list] [FILTER...]");
            return Ok(ExitCode::from(2));
        }
    };
    let (without, with): (Vec<_>, Vec<_>) =
        filters.iter().partition(|filter| filter.starts_with('!'));
    let selected = |test: &Test| {
        (with.is_empty() || with.iter().any(|filter| test.name.contains(*filter)))
            && !(without.iter()).any(|filter| test.name.contains(&filter[1..]))
    };
    let all = tests::all().map_err(io::Error::other)?;
    let tests: Vec<Test> = all.into_iter().filter(selected).collect();
    if tests.is_empty() {
        eprintln!("runner: no test has {} in its name", filters.join(" or "));
        return Ok(ExitCode::from(NO_TEST));
    }
    if list {
        tests.iter().for_each(|test| println!("{}", test.name));
        return Ok(ExitCode::SUCCESS);
    }

    let mut log = KernelLog::open()?;
    println!("KTAP version 1\n1..{}", tests.len());
    let (mut failed, mut skipped) = (0, 0);
    let patched = Path::new(PATCHED).exists();
    for (number, test) in (1..).zip(&tests) {
        if !patched && !test.is_unpatched() {
            println!(
                "ok {number} {} # SKIP it needs a series of patches",
                test.name
            );
            skipped += 1;
            continue;
        }
        let start = Instant::now();
        let outcome = (test.run)(test.timeout * PATIENCE);
        let complaints = log.complaints()?;
        let (ok, report) = match (outcome, complaints.is_empty()) {
            (Ok(()), true) => ("ok", String::new()),
            (outcome, _) => ("not ok", outcome.err().unwrap_or_default() + &complaints),
        };
        println!(
            "{ok} {number} {} # {} ms",
            test.name,
            start.elapsed().as_millis()
        );
        report.lines().for_each(|line| println!("# {line}"));
        io::stdout().flush()?;
        failed += usize::from(ok != "ok");
    }
    println!("{} passed, {failed} failed", tests.len() - failed - skipped);
    Ok(ExitCode::from(u8::from(failed != 0)))
}
