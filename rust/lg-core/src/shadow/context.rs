// SPDX-License-Identifier: GPL-2.0

//! A context: what is cached for one root of the Guest's (CR3).

use super::super::addr::{Gva, Hpa};
use super::super::paging::{Access, Translation, NX, P};
use super::cursor::{clear, drop_page, make_leaf_table, Gone};
use super::entry::{link, put, used};
use super::leaf::{half, Half};
use super::sleep::{put_to_sleep, Guest, Refresh};
use super::stock::{Refused, Stock};
use super::table::{List, Table, OWNED, TABLE};

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

/// The bits of an address within what a table of level 1 maps.
const REGION: u64 = (1 << 21) - 1;
/// Bytes below an entry of level 4.
const SLOT: u64 = 1 << 39;

/// The most tables that one context has before anything is mapped.
pub(super) const MOST_ROOTS: usize = 4;

/// Two trees of tables for the processor, for the Guest's two modes.
pub(super) struct Context<T: Table> {
    /// The number of vCPUs on it. The tables at the top stay where they are as long as it is not 0.
    pub(super) holders: usize,
    /// The last flush of everything that it has seen.
    pub(super) flushed: u64,
    /// Level 4: the lower half, for user mode.
    user: T::Owned,
    /// Level 4: links to the tables of `user`, or splits; with four levels also links to the upper
    /// half.
    kernel: T::Owned,
    /// Level 5, the kernel's and the user's, on a Host that has it.
    top: Option<[T::Owned; 2]>,
}

impl<T: Table> Context<T> {
    /// An empty one, that needs no flush which was before `flushed`.
    pub(super) fn new(
        config: &Config,
        upper: Hpa,
        flushed: u64,
        stock: &mut Stock<T>,
    ) -> Result<Self, Refused> {
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
            flushed,
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

    /// Links to what `upper` has in entry `i`; says whether that is new.
    pub(super) fn link_upper(&mut self, upper: &T, i: usize, slot: usize) -> bool {
        // With five levels all of `upper` hangs at the top. The switcher's slot stays what it is.
        self.top.is_none() && i != slot && put(&mut *self.kernel, i, link(upper, i))
    }

    /// Links to all that `upper` has.
    pub(super) fn link_all_upper(&mut self, upper: &T, slot: usize) {
        for i in used(upper) {
            self.link_upper(upper, i, slot);
        }
    }

    /// Links to what the tables of this half have in entry `i`; but to nothing where there is a split.
    fn link(&mut self, upper: &T, i: usize, of: Half, slot: usize) {
        if i >= 256 {
            self.link_upper(upper, i, slot);
        } else if of == Half::User && self.kernel.child(i).is_none() {
            put(&mut *self.kernel, i, link(&*self.user, i) | NX);
        }
    }

    /// Has the kernel root tables of its own for the top-level entry of `gva`, which is in the lower half?
    pub(super) fn is_split(&mut self, gva: Gva) -> bool {
        self.kernel.child(gva.index(4)).is_some()
    }

    /// The tables for the translation `t` of `gva`, for `access`: those of which half.
    fn half_for(&mut self, gva: Gva, t: &Translation, access: Access) -> Half {
        let split = |context: &mut Self| context.is_split(gva);
        // The first page for the kernel alone splits: the link to the shared tables goes.
        if half(gva) == Half::Kernel || !t.user || (!access.user && split(self)) {
            Half::Kernel
        } else {
            Half::User
        }
    }

    /// The table of level 4 above `gva` that has the tables of this half.
    fn level4<'a>(&'a mut self, upper: &'a mut T, gva: Gva, of: Half) -> &'a mut T {
        match (half(gva), of) {
            (Half::Kernel, _) => upper,
            (_, Half::User) => &mut self.user,
            (_, Half::Kernel) => &mut self.kernel,
        }
    }

    /// Makes the table of level 1 where `t`, the translation of `gva`, belongs for `access`, and has `fill` put
    /// it there; in which half that is, it is told. If the table has slept, what was in it is true again before
    /// that; and if all below the entry of level 4 has slept, what was in use of it is revived.
    ///
    /// Returns what `fill` does, and how many entries were made true besides.
    pub(super) fn fill<G: Guest, R>(
        &mut self,
        upper: &mut T,
        (gva, t, access): (Gva, &Translation, Access),
        slot: usize,
        stock: &mut Stock<T>,
        guest: &G,
        fill: impl FnOnce(&mut T, Half) -> R,
    ) -> Result<(R, u64), Refused> {
        let i = gva.index(4);
        let of = self.half_for(gva, t, access);
        let mut refresh = Refresh::new(guest, of);
        let level4 = self.level4(upper, gva, of);
        let slept = level4.get(i) & (OWNED | P) == OWNED;
        let region = t.region(gva);
        let table = make_leaf_table(level4, gva, t.size, stock, |table| {
            refresh.table(table, &region, Gva::new(gva.get() & !REGION));
        })?;
        let result = fill(table, of);
        self.link(upper, i, of, slot);
        if slept {
            if let Some(table) = self.level4(upper, gva, of).child(i) {
                let base = Gva::new(gva.get() & !(SLOT - 1));
                refresh.revive(table, 3, base, &mut stock.retired);
            }
        }
        Ok((result, refresh.kept))
    }

    /// Revives what was in use of the tables that sleep, the shared ones and the upper half's; says how many pages
    /// that were.
    pub(super) fn revive<G: Guest>(
        &mut self,
        upper: &mut T,
        slot: usize,
        guest: &G,
        stock: &mut Stock<T>,
    ) -> u64 {
        let mut kept = 0;
        for of in [Half::User, Half::Kernel] {
            let mut refresh = Refresh::new(guest, of);
            let level4 = match of {
                Half::User => &mut *self.user,
                Half::Kernel => &mut *upper,
            };
            for i in used(level4) {
                let level4 = match of {
                    Half::User => &mut *self.user,
                    Half::Kernel => &mut *upper,
                };
                if refresh.is_done() {
                    break;
                }
                if level4.get(i) & (OWNED | P) != OWNED {
                    continue;
                }
                refresh.wake(level4, i, TABLE, &mut stock.retired);
                let base = Gva::new(i as u64 * SLOT).canonicalize();
                if let Some(table) = level4.child(i) {
                    refresh.revive(table, 3, base, &mut stock.retired);
                }
                self.link(upper, i, of, slot);
            }
            kept += refresh.kept;
        }
        kept
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

    /// Has the lower half sleep; says whether there was any. What is the kernel's alone is dropped.
    pub(super) fn put_lower_to_sleep(&mut self, to: &mut T::List) -> bool {
        let kernel = clear(&mut *self.kernel, 0..256, to);
        put_to_sleep(&mut *self.user, 0..256, to) | kernel
    }

    /// Has the lower half sleep, and loses the links to the upper half: for the flush of everything that is
    /// `flushed`.
    pub(super) fn forget(&mut self, flushed: u64, slot: usize, to: &mut T::List) {
        self.flushed = flushed;
        self.put_lower_to_sleep(to);
        self.unlink_upper(slot, to);
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
