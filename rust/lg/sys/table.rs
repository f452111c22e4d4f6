// SPDX-License-Identifier: GPL-2.0

//! Page tables that the CPU walks: the shadow's, and those of the switcher's slot.
//!
//! A table owns the tables below which it made itself ([`OWNED`]); other entries are leaves, or
//! links to a table that somebody else owns. What is taken out of a table becomes [`Dropped`].

use super::page::{
    direct_map,
    owner_words,
    HostPage,
    Wait, //
};
use crate::lg_core::addr::Hpa;
use core::{
    mem::ManuallyDrop,
    ops::{
        Deref,
        DerefMut,
        Range, //
    },
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
};
use kernel::prelude::*;

/// Software bit of an entry: the table it points to belongs to this one.
const OWNED: u64 = 1 << 52;
/// The address bits of an entry.
const ADDR: u64 = 0x000f_ffff_ffff_f000;

/// One page-table page.
///
/// # Invariants
///
/// * It is the whole of a page that a [`TableBox`] owns, or owned until it was leaked.
/// * An entry with [`OWNED`] holds the physical address of a [`Table`] that was leaked from a
///   [`TableBox`] and that no other entry owns.
/// * Entry `i` is 0 unless bit `i / 8` of the page's first owner word is set: most tables are nearly
///   empty, and flushes are frequent, so emptying one must not take 512 steps.
/// * The second owner word is for the list of [`Dropped`] that the table is in, if it is.
#[repr(C, align(4096))]
pub(crate) struct Table([AtomicU64; 512]);

impl Table {
    /// Entry `i`, modulo 512.
    pub(crate) fn get(&self, i: usize) -> u64 {
        self.0[i % 512].load(Ordering::Relaxed)
    }

    fn used(&self) -> &AtomicU64 {
        // SAFETY: By the type invariant.
        unsafe { owner_words(core::ptr::from_ref(self).cast()) }.private
    }

    fn next(&self) -> &AtomicU64 {
        // SAFETY: By the type invariant.
        unsafe { owner_words(core::ptr::from_ref(self).cast()) }.index
    }

    fn store(&mut self, i: usize, entry: u64) {
        let i = i % 512;
        if entry != 0 {
            // INVARIANT: The bit is set before the entry is.
            let used = self.used();
            used.store(
                used.load(Ordering::Relaxed) | 1 << (i / 8),
                Ordering::Relaxed,
            );
        }
        self.0[i].store(entry, Ordering::Relaxed);
    }

    /// An entry for another table that leads where entry `i` does, without owning it.
    pub(crate) fn link(&self, i: usize) -> u64 {
        self.get(i) & !OWNED
    }

    /// Makes entry `i`, which owns nothing, a leaf, a link, or nothing (0).
    pub(crate) fn set(&mut self, i: usize, entry: u64) {
        if self.get(i) & OWNED != 0 {
            drop(self.replace(i, 0));
        }
        self.store(i, entry & !OWNED);
    }

    /// The same for any entry. What it owned is returned.
    pub(crate) fn replace(&mut self, i: usize, entry: u64) -> Dropped {
        let owned = self.take_child(i);
        self.store(i, entry & !OWNED);
        owned.map_or(Dropped::NOTHING, Dropped::from)
    }

    /// The table below entry `i`, if this one owns it.
    pub(crate) fn child(&mut self, i: usize) -> Option<&mut Table> {
        let entry = self.get(i);
        if entry & OWNED == 0 {
            return None;
        }
        // SAFETY: By the type invariant this is a table that we own, and `&mut self` makes us its
        // only user.
        Some(unsafe { &mut *direct_map(Hpa::new(entry & ADDR)).cast::<Table>() })
    }

    /// The table below entry `i`, made if there is none, and then counted in `pages`. The entry gets
    /// the permission and software bits `flags` in any case.
    pub(crate) fn make_child(
        &mut self,
        i: usize,
        flags: u64,
        wait: Wait,
        pages: &mut usize,
    ) -> Result<&mut Table> {
        if self.get(i) & OWNED == 0 {
            let child = TableBox::new(wait)?;
            let entry = child.hpa().get() | flags | OWNED;
            // The page lives on through the entry.
            core::mem::forget(child);
            // INVARIANT: Just leaked, and nobody else has its address.
            self.store(i, entry);
            *pages += 1;
        } else if self.get(i) & flags != flags {
            // INVARIANT: It leads where it did.
            self.store(i, self.get(i) | flags);
        }
        // It is there: either it was, or it was just stored.
        self.child(i).ok_or(EINVAL)
    }

    /// The table below entry `i`, if this one owned it until now.
    fn take_child(&mut self, i: usize) -> Option<TableBox> {
        let entry = self.get(i);
        if entry & OWNED == 0 {
            return None;
        }
        self.0[i % 512].store(0, Ordering::Relaxed);
        // SAFETY: By the type invariant the entry owned a leaked table; the entry is gone, so it is
        // ours.
        Some(unsafe { TableBox::from_hpa(Hpa::new(entry & ADDR)) })
    }

    /// Clears a range of entries; returns what they owned. Interrupts may be off: it takes some instructions for each
    /// entry that is used, and none for what is below it.
    pub(crate) fn clear(&mut self, range: Range<usize>) -> Dropped {
        let mut dropped = Dropped::NOTHING;
        let mut left = self.used().load(Ordering::Relaxed);
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            let mut empty = true;
            for i in group * 8..group * 8 + 8 {
                if self.get(i) == 0 {
                    continue;
                }
                if !range.contains(&i) {
                    empty = false;
                    continue;
                }
                if let Some(child) = self.take_child(i) {
                    dropped.push(child);
                } else {
                    self.0[i].store(0, Ordering::Relaxed);
                }
            }
            if empty {
                let used = self.used().load(Ordering::Relaxed);
                self.used().store(used & !(1 << group), Ordering::Relaxed);
            }
        }
        dropped
    }
}

/// Tables which nothing leads to any more, each with all that is below it, until their pages are freed.
///
/// Taking a table out takes a moment whatever hangs below it. Freeing takes its time for each page, so it is
/// put off to where interrupts are on, and done in steps ([`free`](Self::free)); dropping the object frees
/// all of it at once.
///
/// # When a page may be used again
///
/// When no CPU can know the way to it. Tables are taken out in the Host's world, and while no CPU is on a root
/// of their VM: its one vCPU is out, or in the hands of who does this. What a CPU remembers of those roots has
/// either been dropped when it loaded the Host's CR3 (without PCIDs), or is tagged with PCID 0. Nobody but a
/// guest loads that, and never with bit 63, so it is dropped before it is used again; and nothing in a shadow is
/// global. So what is in here no CPU can reach, however soon it is freed.
///
/// With several vCPUs this is where to wait until each has left the guest.
#[must_use = "if it is dropped, its pages are freed on the spot; with interrupts off that is too long"]
pub(crate) struct Dropped {
    /// The first and the last of a list, of which each holds the next one's address; 0 if there is none.
    first: u64,
    last: u64,
}

impl Dropped {
    pub(crate) const NOTHING: Self = Self { first: 0, last: 0 };

    pub(crate) fn is_empty(&self) -> bool {
        self.first == 0
    }

    fn push(&mut self, table: TableBox) {
        table.next().store(self.first, Ordering::Relaxed);
        let hpa = table.hpa().get();
        // The page lives on in the list.
        core::mem::forget(table);
        if self.first == 0 {
            self.last = hpa;
        }
        self.first = hpa;
    }

    /// Takes what is in `other` as well.
    pub(crate) fn add(&mut self, other: Self) {
        let other = ManuallyDrop::new(other);
        let (first, last) = (other.first, other.last);
        if first == 0 {
            return;
        }
        if self.first == 0 {
            self.last = last;
        } else {
            // SAFETY: The last of a list that we have is a leaked table, which is ours.
            let last = ManuallyDrop::new(unsafe { TableBox::from_hpa(Hpa::new(last)) });
            last.next().store(self.first, Ordering::Relaxed);
        }
        self.first = first;
    }

    fn pop(&mut self) -> Option<TableBox> {
        if self.first == 0 {
            return None;
        }
        // SAFETY: What is in the list was leaked by `push`, and it is taken out here.
        let table = unsafe { TableBox::from_hpa(Hpa::new(self.first)) };
        self.first = table.next().load(Ordering::Relaxed);
        Some(table)
    }

    /// Frees `limit` pages at most; returns how many it were. Takes up to 512 steps for each.
    pub(crate) fn free(&mut self, limit: usize) -> usize {
        let mut freed = 0;
        while freed < limit {
            let Some(mut table) = self.pop() else {
                break;
            };
            table.move_children(self);
            freed += 1;
        }
        freed
    }
}

impl From<TableBox> for Dropped {
    fn from(table: TableBox) -> Self {
        let mut this = Self::NOTHING;
        this.push(table);
        this
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        if !self.is_empty() {
            self.free(usize::MAX);
        }
    }
}

/// A table that nobody else owns.
pub(crate) struct TableBox(HostPage);

impl TableBox {
    /// An empty one.
    pub(crate) fn new(wait: Wait) -> Result<Self> {
        let this = HostPage::new(wait).map(Self)?;
        // INVARIANT: All its entries are 0.
        this.used().store(0, Ordering::Relaxed);
        Ok(this)
    }

    /// # Safety
    ///
    /// `hpa` is that of a leaked `TableBox`, which the caller takes over.
    unsafe fn from_hpa(hpa: Hpa) -> Self {
        // SAFETY: As the caller promises.
        Self(unsafe { HostPage::from_hpa(hpa) })
    }

    /// Adds what it owns to `to`. It has no entries any more then, and is to be freed: what its page holds is left as
    /// it is.
    fn move_children(&mut self, to: &mut Dropped) {
        let mut left = self.used().load(Ordering::Relaxed);
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            for i in group * 8..group * 8 + 8 {
                if let Some(child) = self.take_child(i) {
                    to.push(child);
                }
            }
        }
        self.used().store(0, Ordering::Relaxed);
    }

    /// Its physical address, for CR3 or an entry above.
    pub(crate) fn hpa(&self) -> Hpa {
        self.0.hpa()
    }
}

impl Deref for TableBox {
    type Target = Table;

    fn deref(&self) -> &Table {
        // SAFETY: The page is ours, page aligned, and 512 zeroed words are an empty table.
        unsafe { &*self.0.as_ptr::<Table>() }
    }
}

impl DerefMut for TableBox {
    fn deref_mut(&mut self) -> &mut Table {
        // SAFETY: As above, and `&mut self` makes us the only user.
        unsafe { &mut *self.0.as_ptr::<Table>() }
    }
}

impl Drop for TableBox {
    fn drop(&mut self) {
        let mut below = Dropped::NOTHING;
        self.move_children(&mut below);
        drop(below);
        self.next().store(0, Ordering::Relaxed);
    }
}
