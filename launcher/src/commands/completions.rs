// SPDX-License-Identifier: GPL-2.0
//! `lg completions` and `lg man`: what `make install` puts beside lg, made from the definition of
//! the command line, so that neither can say something else.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::report::system::cannot_write;
use crate::report::Error;

/// The completion script for `shell`.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    clap_complete::generate(shell, &mut command, "lg", &mut script);
    match shell {
        Shell::Zsh => escape_value_names(&command, script),
        _ => script,
    }
}

/// zsh takes what follows a colon, as in DIR:TAG, for the action; clap_complete leaves that to us.
fn escape_value_names(command: &Command, script: Vec<u8>) -> Vec<u8> {
    let mut script = String::from_utf8(script).expect("clap has made it of strings");
    for arg in command.get_subcommands().flat_map(Command::get_arguments) {
        for name in arg.get_value_names().unwrap_or_default() {
            let escaped = name.replace(':', "\\:");
            script = script.replace(&format!(":{name}:"), &format!(":{escaped}:"));
        }
    }
    script.into()
}

/// Writes the manual pages, lg.1 and one for each subcommand, into `directory`.
pub fn man(directory: &Path) -> Result<(), Error> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    page(&command, "lg", directory)?;
    for subcommand in command.get_subcommands() {
        let name = format!("lg-{}", subcommand.get_name());
        page(subcommand, &name, directory)?;
    }
    Ok(())
}

fn page(command: &Command, name: &str, directory: &Path) -> Result<(), Error> {
    let path = directory.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .render(&mut page)
        .and_then(|()| fs::write(&path, page))
        .map_err(cannot_write(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).unwrap();
            assert!(script.contains("timeout"), "{shell}");
        }
    }

    #[test]
    fn zsh_takes_paths_for_what_begins_with_one() {
        let script = String::from_utf8(completions(Shell::Zsh)).unwrap();
        for spec in [
            r":DIR\:TAG[\:ro]:_files -/'",
            ":FILE[,ro][,overlay]:_files'",
            ":SIZE:_default'",
        ] {
            assert!(script.contains(spec), "{spec}: {script}");
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        man(directory).unwrap();
        for command in Cli::command().get_subcommands() {
            let path = directory.join(format!("lg-{}.1", command.get_name()));
            let text = fs::read_to_string(path).unwrap();
            assert!(text.contains(".SH NAME"), "{text}");
        }
        let run = fs::read_to_string(directory.join("lg-run.1")).unwrap();
        assert!(
            run.contains("timeout") && run.contains("Ctrl\\-a x"),
            "{run}"
        );
    }
}
