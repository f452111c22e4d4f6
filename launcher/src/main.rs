// SPDX-License-Identifier: GPL-2.0
//! `lg`: reads the command line, does what it says, and turns the end into an exit status.

#![forbid(unsafe_code)]

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use launcher::cli::{Cli, Command};
use launcher::commands::doctor::{self, Verdict};
use launcher::commands::{completions, config, explain};
use launcher::{end, machine, terminal};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
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
    match cli.command {
        Command::Run(options) => machine::run(&options).status().into(),
        Command::Doctor { json } => doctor(json),
        Command::Explain { subject, all } => explain(subject.as_deref(), all),
        Command::Config { tree, check } => config(&tree, check),
        Command::Completions { shell } => print(&completions::completions(shell)),
        Command::Man { directory } => match completions::man(&directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("cannot write to {}: {error}", directory.display())),
        },
    }
}

/// Prints to standard output. A reader that has seen enough is no error.
fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            failed(&format!("cannot write to standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

fn lines<T: ToString>(items: &[T]) -> String {
    items.iter().map(|item| item.to_string() + "\n").collect()
}

fn failed(message: &str) -> ExitCode {
    terminal::say(&format!("error: {message}"));
    end::LAUNCHER_ERROR.into()
}

fn doctor(json: bool) -> ExitCode {
    let checks = doctor::examine(&doctor::Facts::gather());
    let text = match json {
        true => serde_json::to_string_pretty(&checks).expect("plain data") + "\n",
        false => lines(&checks),
    };
    let printed = print(text.as_bytes());
    match checks.iter().any(|check| check.verdict == Verdict::Fail) {
        true => ExitCode::FAILURE,
        false => printed,
    }
}

fn explain(subject: Option<&str>, all: bool) -> ExitCode {
    match subject.map(explain::explain) {
        Some(Ok(text)) => print(text.as_bytes()),
        Some(Err(message)) => failed(&message),
        None if all => print(explain::all().as_bytes()),
        None => print(explain::list().as_bytes()),
    }
}

fn config(tree: &Path, check: bool) -> ExitCode {
    let output = env::var_os("KBUILD_OUTPUT").map(PathBuf::from);
    let outcome = match config::run(tree, output.as_deref(), check) {
        Ok(outcome) => outcome,
        Err(message) => return failed(&message),
    };
    let path = outcome.path.display();
    let mut text = lines(&outcome.differences);
    text += &match (outcome.differences.len(), check) {
        (0, _) => format!("{path} has all that a guest needs\n"),
        (count, true) => format!("{path}: {count} options are not as they should be; lg config sets them\n"),
        (count, false) => format!("{path}: {count} options are set; the old one is .config.old. Next: make olddefconfig\n"),
    };
    if !outcome.patched {
        text += "the tree has no lguest support yet: apply guest-kernel-patch/v7.3/*.patch with git am\n";
    }
    let printed = print(text.as_bytes());
    let good = outcome.differences.is_empty() && outcome.patched;
    match check && !good {
        true => ExitCode::FAILURE,
        false => printed,
    }
}
