// SPDX-License-Identifier: GPL-2.0
//! `lg`: reads the command line, does what it says, and turns the end into an exit status.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use launcher::cli::{Cli, Command};
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
    }
}
