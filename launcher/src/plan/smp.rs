// SPDX-License-Identifier: GPL-2.0
//! `--smp`: how many vCPUs there can be.

#![forbid(unsafe_code)]

use lguest_abi::LGUEST_MAX_VCPUS;

use crate::cli::Run;
use crate::report::codes::Code;
use crate::report::{Error, Explain};

/// The reasons why there cannot be so many.
#[derive(Debug, thiserror::Error)]
pub enum SmpError {
    /// There are never so many.
    #[error("there can be no guest with {0} CPUs")]
    Number(u32),
    /// Its kernel would not find them.
    #[error("this kernel can have {most} CPU{}, not {number}", if *most == 1 { "" } else { "s" })]
    Kernel {
        /// As many as it can have.
        most: u32,
        /// As many as it should have.
        number: u32,
    },
    /// What is asked for besides is for one.
    #[error("{0} is for guests of one CPU")]
    One(&'static str),
}

impl Explain for SmpError {
    fn code(&self) -> Code {
        Code::Smp
    }

    fn why(&self) -> String {
        match self {
            Self::Number(_) => format!("it has 1 at least, and {LGUEST_MAX_VCPUS} at most"),
            Self::Kernel { .. } => "it was built for so many (CONFIG_SMP, CONFIG_NR_CPUS)".into(),
            Self::One(_) => {
                "it would show one of them, and the others would go on meanwhile".into()
            }
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Number(_) => self.code().fix().to_string(),
            Self::Kernel { most, .. } => format!("give --smp {most} at most, or leave it out"),
            Self::One(option) => format!("leave out --smp, or {option}"),
        }
    }
}

/// Can the Guest have as many vCPUs as `options` say, if its kernel can have `most`?
pub(super) fn check(options: &Run, most: u32) -> Result<(), Error> {
    let error = match options.smp {
        1 => return Ok(()),
        number if number == 0 || number > LGUEST_MAX_VCPUS => SmpError::Number(number),
        number if number > most => SmpError::Kernel { most, number },
        _ if options.gdb.is_some() => SmpError::One("--gdb"),
        _ => return Ok(()),
    };
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn refused(arguments: &[&str], most: u32) -> Option<String> {
        let cli = Cli::parse_from(["lg", "run"].iter().chain(arguments));
        let Command::Run(options) = cli.command else {
            unreachable!("lg run");
        };
        check(&options, most).err().map(|error| error.to_string())
    }

    #[test]
    fn so_many_and_no_more() {
        for (arguments, most, error) in [
            (&["--smp=1", "--gdb=a", "--trace=b"][..], 1, None),
            (&["--smp=2"], 32, None),
            (&["--smp=32"], 32, None),
            (&["--smp=33"], 32, Some("no guest with 33")),
            (&["--smp=0"], 32, Some("no guest with 0")),
            (&["--smp=2"], 1, Some("can have 1 CPU, not 2")),
            (&["--smp=3"], 2, Some("can have 2 CPUs, not 3")),
            (&["--smp=2", "--gdb=a"], 32, Some("--gdb is for")),
            (&["--smp=2", "--trace=a"], 32, None),
        ] {
            let refused = refused(arguments, most);
            match (&refused, error) {
                (None, None) => {}
                (Some(refused), Some(error)) if refused.contains(error) => {}
                _ => panic!("{arguments:?}: {refused:?}"),
            }
        }
    }
}
