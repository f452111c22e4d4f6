// SPDX-License-Identifier: GPL-2.0
//! `lg run`, from its options to its exit status.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Write};

use crate::cli::Run;
use crate::end::{End, LAUNCHER_ERROR};
use crate::error::{Error, Report};
use crate::log::KernelLog;
use crate::plan::Plan;
use crate::record::Record;
use crate::terminal::say;
use crate::{machine, options_file};

/// Runs a guest as `options` say, which clap has made of `arguments`, and tells the user how it
/// ended. Returns the exit status.
pub fn run(options: Box<Run>, arguments: &[OsString]) -> u8 {
    // Should the file of the options be bad, those of the command line say where that is recorded.
    let json = options.json.clone();
    let completed = options_file::complete(options, arguments);
    let json = completed
        .as_ref()
        .map_or(json, |options| options.json.clone());
    let mut record = match Record::open(json.as_deref()) {
        Ok(record) => record,
        Err(error) => return failed(&error),
    };
    let end = match completed {
        Ok(options) if options.dry_run => show_plan(&options, &mut record),
        Ok(options) => run_guest(&options, &mut record),
        Err(error) => End::Failed(error),
    };
    end.tell();
    match record.write(&end) {
        Ok(()) => end.status(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> u8 {
    say(&Report(error).to_string());
    LAUNCHER_ERROR
}

/// Prints what would run.
fn show_plan(options: &Run, record: &mut Record) -> End {
    let plan = match Plan::make(options) {
        Ok(plan) => plan,
        Err(error) => return End::Failed(error),
    };
    match write!(io::stdout(), "{plan}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            End::Failed(Error::Output(error))
        }
        _ => {
            record.plan(plan);
            End::NotRun
        }
    }
}

/// Runs a guest, and shows what its kernel has said if that may tell why it failed.
fn run_guest(options: &Run, record: &mut Record) -> End {
    let log = KernelLog::default();
    let end = machine::run(options, &log, record).unwrap_or_else(End::Failed);
    if let Some(when) = log.command_started() {
        record.command_started(when);
    }
    let tail = log.tail();
    if end.is_failure() && !options.verbose && !tail.is_empty() {
        say(&format!(
            "the guest's kernel said last (-v shows all, at once):\n{}",
            tail.trim_end()
        ));
    }
    end
}
