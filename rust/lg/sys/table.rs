// SPDX-License-Identifier: GPL-2.0

//! Page tables that the CPU walks: the shadow's, and those of the switcher's slot.
//!
//! A table owns the tables below which were attached to it ([`OWNED`]); other entries are leaves, or
//! links to a table that somebody else owns. What is done with them the shadow decides
//! (`lg-core/shadow`); here is only what keeps each page with one owner.

use super::{
    cpu,
    hole,
    page::{
        direct_map,
        direct_map_to_hpa,
        owner_words,
        HostPage, //
    }, //
};
use crate::lg_core::{
    addr::{
        Gva,
        Hpa, //
    },
    paging::{
        self,
        ADDR,
        P, //
    },
    shadow::{
        self,
        List,
        Root,
        Seat,
        Shadow,
        Table as _,
        MAX_CONTEXTS,
        OWNED, //
    },
    tags::Generations, //
};
use core::{
    mem::ManuallyDrop,
    ops::{
        Deref,
        DerefMut, //
    },
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// An entry that owns the table at `hpa`.
///
/// Where it is not present, its address bits are the complement: a processor that has L1TF takes them for the
/// address of a page, and reads that if it is in the cache. At the complement there is no memory.
fn owner(hpa: Hpa, flags: u64) -> u64 {
    let address = if flags & P != 0 {
        hpa.get()
    } else {
        !hpa.get() & ADDR
    };
    address | (flags & !ADDR) | OWNED
}

/// The address of the table that an entry owns.
fn owned(entry: u64) -> Hpa {
    Hpa::new(if entry & P != 0 { entry } else { !entry } & ADDR)
}

/// One page-table page.
///
/// A CPU may walk it at any time, without a lock. So what an entry leads to is written before the entry, hence
/// `Release`; and an entry that a CPU sets A in meanwhile is one that it may have seen a moment before.
///
/// # Invariants
///
/// * It is the whole of a page that a [`TableBox`] owns, or owned until it was leaked.
/// * An entry with [`OWNED`] holds the physical address ([`owned`]) of a [`Table`] that was leaked from a
///   [`TableBox`] and that no other entry and no list owns.
/// * The second owner word is for the [`Tables`] that the table is in, if it is.
#[repr(C, align(4096))]
pub(crate) struct Table([AtomicU64; 512]);

impl Table {
    /// The first owner word.
    fn group_word(&self) -> &AtomicU64 {
        // SAFETY: By the type invariant.
        unsafe { owner_words(core::ptr::from_ref(self).cast()) }.private
    }

    fn next(&self) -> &AtomicU64 {
        // SAFETY: By the type invariant.
        unsafe { owner_words(core::ptr::from_ref(self).cast()) }.index
    }

    /// The table below entry `i`, made if there is none. The entry gets the permission bits `flags` then.
    pub(crate) fn make_child(&mut self, i: usize, flags: u64) -> Result<&mut Self> {
        if self.get(i) & OWNED == 0 {
            self.attach(i, TableBox::new()?, flags);
        }
        // It is there: either it was, or it was just attached.
        self.child(i).ok_or(EINVAL)
    }
}

/// The way that the processor takes to `gva` from a root of `at`, which is one of `shadow`'s: the entries from the
/// top to the first that is not present or maps a page, and then 0. They come without addresses, which are the
/// Host's; the switcher's slot, whose layout is nobody's business, has none.
pub(crate) fn way(
    shadow: &Shadow<Table, KVec<Seat<Table>>, Arc<Generations<MAX_CONTEXTS>>>,
    at: &Root,
    user: bool,
    gva: Gva,
) -> [u64; 5] {
    let mut way = [0; 5];
    let top = cpu::paging_levels();
    if gva.index(top) == hole::SLOT {
        return way;
    }
    // Nobody changes what is below the root as long as this is borrowed.
    let _ = shadow;
    let mut table = if user { at.user() } else { at.kernel() };
    for (entry, level) in way.iter_mut().zip((1..=top).rev()) {
        // SAFETY: The shadow never drops what is at the top of a root's tables while the root is there, and an
        // entry that is present leads to another of its tables, which is there as long as the entry.
        let found = unsafe { &*direct_map(table).cast::<Table>() }.get(gva.index(level));
        *entry = found & !ADDR;
        if found & paging::P == 0 || found & paging::PS != 0 {
            break;
        }
        table = Hpa::new(found & ADDR);
    }
    way
}

impl shadow::Table for Table {
    type Owned = TableBox;
    type List = Tables;

    fn hpa(&self) -> Hpa {
        direct_map_to_hpa(core::ptr::from_ref(self).cast())
    }

    fn get(&self, i: usize) -> u64 {
        self.0[i % 512].load(Ordering::Relaxed)
    }

    /// A table that the entry owned is leaked.
    fn set(&mut self, i: usize, entry: u64) {
        self.0[i % 512].store(entry & !OWNED, Ordering::Release);
    }

    /// A table that the entry owned is leaked.
    fn attach(&mut self, i: usize, child: TableBox, flags: u64) {
        let entry = owner(child.hpa(), flags);
        // The page lives on through the entry.
        core::mem::forget(child);
        // INVARIANT: Just leaked, and nobody else has its address.
        self.0[i % 512].store(entry, Ordering::Release);
    }

    fn detach(&mut self, i: usize) -> Option<TableBox> {
        let entry = self.get(i);
        if entry & OWNED == 0 {
            return None;
        }
        self.0[i % 512].store(0, Ordering::Relaxed);
        // SAFETY: By the type invariant the entry owned a leaked table; the entry is gone, so it is
        // ours.
        Some(unsafe { TableBox::from_hpa(owned(entry)) })
    }

    fn child(&mut self, i: usize) -> Option<&mut Self> {
        let entry = self.get(i);
        if entry & OWNED == 0 {
            return None;
        }
        // SAFETY: By the type invariant this is a table that we own, and `&mut self` makes us its
        // only user.
        Some(unsafe { &mut *direct_map(owned(entry)).cast::<Self>() })
    }

    fn groups(&self) -> u64 {
        self.group_word().load(Ordering::Relaxed)
    }

    fn set_groups(&mut self, groups: u64) {
        self.group_word().store(groups, Ordering::Relaxed);
    }
}

/// A list of tables, each with all that is below it. Dropping it frees them, at once: with interrupts off that
/// is too long.
///
/// # When a page may be used again
///
/// When no CPU can know the way to it. What a CPU remembers of the roots of a VM is gone when it is back in the
/// Host's world: it has either been dropped when it loaded the Host's CR3 (without PCIDs), or is tagged with PCID 0.
/// Nobody but a Guest loads that, and never with bit 63, so it is dropped before it is used again; and nothing in a
/// shadow is global. So the CPUs that may know the way are those that are in the Guest, and have been since the
/// tables were taken out.
///
/// Tables that were dropped wait for those: it is a grace period (`Shadow::begin_grace`), for which
/// `Crew::visits` says who is in.
///
/// # Invariants
///
/// `first` is 0, or the physical address of a leaked [`Table`] that only we own; its second owner word is the
/// next one's, in the same way, up to `last`, where it is 0.
pub(crate) struct Tables {
    first: u64,
    last: u64,
}

impl List<TableBox> for Tables {
    fn new() -> Self {
        Self { first: 0, last: 0 }
    }

    fn push(&mut self, table: TableBox) {
        table.next().store(self.first, Ordering::Relaxed);
        let hpa = table.hpa().get();
        // The page lives on in the list.
        core::mem::forget(table);
        if self.first == 0 {
            self.last = hpa;
        }
        // INVARIANT: Just leaked, and its word is what `first` was.
        self.first = hpa;
    }

    fn pop(&mut self) -> Option<TableBox> {
        if self.first == 0 {
            return None;
        }
        // SAFETY: By the type invariant, and it is taken out here.
        let table = unsafe { TableBox::from_hpa(Hpa::new(self.first)) };
        // INVARIANT: The next one is the first now.
        self.first = table.next().load(Ordering::Relaxed);
        Some(table)
    }

    fn append(&mut self, other: Self) {
        let other = ManuallyDrop::new(other);
        if other.first == 0 {
            return;
        }
        if self.first == 0 {
            self.last = other.last;
        } else {
            // SAFETY: The last of a list that we have is a leaked table, which is ours.
            let last = ManuallyDrop::new(unsafe { TableBox::from_hpa(Hpa::new(other.last)) });
            // INVARIANT: Where one list ended, the other goes on.
            last.next().store(self.first, Ordering::Relaxed);
        }
        self.first = other.first;
    }

    fn is_empty(&self) -> bool {
        self.first == 0
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        while let Some(table) = self.pop() {
            drop(table);
        }
    }
}

/// A table that nobody else owns.
pub(crate) struct TableBox(HostPage);

impl TableBox {
    /// An empty one. May sleep.
    pub(crate) fn new() -> Result<Self> {
        let mut this = HostPage::new().map(Self)?;
        this.set_groups(0);
        Ok(this)
    }

    /// # Safety
    ///
    /// `hpa` is that of a leaked `TableBox`, which the caller takes over.
    unsafe fn from_hpa(hpa: Hpa) -> Self {
        // SAFETY: As the caller promises.
        Self(unsafe { HostPage::from_hpa(hpa) })
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
    /// What it owns goes too. The shadow has emptied its tables before, a few at a time.
    fn drop(&mut self) {
        for i in 0..512 {
            drop(self.detach(i));
        }
        self.next().store(0, Ordering::Relaxed);
        self.set_groups(0);
    }
}
