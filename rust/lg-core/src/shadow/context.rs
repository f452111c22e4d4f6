// SPDX-License-Identifier: GPL-2.0

//! A context: what is cached for one root of the Guest's (CR3).

use super::super::addr::{Gva, Hpa};
use super::super::paging::{Access, Translation, NX};
use super::cursor::{clear, drop_page, link, make_child, make_leaf_table, put, Gone};
use super::leaf::{half, Half};
use super::stock::{Refused, Stock};
use super::table::{List, Table, TABLE};

/// The parts that never change.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The top-level entry that is the switcher's, in the upper half.
    pub slot: usize,
    /// Its content.
    pub slot_entry: u64,
    /// True if the Host's tables have five levels. The Guest's have four.
    pub five_levels: bool,
    /// The budget: with as many tables, something has to go before there can be more.
    pub max_tables: usize,
}

/// The most tables that one context has before anything is mapped.
pub(super) const MOST_ROOTS: usize = 4;

/// Two trees of tables for the processor, for the Guest's two modes.
pub(super) struct Context<T: Table> {
    /// The number of vCPUs on it. The tables at the top stay where they are as long as it is not 0.
    pub(super) holders: usize,
    /// Level 4: the lower half, for user mode.
    user: T::Owned,
    /// Level 4: links to the tables of `user`, or splits; with four levels also links to the upper
    /// half.
    kernel: T::Owned,
    /// Level 5, the kernel's and the user's, on a Host that has it.
    top: Option<[T::Owned; 2]>,
}

impl<T: Table> Context<T> {
    pub(super) fn new(config: &Config, upper: Hpa, stock: &mut Stock<T>) -> Result<Self, Refused> {
        let (slot, entry) = (config.slot, config.slot_entry);
        let (mut user, mut kernel) = (stock.take()?, stock.take()?);
        let top = if config.five_levels {
            let (mut top_kernel, mut top_user) = (stock.take()?, stock.take()?);
            put(&mut *top_kernel, 0, kernel.hpa().get() | TABLE);
            put(&mut *top_kernel, 511, upper.get() | TABLE);
            put(&mut *top_kernel, slot, entry);
            put(&mut *top_user, 0, user.hpa().get() | TABLE);
            put(&mut *top_user, slot, entry);
            Some([top_kernel, top_user])
        } else {
            put(&mut *user, slot, entry);
            put(&mut *kernel, slot, entry);
            None
        };
        Ok(Self {
            holders: 0,
            user,
            kernel,
            top,
        })
    }

    /// The roots to load for Guest kernel mode and for Guest user mode.
    pub(super) fn roots(&self) -> (Hpa, Hpa) {
        match &self.top {
            Some([kernel, user]) => (kernel.hpa(), user.hpa()),
            None => (self.kernel.hpa(), self.user.hpa()),
        }
    }

    /// Links to what `upper` has at `gva`; says whether that is new.
    pub(super) fn link_upper(&mut self, upper: &T, gva: Gva, slot: usize) -> bool {
        let i = gva.index(4);
        // With five levels all of `upper` hangs at the top. The switcher's slot stays what it is.
        self.top.is_none() && i != slot && put(&mut *self.kernel, i, link(upper, i))
    }

    /// The table of level 1 where `t`, the translation of `gva`, belongs for `access`; and which
    /// kind of table that is.
    pub(super) fn table_for<'a>(
        &'a mut self,
        upper: &'a mut T,
        gva: Gva,
        t: &Translation,
        access: Access,
        config: &Config,
        stock: &mut Stock<T>,
    ) -> Result<(&'a mut T, Half), Refused> {
        let i = gva.index(4);
        if half(gva) == Half::Kernel {
            make_child(upper, i, TABLE, stock)?;
            self.link_upper(upper, gva, config.slot);
            let table = make_leaf_table(upper, gva, t.size, stock)?;
            return Ok((table, Half::Kernel));
        }
        let split = self.kernel.child(i).is_some();
        if !t.user || (split && !access.user) {
            // The first page for the kernel alone splits: the link to the shared tables goes.
            let table = make_leaf_table(&mut *self.kernel, gva, t.size, stock)?;
            return Ok((table, Half::Kernel));
        }
        make_child(&mut *self.user, i, TABLE, stock)?;
        if !split {
            put(&mut *self.kernel, i, link(&*self.user, i) | NX);
        }
        let table = make_leaf_table(&mut *self.user, gva, t.size, stock)?;
        Ok((table, Half::User))
    }

    /// Forgets the page of the lower half that `gva` is in.
    pub(super) fn drop_page(&mut self, gva: Gva, to: &mut T::List) -> Gone {
        let user = drop_page(&mut *self.user, gva, to);
        match drop_page(&mut *self.kernel, gva, to) {
            Gone::Nothing => user,
            Gone::Leaf if user != Gone::Tables => Gone::Leaf,
            _ => Gone::Tables,
        }
    }

    /// Forgets the lower half; says whether there was any.
    pub(super) fn drop_lower(&mut self, to: &mut T::List) -> bool {
        let kernel = clear(&mut *self.kernel, 0..256, to);
        clear(&mut *self.user, 0..256, to) | kernel
    }

    /// Takes the links to the upper half away, which with four levels every context has.
    pub(super) fn unlink_upper(&mut self, slot: usize, to: &mut T::List) {
        if self.top.is_none() {
            clear(&mut *self.kernel, 256..slot, to);
            clear(&mut *self.kernel, slot + 1..512, to);
        }
    }

    /// Puts all of it in `to`.
    pub(super) fn drop_all(self, to: &mut T::List) {
        to.push(self.user);
        to.push(self.kernel);
        for table in self.top.into_iter().flatten() {
            to.push(table);
        }
    }
}
