// SPDX-License-Identifier: GPL-2.0
//! The kernel's page tables: walking them, and what an update stores.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bits of an entry.
pub mod bit {
    #![allow(missing_docs)]
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
}

/// The frame's address in an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The index into a table of `level` (1: of pages, 4: the root) by which `gva` is found.
pub const fn index(gva: u64, level: u32) -> u64 {
    (gva >> (12 + 9 * (level - 1))) & 511
}

/// Says whether `gva` can be an address.
pub const fn is_canonical(gva: u64) -> bool {
    ((gva << 16) as i64 >> 16) as u64 == gva
}

/// What hypercall UPDATE_VA_MAPPING stores for `value`.
///
/// A kernel makes each page table read-only, by this hypercall alone, for Xen insists on it; and then still writes to many
/// by plain stores, for which Xen has an emulator. Here nobody insists: a page of the kernel that shall be read-only stays
/// writable. Text and constants lose nothing by it, for they are protected by MMU_UPDATE.
pub const fn with_writable_tables(value: u64) -> u64 {
    if value & (bit::PRESENT | bit::USER) == bit::PRESENT {
        value | bit::WRITE
    } else {
        value
    }
}

/// Says whether a translation that was made of `old` may be used on when the entry is `new`: that allows all that `old`
/// did. (Accessed and dirty bits do not matter: who made the translation has set them.)
pub const fn still_right(old: u64, new: u64) -> bool {
    const IGNORED: u64 = bit::ACCESSED | bit::DIRTY;
    if old & bit::PRESENT == 0 {
        return true;
    }
    (old | bit::WRITE) & !IGNORED == (new | bit::WRITE) & !IGNORED
        && (new & bit::WRITE != 0 || old & bit::WRITE == 0)
}

/// `new` with the accessed and dirty bits of `old`, too.
pub const fn preserve_accessed_dirty(old: u64, new: u64) -> u64 {
    new | (old & (bit::ACCESSED | bit::DIRTY))
}

/// Frames of roots that were loaded, as far as there is room. A kernel says of each table that it goes away, and lg wants to
/// hear of roots.
pub struct Roots([AtomicU64; Self::ROOM]);

impl Roots {
    const ROOM: usize = 256;

    /// None.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Self::ROOM])
    }

    fn place(&self, frame: u64) -> &AtomicU64 {
        &self.0[frame as usize % Self::ROOM]
    }

    /// The root at `frame`, which is not 0, was loaded. Another one may be forgotten.
    pub fn loaded(&self, frame: u64) {
        self.place(frame).store(frame, Relaxed);
    }

    /// The table at `frame` goes away: was it a root? It is forgotten.
    pub fn take(&self, frame: u64) -> bool {
        let place = self.place(frame);
        frame != 0 && place.load(Relaxed) == frame && {
            place.store(0, Relaxed);
            true
        }
    }
}

impl Default for Roots {
    fn default() -> Self {
        Self::new()
    }
}
