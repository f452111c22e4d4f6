// SPDX-License-Identifier: GPL-2.0
//! The things that the Host's system can refuse to any part of lg.

use std::io;
use std::path::PathBuf;

use nix::libc;

use crate::report::codes::Code;
use crate::report::{Error, Explain};

/// The thing that the system has refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Refusal {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("cannot set up {what}")]
    Setup {
        what: &'static str,
        source: io::Error,
    },
}

impl Explain for Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::Read,
            Self::Write { .. } => Code::Write,
            Self::Output(_) => Code::Output,
            Self::Setup { .. } => Code::Setup,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Output(source)
            | Self::Setup { source, .. } => source.to_string(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Read { .. } | Self::Write { .. } => self.code().fix().to_string(),
            Self::Output(_) => "see where standard output goes".into(),
            Self::Setup { source, .. } if source.raw_os_error() == Some(libc::EMFILE) => {
                MORE_FILES.into()
            }
            Self::Setup { .. } => "close other programs: a limit of the system was reached".into(),
        }
    }
}

/// Is it that an output cannot be written?
pub fn is_of_output(error: &Error) -> bool {
    error.code() == Code::Output
}

/// What helps against `EMFILE`, whatever was to be opened.
pub const MORE_FILES: &str = "allow lg more open files: ulimit -n";

/// `path` cannot be read.
pub fn cannot_read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Refusal::Read { path, source }.into()
}

/// `path` cannot be written.
pub fn cannot_write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Refusal::Write { path, source }.into()
}

/// `what` cannot be had.
pub fn setup(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Refusal::Setup { what, source }.into()
}
