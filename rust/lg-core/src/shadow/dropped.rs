// SPDX-License-Identifier: GPL-2.0

//! The tables that the shadow has forgotten.
//!
//! Taking a table out takes a moment whatever hangs below it, so it can be done with interrupts
//! off. Freeing takes its time for each page, so it is put off to where interrupts are on.

use super::super::addr::{Gpa, Gva};
use super::table::Table;

/// Which translations of the shadow's are gone, and so have to leave the TLBs of the processors that
/// the Guest flushes.
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
/// [`Shadow::retire`](super::Shadow::retire) takes the tables. What the Guest was promised is another matter:
/// a processor that is in the Guest goes on with that scope until it is made to forget it.
#[must_use = "it is for Shadow::retire"]
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
