// SPDX-License-Identifier: GPL-2.0
//! The reports to users and programs: of errors, of the end of a run, of what was counted in it.
//!
//! Each module has an error type of its own, which says what went wrong, why, and what to do:
//! [`Explain`]. Nothing here knows any of them. [`Error`] is what they become on their way up. What is
//! true of all errors of a kind stands in [`codes`], once.

pub mod codes;
pub mod end;
pub mod messages;
pub mod record;
pub mod stats;
pub mod steps;
pub mod system;

use std::fmt;
use std::ops::Deref;

use crate::report::codes::Code;

/// An error that the user can make something of. `Display` is the what.
pub trait Explain: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The code by which `lg explain` knows it.
    fn code(&self) -> Code;

    /// The cause.
    fn why(&self) -> String;

    /// What the user can do: what always helps, unless more is known.
    fn fix(&self) -> String {
        self.code().fix().to_string()
    }
}

/// An error of some module of the Launcher's.
pub struct Error(Box<dyn Explain>);

// There is no `Explain for Error`, which this would be at odds with.
impl<E: Explain> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl Deref for Error {
    type Target = dyn Explain;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The three lines for the user.
pub struct Report<'a>(pub &'a Error);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        write!(
            f,
            "error[{}]: {error}\n     why: {}\n     fix: {}",
            error.code(),
            error.why(),
            error.fix()
        )
    }
}
