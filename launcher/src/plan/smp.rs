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
    #[error("a kernel has one CPU, not {0}")]
    Linux(u32),
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
            Self::Linux(_) => "only bare guests start other CPUs".into(),
            Self::One(_) => {
                "it would show one of them, and the others would go on meanwhile".into()
            }
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Number(_) => self.code().fix().to_string(),
            Self::Linux(_) => "leave out --smp".into(),
            Self::One(option) => format!("leave out --smp, or {option}"),
        }
    }
}

/// Can the Guest have as many vCPUs as `options` say?
pub(super) fn check(options: &Run, linux: bool) -> Result<(), Error> {
    let error = match options.smp {
        1 => return Ok(()),
        number if number == 0 || number > LGUEST_MAX_VCPUS => SmpError::Number(number),
        number if linux => SmpError::Linux(number),
        _ if options.gdb.is_some() => SmpError::One("--gdb"),
        _ if options.trace.is_some() => SmpError::One("--trace"),
        _ => return Ok(()),
    };
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn refused(arguments: &[&str], linux: bool) -> Option<String> {
        let cli = Cli::parse_from(["lg", "run"].iter().chain(arguments));
        let Command::Run(options) = cli.command else {
            unreachable!("lg run");
        };
        check(&options, linux).err().map(|error| error.to_string())
    }

    #[test]
    fn so_many_and_no_more() {
        for (arguments, linux, error) in [
            (&["--smp=1", "--gdb=a", "--trace=b"][..], true, None),
            (&["--smp=2"], false, None),
            (&["--smp=32"], false, None),
            (&["--smp=33"], false, Some("no guest with 33")),
            (&["--smp=0"], false, Some("no guest with 0")),
            (&["--smp=2"], true, Some("a kernel has one")),
            (&["--smp=2", "--gdb=a"], false, Some("--gdb is for")),
            (&["--smp=2", "--trace=a"], false, Some("--trace is for")),
        ] {
            let refused = refused(arguments, linux);
            match (&refused, error) {
                (None, None) => {}
                (Some(refused), Some(error)) if refused.contains(error) => {}
                _ => panic!("{arguments:?}: {refused:?}"),
            }
        }
    }
}
