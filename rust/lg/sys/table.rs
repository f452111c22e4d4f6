// SPDX-License-Identifier: GPL-2.0

//! Page tables that the CPU walks: the shadow's, and those of the switcher's slot.
//!
//! A table owns the tables below which it made itself ([`OWNED`]); other entries are leaves, or
//! links to a table that somebody else owns.

use super::page::{
    direct_map,
    owner_word,
    HostPage,
    Wait, //
};
use crate::lg_core::addr::Hpa;
use core::{
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
/// * Entry `i` is 0 unless bit `i / 8` of the page's owner word is set: most tables are nearly
///   empty, and flushes are frequent, so emptying one must not take 512 steps.
#[repr(C, align(4096))]
pub(crate) struct Table([AtomicU64; 512]);

impl Table {
    /// Entry `i`, modulo 512.
    pub(crate) fn get(&self, i: usize) -> u64 {
        self.0[i % 512].load(Ordering::Relaxed)
    }

    fn used(&self) -> &AtomicU64 {
        // SAFETY: By the type invariant.
        unsafe { owner_word(core::ptr::from_ref(self).cast()) }
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

    /// Makes entry `i` a leaf, a link, or nothing (0). What it owned is freed; the number of pages
    /// is returned.
    pub(crate) fn set(&mut self, i: usize, entry: u64) -> usize {
        let freed = self.free_child(i);
        self.store(i, entry & !OWNED);
        freed
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

    /// Frees the table below entry `i` and all below that; returns how many pages that were.
    fn free_child(&mut self, i: usize) -> usize {
        let entry = self.get(i);
        if entry & OWNED == 0 {
            return 0;
        }
        self.store(i, 0);
        // SAFETY: By the type invariant the entry owned a leaked table; the entry is gone, so it is
        // ours.
        let mut child = unsafe { TableBox::from_hpa(Hpa::new(entry & ADDR)) };
        1 + child.clear(0..512)
    }

    /// Clears a range of entries; returns how many pages that freed. At most five levels deep.
    pub(crate) fn clear(&mut self, range: Range<usize>) -> usize {
        let mut freed = 0;
        let mut left = self.used().load(Ordering::Relaxed);
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            let entries = group * 8..group * 8 + 8;
            for i in entries.clone().filter(|i| range.contains(i)) {
                freed += self.set(i, 0);
            }
            if entries.into_iter().all(|i| self.get(i) == 0) {
                let used = self.used().load(Ordering::Relaxed);
                self.used().store(used & !(1 << group), Ordering::Relaxed);
            }
        }
        freed
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
        self.clear(0..512);
        self.used().store(0, Ordering::Relaxed);
    }
}
