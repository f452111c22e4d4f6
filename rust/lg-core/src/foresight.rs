// SPDX-License-Identifier: GPL-2.0

//! Page faults of Guest user mode that need no Host: those of which is known beforehand that they are the Guest's
//! own.
//!
//! A program touches its pages for the first time one beside the other. So when the Host gives the Guest a page
//! fault, it looks at the entries around: a page that the Guest's tables do not have will fault, and a page that
//! they have read-only will fault when written, and neither is for the shadow to mend. These go into a *note*. By
//! that the switcher gives such a fault to the Guest's kernel itself, once for each page.
//!
//! A note is as old as the fault it was taken at. The Guest may have mapped the page meanwhile, and then the shadow
//! is what lacks it. So only a Guest that has said it takes such *spurious* faults gets any by a note; the page is
//! crossed out, and when the Guest tries again the fault is the Host's.

use super::addr::{Gpa, Gva, PAGE_SHIFT};
use super::paging::{entry_at, error, Pte, TableMemory, P, U, W};
use super::shadow::Flush;

/// log2 of the number of pages in a block.
const BLOCK_PAGES_SHIFT: u32 = 4;
/// The number of pages in a block: 16, as many as the shadow looks at around one that faulted.
pub const BLOCK_PAGES: u64 = 1 << BLOCK_PAGES_SHIFT;
/// Bits of an address that choose a byte of a block.
pub const BLOCK_SHIFT: u32 = PAGE_SHIFT + BLOCK_PAGES_SHIFT;
/// The bits of [`Note::pages`] for pages that are not present.
const ALL_ABSENT: u32 = (1 << BLOCK_PAGES) - 1;
/// How far above them those for pages are that are present, but not writable.
pub const READ_ONLY_SHIFT: u32 = BLOCK_PAGES as u32;

/// The error code of an access to a page that is not present; of a write, with [`error::W`].
pub const ABSENT: u32 = error::U;
/// That of a write to a page that is read-only.
pub const READ_ONLY: u32 = error::P | error::W | error::U;

/// What is known of the pages of one block, in the lower half and under the current root. The switcher reads it, and
/// crosses out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Note {
    /// The addresses of the block, shifted right by [`BLOCK_SHIFT`].
    pub block: u64,
    /// Bit N: page N of the block is not present. Bit [`READ_ONLY_SHIFT`] + N: it is, and no program may write to it.
    pub pages: u32,
}

impl Note {
    /// What the tables at `root` say of the pages around `gva`, which is of the lower half. Reads each entry once, and
    /// changes none. Knows nothing of pages whose tables cannot be read, or have reserved bits.
    pub fn of<M: TableMemory>(mem: &M, root: Gpa, gva: Gva) -> Self {
        let block = gva.get() >> BLOCK_SHIFT;
        let pages = pages(mem, root, Gva::new(block << BLOCK_SHIFT)).unwrap_or(0);
        Self { block, pages }
    }

    /// Whether the Guest is to have this fault of user mode without the Host: `code` is the processor's. If so, the page
    /// is crossed out. The switcher does the same in assembly, which `tests/eret` compares with this.
    pub fn take(&mut self, code: u64, gva: Gva) -> bool {
        let read_only = code == u64::from(READ_ONLY);
        if gva.get() >> BLOCK_SHIFT != self.block
            || !read_only && code & !u64::from(error::W) != u64::from(ABSENT)
        {
            return false;
        }
        let bit = page(gva) << if read_only { READ_ONLY_SHIFT } else { 0 };
        let noted = self.pages & bit != 0;
        self.pages &= !bit;
        noted
    }

    /// The Guest has been given a fault of this page, or is about to change it: the next one is the Host's.
    pub fn cross_out(&mut self, gva: Gva) {
        if gva.get() >> BLOCK_SHIFT == self.block {
            self.forget(page(gva));
        }
    }

    /// What the Guest flushes it has changed, or will.
    pub fn flush(&mut self, what: Flush) {
        match what {
            Flush::Page(gva) => self.cross_out(gva),
            Flush::Pages(first, count) => {
                let base = self.block << BLOCK_PAGES_SHIFT;
                let first = first.get() >> PAGE_SHIFT;
                let within = |page: u64| page.saturating_sub(base).min(BLOCK_PAGES);
                let (from, to) = (within(first), within(first.saturating_add(count as u64)));
                self.forget((1u32 << to).wrapping_sub(1 << from));
            }
            Flush::Lower | Flush::All => *self = Self::default(),
        }
    }

    /// Crosses out these pages, bit by bit.
    fn forget(&mut self, pages: u32) {
        self.pages &= !(pages | (pages << READ_ONLY_SHIFT));
    }
}

/// The bit of the page in its block.
const fn page(gva: Gva) -> u32 {
    1 << (gva.index(1) as u64 % BLOCK_PAGES)
}

/// [`Note::pages`] of the block that begins at `gva`.
fn pages<M: TableMemory>(mem: &M, root: Gpa, gva: Gva) -> Option<u32> {
    let mut table = root;
    let mut above = W | U;
    for level in [4, 3, 2] {
        let pte = Pte::new(mem.read_pte(entry_at(table, gva, level))?);
        if !pte.has(P) {
            return Some(ALL_ABSENT);
        }
        if pte.has_reserved(level) {
            return None;
        }
        above &= pte.get();
        if pte.maps(level).is_some() {
            return Some(if above == W | U {
                0
            } else {
                ALL_ABSENT << READ_ONLY_SHIFT
            });
        }
        table = pte.address();
    }
    let entries = mem.table(table)?;
    let first = gva.index(1);
    let mut pages = 0;
    for n in 0..BLOCK_PAGES as u32 {
        let pte = Pte::new(entries(first + n as usize));
        if !pte.has(P) {
            pages |= 1 << n;
        } else if pte.get() & above != W | U && !pte.has_reserved(1) {
            pages |= 1 << (READ_ONLY_SHIFT + n);
        }
    }
    Some(pages)
}
