// SPDX-License-Identifier: GPL-2.0

//! The stock of tables, which makes it possible to fill the shadow where nothing can be waited for; and those
//! tables that will be in it once no processor knows them and they are emptied.

use super::table::{List, Table};

/// The reasons why nothing was done. All but `Stale` want something that may have to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The stock is low: [`Shadow::stock_up`](super::Shadow::stock_up).
    Stock,
    /// The budget is used up, or all contexts are: [`Shadow::needs_room`](super::Shadow::needs_room).
    Room,
    /// The translation does not hold any more: let the Guest fault again.
    Stale,
}

/// Empty tables, to be had without waiting.
pub(super) struct Stock<T: Table> {
    tables: T::List,
    pub(super) count: usize,
    /// What was dropped, and a processor may know the way to.
    pub(super) retired: T::List,
    /// The part of it whose grace period has begun.
    pub(super) waiting: T::List,
    /// The part whose grace period is over: no processor knows it any more.
    pub(super) buried: T::List,
}

impl<T: Table> Stock<T> {
    pub(super) fn new() -> Self {
        Self {
            tables: T::List::new(),
            count: 0,
            retired: T::List::new(),
            waiting: T::List::new(),
            buried: T::List::new(),
        }
    }

    pub(super) fn take(&mut self) -> Result<T::Owned, Refused> {
        let table = self.tables.pop().ok_or(Refused::Stock)?;
        self.count = self.count.saturating_sub(1);
        Ok(table)
    }

    pub(super) fn put(&mut self, table: T::Owned) {
        self.tables.push(table);
        self.count = self.count.saturating_add(1);
    }
}
