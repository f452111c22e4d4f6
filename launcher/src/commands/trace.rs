// SPDX-License-Identifier: GPL-2.0
//! `lg trace`: a trace, for people and for programs.

#![forbid(unsafe_code)]

use std::io::{self, BufWriter, Write};

use serde_json::json;

use crate::cli::Trace as Options;
use crate::plan::guest;
use crate::report::messages::say;
use crate::report::system::Refusal;
use crate::report::Error;
use crate::trace::event::Event;
use crate::trace::file::{NoTrace, Trace};
use crate::trace::summary::Summary;
use crate::trace::symbols::Symbols;
use crate::trace::{perfetto, text};

/// Prints the file of `options`, as they say. A reader that has seen enough is no error.
///
/// # Errors
///
/// It cannot be read, or is no trace; the kernel that is named is not the one that ran.
pub fn run(options: &Options) -> Result<(), Error> {
    let trace = Trace::open(&options.file)?;
    if trace.cut_off {
        say("the trace ends within a record: lg was killed while it wrote, or still writes");
    }
    let symbols = symbols(options, &trace)?;
    if symbols.is_empty() && !options.summary {
        say("functions have no names: this is not the kernel that lg run would find here, or it has none; \
             --kernel VMLINUX tells which one ran");
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = print(options, &trace, &symbols, &mut out).and_then(|()| out.flush());
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Refusal::Output(error).into())
        }
        _ => Ok(()),
    }
}

fn print(
    options: &Options,
    trace: &Trace,
    symbols: &Symbols,
    out: &mut impl Write,
) -> io::Result<()> {
    if options.perfetto {
        return perfetto::write(trace, symbols, out);
    }
    match (options.summary, options.json) {
        (true, true) => {
            let summary = serde_json::to_string_pretty(&Summary::of(trace));
            writeln!(out, "{}", summary.expect("plain data"))
        }
        (true, false) => write!(out, "{}", Summary::of(trace)),
        (false, true) => {
            let mut events = trace.events.iter();
            events.try_for_each(|event| writeln!(out, "{}", object(trace, event, symbols)))
        }
        (false, false) => {
            out.write_all(text::head(trace).as_bytes())?;
            let lines = trace.events.iter();
            let mut lines = lines.map(|event| text::line(trace, event, symbols));
            lines.try_for_each(|line| out.write_all(line.as_bytes()))
        }
    }
}

/// A record for programs: its fields, and what is made of them for people.
fn object(trace: &Trace, event: &Event, symbols: &Symbols) -> serde_json::Value {
    let mut object = json!(event);
    object["time"] = json!(trace.microseconds(event.entered));
    object["kind"] = json!(event.kind());
    object["exit"] = json!(event.exit());
    object["at"] = match event.user_mode {
        true => json!(null),
        false => json!(symbols.find(event.rip).map(|_| symbols.name(event.rip))),
    };
    object
}

/// The names of the kernel that ran.
fn symbols(options: &Options, trace: &Trace) -> Result<Symbols, Error> {
    let build_id = &trace.header.build_id;
    if let Some(named) = &options.kernel {
        let symbols = Symbols::open(named)?;
        let path = named.display();
        if symbols.build_id != *build_id {
            let why = format!("{path} is not the kernel that ran: its build ID is another");
            return Err(NoTrace::new(why).into());
        }
        if symbols.is_empty() {
            return Err(NoTrace::new(format!("{path} has no symbols")).into());
        }
        return Ok(symbols);
    }
    let found = guest::find_kernel(None).ok();
    let symbols = found.and_then(|path| Symbols::open(&path).ok());
    let symbols = symbols.filter(|symbols| !build_id.is_empty() && symbols.build_id == *build_id);
    Ok(symbols.unwrap_or_default())
}
