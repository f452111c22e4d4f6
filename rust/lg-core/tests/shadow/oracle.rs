// SPDX-License-Identifier: GPL-2.0

//! A Guest with page tables of its own, and all that a TLB could hold of them.
//!
//! The oracle knows every translation that the Guest's tables have had since it last flushed the
//! page: a processor may have cached any of them at that moment, and may have kept it (SDM, "Details
//! of TLB Use"). What the shadow translates has to be one of these.

use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{TableMemory, A, ADDR, D, NX, P, PS, U, W};
use std::cell::Cell;
use std::collections::BTreeMap;

/// Tables of each level, from 4 down; the first are the roots.
pub(crate) const TABLES: [usize; 4] = [6, 6, 8, 12];
/// The indices that are used, from level 4 down: of the lower half and of the upper, next to each
/// other, in one group of neighbours and in two, at both ends. Miri is slow, and gets some of them.
pub(crate) const INDICES: [&[u64]; 4] = if cfg!(miri) {
    [&[0, 256], &[0], &[511], &[0, 1, 16]]
} else {
    [&[0, 255, 256, 511], &[0, 3], &[0, 511], &[0, 1, 15, 16]]
};

/// All addresses that the Guest uses.
pub(crate) fn pages() -> Vec<Gva> {
    let mut pages = vec![0];
    for indices in INDICES {
        pages = pages
            .iter()
            .flat_map(|page| indices.iter().map(move |i| (page << 9) | i))
            .collect();
    }
    pages
        .into_iter()
        .map(|page: u64| Gva::new(page << 12).canonicalize())
        .collect()
}

/// The Guest's tables, from GPA 0 up.
pub(crate) struct Ram(Vec<Cell<u64>>);

impl Ram {
    pub(crate) fn new() -> Self {
        Self(vec![Cell::new(0); TABLES.iter().sum::<usize>() * 512])
    }

    /// Table `n` of the level whose place in [`TABLES`] this is.
    pub(crate) fn table(place: usize, n: usize) -> Gpa {
        Gpa::new((TABLES[..place].iter().sum::<usize>() + n) as u64 * 4096)
    }

    pub(crate) fn write(&self, at: Gpa, entry: u64) {
        self.0[at.get() as usize / 8].set(entry);
    }

    fn read(&self, at: u64) -> u64 {
        self.0[at as usize / 8].get()
    }

    /// What the tables at `root` say about `gva` now, if all entries are marked as accessed: a
    /// processor marks them before it caches the translation.
    pub(crate) fn translate(&self, root: Gpa, gva: Gva) -> Option<Known> {
        let mut above = Above {
            table: root.get(),
            writable: true,
            user: !gva.is_upper(),
            executable: true,
        };
        for level in (1..=4u8).rev() {
            let entry = self.read(above.table + gva.index(level) as u64 * 8);
            if entry & (P | A) != P | A {
                return None;
            }
            if level == 1 || (level < 4 && entry & PS != 0) {
                return Some(above.known(entry, gva, level));
            }
            above = above.and(entry);
        }
        None
    }

    /// The way to the table of level 1 for `gva`, if that is where it leads.
    pub(crate) fn way(&self, root: Gpa, gva: Gva) -> Option<Above> {
        let mut above = Above {
            table: root.get(),
            writable: true,
            user: !gva.is_upper(),
            executable: true,
        };
        for level in (2..=4u8).rev() {
            let entry = self.read(above.table + gva.index(level) as u64 * 8);
            if entry & P == 0 || (level < 4 && entry & PS != 0) {
                return None;
            }
            above = above.and(entry);
        }
        Some(above)
    }
}

impl TableMemory for Ram {
    fn read_pte(&self, at: Gpa) -> Option<u64> {
        Some(self.0.get(at.get() as usize / 8)?.get())
    }

    fn update_pte(&self, at: Gpa, old: u64, new: u64) -> bool {
        let word = &self.0[at.get() as usize / 8];
        let unchanged = word.get() == old;
        if unchanged {
            word.set(new);
        }
        unchanged
    }
}

/// The levels above a table that a processor may remember (SDM, "Paging-Structure Caches").
#[derive(Clone, Copy)]
pub(crate) struct Above {
    table: u64,
    writable: bool,
    user: bool,
    executable: bool,
}

impl Above {
    fn and(self, entry: u64) -> Self {
        Self {
            table: entry & ADDR,
            writable: self.writable && entry & W != 0,
            user: self.user && entry & U != 0,
            executable: self.executable && entry & NX == 0,
        }
    }

    fn known(self, entry: u64, gva: Gva, level: u8) -> Known {
        let all = self.and(entry);
        let within = (1u64 << (12 + 9 * (u32::from(level) - 1))) - 1;
        Known {
            gpa: (all.table & !within) | (gva.page().get() & within),
            writable: all.writable && entry & D != 0,
            user: all.user,
            executable: all.executable,
            within,
        }
    }
}

/// A translation that a TLB could hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Known {
    pub(crate) gpa: u64,
    /// And dirty: before that, a write walks once more.
    pub(crate) writable: bool,
    pub(crate) user: bool,
    pub(crate) executable: bool,
    /// The bits of an address within the page that the Guest has mapped.
    within: u64,
}

impl Known {
    /// Says whether a processor that has this one may let the mode do as much.
    pub(crate) fn allows(&self, gpa: u64, writable: bool, executable: bool, user: bool) -> bool {
        self.gpa == gpa
            && (self.user || !user)
            && (self.writable || !writable)
            // SMEP.
            && ((self.executable && (user || !self.user)) || !executable)
    }
}

/// A TLB could hold all of this: of the lower half for each root, of the upper half, which is
/// global, once.
#[derive(Default)]
pub(crate) struct Oracle(BTreeMap<(Option<u64>, u64), Vec<Known>>);

impl Oracle {
    fn key(root: Gpa, gva: Gva) -> (Option<u64>, u64) {
        let root = (!gva.is_upper()).then_some(root.get());
        (root, gva.page().get())
    }

    pub(crate) fn add(&mut self, root: Gpa, gva: Gva, known: Known) {
        let all = self.0.entry(Self::key(root, gva)).or_default();
        if !all.contains(&known) {
            all.push(known);
        }
    }

    /// A processor is on `root`, and might walk to any page.
    pub(crate) fn look(&mut self, ram: &Ram, root: Gpa, pages: &[Gva]) {
        for &gva in pages {
            if let Some(known) = ram.translate(root, gva) {
                self.add(root, gva, known);
            }
        }
    }

    /// The table of level 1 that `above` leads to is read for the neighbours of `gva`, some time
    /// after `above` was.
    pub(crate) fn look_beside(
        &mut self,
        ram: &Ram,
        root: Gpa,
        gva: Gva,
        above: Above,
        pages: &[Gva],
    ) {
        for &other in pages.iter().filter(|o| o.get() >> 16 == gva.get() >> 16) {
            let entry = ram.read(above.table + other.index(1) as u64 * 8);
            if other != gva && entry & (P | A) == P | A {
                self.add(root, other, above.known(entry, other, 1));
            }
        }
    }

    pub(crate) fn known(&self, root: Gpa, gva: Gva) -> &[Known] {
        self.0.get(&Self::key(root, gva)).map_or(&[], Vec::as_slice)
    }

    /// INVLPG of `gva` on `root`: also of a large page which the address is in.
    pub(crate) fn flush_page(&mut self, root: Gpa, gva: Gva) {
        let of = Self::key(root, gva).0;
        for (&(root, page), all) in &mut self.0 {
            if root == of {
                all.retain(|known| page & !known.within != gva.get() & !known.within);
            }
        }
    }

    pub(crate) fn flush_lower(&mut self, root: Gpa) {
        self.0.retain(|&(of, _), _| of != Some(root.get()));
    }

    pub(crate) fn flush_all(&mut self) {
        self.0.clear();
    }
}
