// SPDX-License-Identifier: GPL-2.0
//! `lg`: reads the command line, does what it says, and turns the end into an exit status.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use launcher::cli::{Cli, Command};
use launcher::commands::doctor::{self, Verdict};
use launcher::commands::inspect::Kernel;
use launcher::commands::run;
use launcher::commands::{completions, config, explain, pagetable, top, trace};
use launcher::devices::fs::attributes;
use launcher::report::end;
use launcher::report::messages;
use launcher::report::system::{setup, Refusal};
use launcher::report::{Error, Report};
use launcher::session::terminal;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(message) => {
            // Help and version are no errors.
            let status = if message.use_stderr() {
                end::LAUNCHER_ERROR
            } else {
                0
            };
            let _ = message.print();
            return status.into();
        }
    };
    terminal::restore_on_panic();
    let done = match cli.command {
        Command::Run(options) => return run::run(options, &arguments).into(),
        Command::Doctor { json } => doctor(json),
        Command::Explain { subject, all } => explain(subject.as_deref(), all),
        Command::Top(options) => top::run(&options).and_then(|text| print(text.as_bytes())),
        Command::Trace(options) => trace::run(&options).map(|()| true),
        Command::PageTable(options) => {
            pagetable::run(&options).and_then(|text| print(text.as_bytes()))
        }
        Command::Config { tree, xen, check } => config(&tree, xen, check),
        Command::Inspect {
            file,
            modules,
            json,
        } => inspect(&file, modules.as_deref(), json),
        Command::Completions { shell } => print(&completions::completions(shell)),
        Command::Attributes => serve_attributes(),
        Command::Man { directory } => completions::man(&directory).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            messages::say(&Report(&error).to_string());
            end::LAUNCHER_ERROR.into()
        }
    }
}

fn serve_attributes() -> Done {
    let served = attributes::serve().map(|()| true);
    served.map_err(setup("the process that changes attributes of files"))
}

/// Whether all is as it should be, for the exit status.
type Done = Result<bool, Error>;

/// Prints to standard output. A reader that has seen enough is no error.
fn print(text: &[u8]) -> Done {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Refusal::Output(error).into())
        }
        _ => Ok(true),
    }
}

fn lines<T: ToString>(items: &[T]) -> String {
    items.iter().map(|item| item.to_string() + "\n").collect()
}

fn doctor(json: bool) -> Done {
    let checks = doctor::examine(&doctor::Facts::gather());
    let text = match json {
        true => serde_json::to_string_pretty(&checks).expect("plain data") + "\n",
        false => lines(&checks),
    };
    print(text.as_bytes())?;
    Ok(checks.iter().all(|check| check.verdict != Verdict::Fail))
}

fn explain(subject: Option<&OsStr>, all: bool) -> Done {
    match subject.map(explain::explain) {
        Some(Ok(text)) => print(text.as_bytes()),
        Some(Err(message)) => {
            messages::say(&message);
            Ok(false)
        }
        None if all => print(explain::all().as_bytes()),
        None => print(explain::list().as_bytes()),
    }
}

fn inspect(file: &Path, modules: Option<&Path>, json: bool) -> Done {
    let kernel = Kernel::inspect(file, modules)?;
    let text = match json {
        true => serde_json::to_string_pretty(&kernel).expect("plain data") + "\n",
        false => kernel.to_string(),
    };
    print(text.as_bytes())?;
    Ok(kernel.runs())
}

fn config(tree: &Path, xen: bool, check: bool) -> Done {
    let output = env::var_os("KBUILD_OUTPUT").map(PathBuf::from);
    let interface = match xen {
        true => config::Interface::Xen,
        false => config::Interface::Lguest,
    };
    let outcome = config::run(tree, output.as_deref(), interface, check)?;
    let path = outcome.path.display();
    let mut text = lines(&outcome.differences);
    text += &match (outcome.differences.len(), check) {
        (0, _) => format!("{path} has all that a guest needs\n"),
        (count, true) => format!("{path}: {count} options are not as they should be; lg config sets them\n"),
        (count, false) => format!("{path}: {count} options are set; the old one is .config.old. Next: make olddefconfig\n"),
    };
    if outcome.unpatched {
        text += "the tree has no lguest support yet: apply guest-kernel-patch/v7.3/*.patch with git am\n";
    }
    print(text.as_bytes())?;
    Ok(!check || (outcome.differences.is_empty() && !outcome.unpatched))
}
