// SPDX-License-Identifier: GPL-2.0

//! The tables that the shadow has forgotten, until the processors have forgotten them too.
//!
//! Taking a table out takes a moment whatever hangs below it, so it can be done with interrupts
//! off. Freeing takes its time for each page, so it is put off to where interrupts are on.

use super::super::addr::{Gpa, Gva};
use super::table::Table;

/// Which translations of the shadow's are gone, and so have to leave the TLBs of the processors that
/// run the Guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// None.
    Nothing,
    /// Those of one page of 4 KiB: of this root, or if it is in the upper half of all roots. No table
    /// is gone.
    Page(Gpa, Gva),
    /// Those of the lower half of this root, and perhaps the root itself.
    Lower(Gpa),
    /// All, of all roots.
    All,
}

/// Tables which nothing leads to any more, each with all that is below it, and whose translations
/// they were.
///
/// The processors that may be in the Guest have to forget that scope; then
/// [`Shadow::bury`](super::Shadow::bury) takes the tables.
#[must_use = "the processors have to forget it, and then it is for Shadow::bury"]
pub struct Dropped<T: Table> {
    pub(super) tables: T::List,
    pub(super) scope: Scope,
}

impl<T: Table> Dropped<T> {
    /// The translations that the processors have to forget.
    pub fn scope(&self) -> Scope {
        self.scope
    }
}
