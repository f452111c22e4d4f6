// SPDX-License-Identifier: GPL-2.0

//! Tables that sleep: what a flush of a whole half leaves of it.
//!
//! A TLB that is flushed is empty, and a processor fills it again in no time. The shadow would take a fault for
//! every few pages, most of which have not changed at all: Linux flushes all of a process when it unmaps some
//! dozen pages, or when it forks; and without PCIDs, whenever it switches to one. So the tables are put to
//! *sleep*. The entry at the top that owns them is not present any more, and the processor does not get there.
//! What is in them counts for nothing, but as a note of what was in use.
//!
//! With the next fault the tables on the way to its page *wake*. What is below these still sleeps, so that takes a
//! step for each of their entries. A table of level 1 is *refreshed* when it wakes: each of its entries becomes
//! what the Guest's tables say now, or nothing where they say nothing, or where the Guest has not seen an access
//! since it last looked (A). That is as if it had been dropped by the flush, and filled now as a neighbour of the
//! page that faulted. No entry is kept because it was there.
//!
//! A flush at once *revives* what was in use of that half, as far as its steps last: the tables and pages that the
//! processor has used since the flush before, which it has noted in the entries that lead to them (A). What is
//! revived gets an entry without that bit, so that what was revived in vain is not the next time. If there was
//! no time for that, the first fault does it.
//!
//! A table that is left asleep time after time is dropped.

use super::super::addr::Gva;
use super::super::paging::{PageSize, Region, A, ADDR, P};
use super::entry::{flags, set_flags, used};
use super::leaf::Half;
use super::table::{List, Table, LARGE, LEFT_ASLEEP, ONCE, OWNED, TABLE};
use core::ops::Range;

/// The most steps that reviving one half takes, or what is below one entry of level 4, so that the Host's
/// interrupts are not off for long: each is an entry of the shadow's looked at, some dozen instructions.
const STEPS: usize = 2048;
/// As many steps are taken for an entry of level 1, whose page is looked up,
const STEPS_OF_LEAF: usize = 8;
/// for a table of it, whose entry is looked up in the Guest's tables,
const STEPS_OF_TABLE: usize = 32;
/// and for a table that wakes, besides one for each of its entries.
const STEPS_OF_WAKING: usize = 16;

/// Puts the tables that a range of entries owns to sleep, and takes other entries out; says whether any was
/// present. Takes some instructions for each entry that is used. What was left asleep too often goes `to` be
/// freed: no processor has been there since the flush before.
pub(super) fn put_to_sleep<T: Table>(table: &mut T, range: Range<usize>, to: &mut T::List) -> bool {
    let mut any = false;
    for i in used(table).filter(|i| range.contains(i)) {
        let entry = table.get(i);
        any |= entry & P != 0;
        let flags = entry & !(ADDR | OWNED);
        if entry & OWNED == 0 {
            table.set(i, 0);
        } else if entry & P != 0 {
            set_flags(table, i, flags & !(P | LEFT_ASLEEP));
        } else if entry & LEFT_ASLEEP != LEFT_ASLEEP {
            set_flags(table, i, flags + ONCE);
        } else if let Some(child) = table.detach(i) {
            to.push(child);
        }
    }
    any
}

/// Wakes the table that entry `i` owns, while all below it sleeps; a table of level 1 is empty then.
pub(super) fn wake<T: Table>(table: &mut T, i: usize, flags: u64, to: &mut T::List) {
    if let Some(mut child) = table.detach(i) {
        put_to_sleep(&mut *child, 0..512, to);
        table.attach(i, child, flags);
    }
}

/// What there is to know of the Guest's memory, in its vCPU's hands.
pub(super) trait Guest {
    /// The region of `gva`, which the vCPU's processor may know of.
    fn region(&self, gva: Gva) -> Option<Region>;

    /// What makes the entries of the region in a table of this half: those for which the Guest's tables have one
    /// that it has used, and whose page of the Host's is at hand.
    fn entries<'a>(
        &'a self,
        region: &'a Region,
        half: Half,
    ) -> Option<impl Fn(Gva) -> Option<u64> + 'a>;
}

/// What makes the entries of one half true again.
pub(super) struct Refresh<'a, G> {
    guest: &'a G,
    pub(super) half: Half,
    steps: usize,
    /// Entries that were made true.
    pub(super) kept: u64,
}

impl<'a, G: Guest> Refresh<'a, G> {
    /// For one fault.
    pub(super) fn new(guest: &'a G, half: Half) -> Self {
        Self {
            guest,
            half,
            steps: STEPS,
            kept: 0,
        }
    }

    /// Says whether the steps are used up.
    pub(super) fn is_done(&self) -> bool {
        self.steps == 0
    }

    /// As [`wake`] does, for as many steps.
    pub(super) fn wake<T: Table>(&mut self, table: &mut T, i: usize, flags: u64, to: &mut T::List) {
        if let Some(child) = table.child(i) {
            self.take_steps(STEPS_OF_WAKING + used(child).count());
        }
        wake(table, i, flags, to);
    }

    fn take_steps(&mut self, count: usize) {
        self.steps = self.steps.saturating_sub(count);
    }

    /// Makes the entries of a table of level 1, which covers `region` from `base` on, true again; says whether
    /// there are any.
    pub(super) fn table<T: Table>(&mut self, table: &mut T, region: &Region, base: Gva) -> bool {
        let guest = self.guest;
        let entries = guest.entries(region, self.half);
        let mut kept = 0;
        for i in used(table) {
            let old = table.get(i);
            if old == 0 {
                continue;
            }
            self.take_steps(STEPS_OF_LEAF);
            let gva = Gva::new(base.get() | ((i as u64) << 12));
            let new = match &entries {
                Some(entry) if old & A != 0 => entry(gva).map_or(0, |entry| entry & !A),
                _ => 0,
            };
            table.set(i, new);
            kept += u64::from(new != 0);
        }
        self.kept += kept;
        kept != 0
    }

    /// Revives what was in use below the entries of `table`, which is awake, of level 3 or 2, and covers what
    /// begins at `base`; says whether a page of 1 GiB is among it.
    pub(super) fn revive<T: Table>(
        &mut self,
        table: &mut T,
        level: u8,
        base: Gva,
        to: &mut T::List,
    ) -> bool {
        let mut huge = false;
        for i in used(table) {
            if self.is_done() {
                break;
            }
            self.take_steps(1);
            let entry = table.get(i);
            if entry & (OWNED | A) != OWNED | A {
                continue;
            }
            let at = Gva::new(base.get() | ((i as u64) << (3 + 9 * u32::from(level))));
            if level == 2 {
                huge |= entry & P == 0 && self.revive_leaves(table, i, at);
                continue;
            }
            if entry & P == 0 {
                self.wake(table, i, TABLE & !A, to);
            }
            let Some(child) = table.child(i) else {
                continue;
            };
            if self.revive(child, level - 1, at, to) {
                let entry = table.get(i);
                set_flags(table, i, (entry & !(ADDR | OWNED)) | LARGE);
            }
        }
        huge
    }

    /// Revives the table of level 1 that entry `i` owns, if anything in it is true; says whether that is of a page
    /// of 1 GiB.
    fn revive_leaves<T: Table>(&mut self, table: &mut T, i: usize, at: Gva) -> bool {
        self.take_steps(STEPS_OF_TABLE);
        let Some(mut child) = table.detach(i) else {
            return false;
        };
        let region = self.guest.region(at);
        let region = region.filter(|region| self.table(&mut *child, region, at));
        // What is not true any more stays asleep.
        let new = region.map_or(0, |region| flags(2, region.size()) & !A);
        table.attach(i, child, new);
        region.is_some_and(|region| region.size() == PageSize::Size1G)
    }
}
