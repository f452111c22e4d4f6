// SPDX-License-Identifier: GPL-2.0
//! `lg run`, from its options to its exit status.

#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::Signal;
use nix::unistd::dup2_stdin;

use crate::boot_report::earlier::NoReport;
use crate::boot_report::writer::BootReport;
use crate::cli::file;
use crate::cli::Run;
use crate::death::Inquest;
use crate::machine::recorder::Takers;
use crate::machine::{bad_memory, Front, Machine};
use crate::plan::Plan;
use crate::queries::server::Listener;
use crate::report::codes::Code;
use crate::report::end::{End, LAUNCHER_ERROR};
use crate::report::messages;
use crate::report::messages::say;
use crate::report::record::Record;
use crate::report::stats;
use crate::report::system::{setup, Refusal};
use crate::report::{Error, Explain, Report};
use crate::session::deadline::{Deadline, Watch};
use crate::session::log::KernelLog;
use crate::session::terminal;
use crate::session::Session;
use crate::signal;
use crate::trace::file::Writer;

/// Runs a Guest as `options` say, which clap has made of `arguments`, and tells the user how it
/// ended. Returns the exit status.
pub fn run(options: Box<Run>, arguments: &[OsString]) -> u8 {
    let record = Record::default();
    // Whatever is opened or read from here on may be a FIFO at whose other end nobody is.
    let deadline = Deadline::new(record.began(), options.timeout);
    let early = match watch(deadline, &record) {
        Ok(early) => early,
        Err(error) => return failed(&error),
    };
    // Should the file of the options be bad, those of the command line say where that is recorded.
    let json = options.json.clone();
    let completed = file::complete(options, arguments).and_then(|options| {
        if options.no_stdin {
            leave_stdin()?;
        }
        Ok(options)
    });
    let json = completed
        .as_ref()
        .map_or(json, |options| options.json.clone());
    let deadline = match &completed {
        Ok(options) if deadline.is_none() => Deadline::new(record.began(), options.timeout),
        _ => deadline,
    };
    let watch = match watch(deadline, &record) {
        Ok(watch) => watch,
        Err(error) => return failed(&error),
    };
    drop(early);
    if let Some(Err(error)) = json.map(|path| record.open(&path)) {
        return failed(&error);
    }
    let inquest = OnceCell::new();
    let end = match completed {
        Ok(options) if options.dry_run => show_plan(&options, &record),
        Ok(options) => match report(&options, &record) {
            Ok(report) => run_guest(
                &options,
                &record,
                report.as_ref(),
                deadline,
                watch,
                &inquest,
            ),
            Err(error) => End::Failed(error),
        },
        Err(error) => End::Failed(error),
    };
    end.tell();
    inquest.get().inspect(|inquest: &&Inquest| inquest.tell());
    let status = match record.write(&end) {
        Ok(()) => end.status(),
        Err(error) => failed(&error),
    };
    messages::finish();
    status
}

/// Standard input stays with the caller.
fn leave_stdin() -> Result<(), Error> {
    let leave = || Ok(dup2_stdin(File::open("/dev/null")?)?);
    leave().map_err(setup("standard input"))
}

fn watch(deadline: Deadline, record: &Record) -> Result<Watch, Error> {
    deadline.watch(record).map_err(setup("a thread"))
}

fn failed(error: &Error) -> u8 {
    say(&Report(error).to_string());
    LAUNCHER_ERROR
}

/// Prints what would run.
fn show_plan(options: &Run, record: &Record) -> End {
    let plan = match Plan::make(options, record.steps()) {
        Ok(plan) => plan,
        Err(error) => return End::Failed(error),
    };
    match write!(io::stdout(), "{plan}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            End::Failed(Refusal::Output(error).into())
        }
        _ => {
            record.plan(&plan);
            End::NotRun
        }
    }
}

/// The report that is asked for.
fn report(options: &Run, record: &Record) -> Result<Option<BootReport>, Error> {
    let since = options.report_since.as_deref();
    match &options.report {
        Some(path) => BootReport::open(path, since, &options.command, record).map(Some),
        None if since.is_some() => {
            Err(NoReport::new("there is no new one: --report is missing").into())
        }
        None => Ok(None),
    }
}

/// Runs a Guest, and shows what its kernel has said if that may tell why it failed.
fn run_guest(
    options: &Run,
    record: &Record,
    report: Option<&BootReport>,
    deadline: Deadline,
    watch: Watch,
    inquest: &OnceCell<Inquest>,
) -> End {
    let log = KernelLog::default();
    let end = to_the_end(options, &log, record, report, deadline, watch, inquest);
    let end = end.unwrap_or_else(End::Failed);
    let end = match log.command_started() {
        Some(when) => {
            record.command_started(when);
            end
        }
        None => without_command(options, end),
    };
    let tail = log.tail();
    if let Some(report) = report {
        report.log_ends(&tail);
    }
    if end.is_failure() && !options.verbose && !tail.is_empty() {
        say(&format!(
            "the guest's kernel said last (-v shows all, at once):\n{}",
            tail.trim_end()
        ));
    }
    end
}

/// From the options to a plan, from there to a machine and the user's side of it, and to its end.
///
/// `watch` is who sees to the time until `deadline` is up for the Guest. Should that die, `inquest` has more to tell.
fn to_the_end(
    options: &Run,
    log: &KernelLog,
    record: &Record,
    report: Option<&BootReport>,
    deadline: Deadline,
    watch: Watch,
    inquest: &OnceCell<Inquest>,
) -> Result<End, Error> {
    record.memory(options.memory);
    // A write beyond `ulimit -f` is an error, of the Guest's or of ours, and not the end of lg.
    signal::only_interrupt(Signal::SIGXFSZ).map_err(setup("signals"))?;
    bad_memory::watch().map_err(setup("signals"))?;
    let plan = Plan::make(options, record.steps())?;
    let trace = options.trace.as_deref().map(Writer::create).transpose()?;
    record.kernel(plan.kernel());
    if options.verbose {
        plan.tell();
    }
    let by_xen = plan.by_xen();
    let inquest = inquest.get_or_init(|| Inquest::open(plan.kernel(), options.verbose));
    let (ends, end) = mpsc::channel();
    let session = Session::open(&plan.streams)?;
    let status = session.status();
    let printed = session.printed(plan.linux, log, options.verbose);
    let front = Front {
        console: Box::new(session.console()),
        ports: session.ports().map(|ports| Box::new(ports) as _),
        printed: match report {
            Some(report) if plan.linux => report.listen(printed),
            _ => printed,
        },
        record: Takers {
            trace,
            calls: options.trace_calls,
            report: report.map(|report| report.exits().clone()),
        },
        began: record.began(),
    };
    record.steps().done("terminal and streams");
    let machine = Machine::build(plan, front, record.steps())?;
    let asked = listen(options.verbose);
    // Before there are threads, which inherit what is done to this one.
    let signals = session.take_signals()?;
    // From here on, nobody is waited for before there is somebody else to see to the time.
    drop(watch);
    machine.confine(session.watcher(), terminal::give_back)?;
    let shell = options.command.is_empty();
    let session = session.start(signals, machine.console(), machine.ports(), shell, &ends)?;
    deadline
        .report(ends.clone(), record)
        .map_err(setup("a thread"))?;
    record.steps().done("sandbox and threads");
    record.starts();
    let machine = machine.start(ends)?;
    if let Some(asked) = asked {
        let view = machine.view();
        let serve = move || asked.serve(|query| view.answer(query));
        let thread = thread::Builder::new().name("queries".into()).spawn(serve);
        thread.map_err(setup("a thread"))?;
    }

    // The thread for the signals never lets go of its sender.
    let how = end.recv().unwrap_or(End::TimedOut);
    // Who sends another end is told that it is too late.
    drop(end);
    if !how.is_cut_off() {
        session.take_all();
        machine.drain();
    }
    let how = match by_xen {
        true => with_words(how, status.get().copied(), log),
        false => how,
    };
    let how = session.finish(how);
    inquest.hold(&how, &machine.view());
    // The record of what the vCPU does ends with it.
    if options.stats || options.trace.is_some() || report.is_some() {
        let stats = machine.stop()?;
        if let (Some((stats, each)), true) = (&stats, options.stats || report.is_some()) {
            record.counters(stats, each);
        }
        if let (Some((stats, each)), true) = (&stats, options.stats) {
            messages::print(&stats::table(stats, each));
        }
    }
    Ok(how)
}

/// Where others may ask about the Guest. It runs as well without.
fn listen(verbose: bool) -> Option<Listener> {
    let listener = Listener::open();
    if let (Err(error), true) = (&listener, verbose) {
        say(&format!("nobody can ask about this guest: {error}"));
    }
    listener.ok()
}

/// The end, with what a kernel by Xen's ABI cannot say with it: it powers off without a status, which guest-init
/// has told or, at worst, has put into the log; and it panics without a word, but in the log.
fn with_words(end: End, status: Option<u8>, log: &KernelLog) -> End {
    match end {
        End::PoweredOff(0) => End::PoweredOff(status.or_else(|| log.command_status()).unwrap_or(0)),
        End::Panic(message) => End::Panic(log.panic().unwrap_or(message)),
        end => end,
    }
}

/// Another init than lg's own ran.
#[derive(Debug, thiserror::Error)]
#[error("the command was not run")]
struct CommandNotRun;

impl Explain for CommandNotRun {
    fn code(&self) -> Code {
        Code::CommandNotRun
    }

    fn why(&self) -> String {
        "the guest has ended, and the init that it has run is not lg's, so it knows of no command"
            .into()
    }

    fn fix(&self) -> String {
        "leave out --initrd, or name a root as well: --root DIR; or leave out the command".into()
    }
}

/// What an end means if our own init has not said that it starts the command: another one ran, which
/// knows nothing of a command, and so its good end is none of the command's.
fn without_command(options: &Run, end: End) -> End {
    // There, nothing would be said.
    let silent = ["loglevel=0", "printk.devkmsg=off"];
    let mut words = options.append.iter().flat_map(|words| words.split(' '));
    if options.command.is_empty() || words.any(|word| silent.contains(&word)) {
        return end;
    }
    match end {
        End::PoweredOff(0) | End::Restart => End::Failed(CommandNotRun.into()),
        End::TimedOut => {
            say("the command was not started by then");
            end
        }
        end => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::run;

    #[test]
    fn the_end_by_xens_abi_is_completed() {
        let log = KernelLog::default();
        let status = |end| with_words(end, None, &log).status();
        assert_eq!(status(End::PoweredOff(0)), 0);
        log.output(None)(b"init: the status is 7\n");
        assert_eq!(status(End::PoweredOff(0)), 7);
        // What came by the port is sooner there, and nobody silences it.
        let told = with_words(End::PoweredOff(0), Some(3), &log);
        assert_eq!(told.status(), 3);
        assert_eq!(status(End::PoweredOff(125)), 125);
        assert_eq!(status(End::Restart), 0);
        let panic = || {
            with_words(End::Panic("no message".into()), None, &log)
                .message()
                .unwrap()
        };
        assert_eq!(panic(), "no message");
        log.output(None)(b"Kernel panic - not syncing: VFS\n");
        assert_eq!(panic(), "VFS");
    }

    #[test]
    fn a_command_that_was_not_run_has_not_succeeded() {
        let status =
            |arguments: &[&str], end| without_command(&run(arguments).unwrap(), end).status();
        assert_eq!(status(&["--", "true"], End::PoweredOff(0)), 125);
        assert_eq!(status(&["--", "true"], End::Restart), 125);
        assert_eq!(
            status(&["--append", "a quiet", "--", "true"], End::Restart),
            125
        );
        assert_eq!(status(&["--", "true"], End::PoweredOff(3)), 3);
        assert_eq!(status(&["--", "true"], End::TimedOut), 124);
        assert_eq!(status(&[], End::PoweredOff(0)), 0);
        let silent = ["--append", "a loglevel=0", "--", "true"];
        assert_eq!(status(&silent, End::PoweredOff(0)), 0);
    }
}
