// SPDX-License-Identifier: GPL-2.0
//! What a test is, and where things are on the test machine.

use std::time::Duration;

/// The directory of the programs on the test machine.
pub(crate) const HERE: &str = "/usr/lib/lg";

/// The report of a failed test: lines for the reader.
pub(crate) type Outcome = Result<(), String>;

/// Name, time limit in seconds, test: a row of a group's table.
pub(crate) type Row = (&'static str, u64, fn(Duration) -> Outcome);

/// A machine may have much else to do. What hangs does so for ever, and is found all the same.
pub(crate) const PATIENCE: u32 = 4;

/// One test.
pub(crate) struct Test {
    /// GROUP/NAME or GROUP/NAME:DETAIL.
    pub(crate) name: String,
    /// After [`PATIENCE`] times as long it has failed: this is ample on a machine that has nothing else to do.
    pub(crate) timeout: Duration,
    /// Runs it, at most for this time.
    pub(crate) run: Box<dyn Fn(Duration) -> Outcome>,
}

impl Test {
    pub(crate) fn new(
        name: String,
        timeout: Duration,
        run: impl Fn(Duration) -> Outcome + 'static,
    ) -> Self {
        Self {
            name,
            timeout,
            run: Box::new(run),
        }
    }

    /// Does it do without the patched kernel? Its Guests are bare, or run the Host's.
    pub(crate) fn is_unpatched(&self) -> bool {
        let (group, _) = self.name.split_once('/').unwrap_or_default();
        ["bare", "hostile", "xen", "stock"].contains(&group)
    }
}

/// An error as an outcome has it.
pub(crate) fn text(error: impl ToString) -> String {
    error.to_string()
}
