// SPDX-License-Identifier: GPL-2.0
//! The page tables with which a Guest starts: 4-level, everything supervisor and writable.
//!
//! Entries are the CPU's (SDM volume 3, 5.5), with A and D set so that nobody needs to write to the
//! tables.

use std::ops::Range;

use crate::memory::PAGE;

/// The size of a large page, in bytes.
const LARGE: u64 = 0x20_0000;
const ENTRIES: usize = 512;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE_PAGE: u64 = 1 << 7;
const NO_CODE: u64 = 1 << 63;
const TABLE: u64 = PRESENT | WRITABLE | ACCESSED;
const LEAF: u64 = TABLE | DIRTY;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The reasons why a mapping was not made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MapError {
    /// Something else is mapped there.
    Conflict,
    /// There is no room for another table.
    Full,
}

/// What may be done with a page in Guest kernel mode. In user mode it does not exist.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Access {
    /// All.
    All,
    /// All but running it.
    Data,
    /// Reading.
    Read,
}

impl Access {
    /// The flags of an entry for the page.
    fn leaf(self) -> u64 {
        match self {
            Self::All => LEAF,
            Self::Data => LEAF | NO_CODE,
            Self::Read => LEAF & !WRITABLE | NO_CODE,
        }
    }
}

/// Page tables which will lie at consecutive pages of RAM, the root first.
#[derive(Debug)]
pub struct PageTables {
    room: Range<u64>,
    tables: Vec<[u64; ENTRIES]>,
}

impl PageTables {
    /// Tables with nothing mapped, which will lie in `room`, a page-aligned range of GPAs.
    pub fn new(room: Range<u64>) -> Self {
        Self {
            room,
            tables: vec![[0; ENTRIES]],
        }
    }

    /// The value for CR3: the GPA of the root.
    pub fn root(&self) -> u64 {
        self.room.start
    }

    /// The tables' bytes, to be stored from [`Self::root`] up.
    pub fn bytes(&self) -> Vec<u8> {
        self.tables
            .iter()
            .flatten()
            .flat_map(|entry| entry.to_le_bytes())
            .collect()
    }

    /// Maps whole pages from `gva` to `gpa`, up to and with the page of the byte `gva + size - 1`.
    ///
    /// `gva` and `gpa` lie at the same place in their pages, and neither range wraps around.
    /// Mapping again what is mapped already is no conflict.
    pub fn map(&mut self, gva: u64, gpa: u64, size: u64) -> Result<(), MapError> {
        self.map_for(Access::All, gva, gpa, size)
    }

    /// As [`Self::map`], for `access`.
    pub fn map_for(
        &mut self,
        access: Access,
        gva: u64,
        gpa: u64,
        size: u64,
    ) -> Result<(), MapError> {
        let (mut gva, mut gpa, last) = (gva & !(PAGE - 1), gpa & !(PAGE - 1), gva + (size - 1));
        loop {
            let large = (gva | gpa) % LARGE == 0 && last - gva >= LARGE - 1;
            self.map_page(gva, gpa | access.leaf(), large)?;
            let page = if large { LARGE } else { PAGE };
            if last - gva < page {
                return Ok(());
            }
            gva += page;
            gpa += page;
        }
    }

    /// Makes `new` the entry for the page at `gva`, a large one or not.
    fn map_page(&mut self, gva: u64, new: u64, large: bool) -> Result<(), MapError> {
        let mut table = 0;
        for level in [4, 3, 2, 1] {
            let index = (gva >> (12 + 9 * (level - 1))) as usize % ENTRIES;
            let entry = self.tables[table][index];
            let new = match level {
                1 => new,
                2 if large => new | LARGE_PAGE,
                _ if entry & LARGE_PAGE != 0 => {
                    return if (entry & !LARGE_PAGE) + gva % LARGE == new {
                        Ok(())
                    } else {
                        Err(MapError::Conflict)
                    };
                }
                _ => {
                    table = if entry == 0 {
                        self.add_table(table, index)?
                    } else {
                        ((entry & ADDRESS) - self.room.start) as usize / PAGE as usize
                    };
                    continue;
                }
            };
            if entry != 0 && entry != new {
                return Err(MapError::Conflict);
            }
            self.tables[table][index] = new;
            return Ok(());
        }
        unreachable!("level 1 is a leaf")
    }

    fn add_table(&mut self, parent: usize, index: usize) -> Result<usize, MapError> {
        let table = self.tables.len();
        let gpa = self.room.start + table as u64 * PAGE;
        if gpa >= self.room.end {
            return Err(MapError::Full);
        }
        self.tables[parent][index] = gpa | TABLE;
        self.tables.push([0; ENTRIES]);
        Ok(table)
    }

    /// Makes the lowest 512 GiB appear a second time at `gva`, which is a multiple of 512 GiB.
    ///
    /// Both share the tables of the two lower levels that exist by now.
    pub fn alias_low(&mut self, gva: u64) -> Result<(), MapError> {
        let low = self.tables[0][0];
        let index = (gva >> 39) as usize % ENTRIES;
        if low == 0 || self.tables[0][index] != 0 {
            return Err(MapError::Conflict);
        }
        let table = self.add_table(0, index)?;
        let source = ((low & ADDRESS) - self.room.start) as usize / PAGE as usize;
        self.tables[table] = self.tables[source];
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Walks tables as the CPU does. `read` gives the entry at a GPA.
    pub(crate) fn walk(read: impl Fn(u64) -> u64, root: u64, gva: u64) -> Option<u64> {
        let mut table = root;
        for level in [4, 3, 2, 1] {
            let shift = 12 + 9 * (level - 1);
            let entry = read(table + ((gva >> shift) & 0x1ff) * 8);
            if entry & PRESENT == 0 {
                return None;
            }
            assert_eq!(entry & ((1 << 2) | (1 << 63)), 0, "user, or not executable");
            assert_ne!(entry & WRITABLE, 0);
            if level == 1 || (level == 2 && entry & LARGE_PAGE != 0) {
                let size = 1 << shift;
                assert_eq!((entry & ADDRESS) % size, 0, "a leaf that is not aligned");
                return Some((entry & ADDRESS) + gva % size);
            }
            assert_eq!(entry & LARGE_PAGE, 0, "a large page at level {level}");
            table = entry & ADDRESS;
        }
        unreachable!()
    }

    fn translate(tables: &PageTables, gva: u64) -> Option<u64> {
        let read = |gpa: u64| {
            let at = (gpa - tables.root()) as usize / 8;
            tables.tables[at / ENTRIES][at % ENTRIES]
        };
        walk(read, tables.root(), gva)
    }

    const ROOM: Range<u64> = 0x3_0000..0x10_0000;

    #[test]
    fn kernel_and_ram() {
        let mut tables = PageTables::new(ROOM);
        tables.map(0, 0, 512 << 20).unwrap();
        tables.alias_low(0xffff_8880_0000_0000).unwrap();
        tables
            .map(0xffff_ffff_8100_0000, 0x100_0000, 0x26_a14c)
            .unwrap();
        tables
            .map(0xffff_ffff_8140_0000, 0x140_0000, 0x1a_e000)
            .unwrap();
        for (gva, gpa) in [
            (0, Some(0)),
            (0x1fff_ffff, Some(0x1fff_ffff)),
            (0x2000_0000, None),
            (0xffff_8880_0000_0000, Some(0)),
            (0xffff_8880_1fff_f123, Some(0x1fff_f123)),
            (0xffff_8880_2000_0000, None),
            (0xffff_ffff_80ff_ffff, None),
            (0xffff_ffff_8100_0000, Some(0x100_0000)),
            (0xffff_ffff_8126_afff, Some(0x126_afff)),
            (0xffff_ffff_8126_b000, None),
            (0xffff_ffff_8140_0000, Some(0x140_0000)),
            (0xffff_ffff_815a_dfff, Some(0x15a_dfff)),
            (0xffff_ffff_815a_e000, None),
        ] {
            assert_eq!(translate(&tables, gva), gpa, "{gva:#x}");
        }
        assert_eq!(tables.bytes().len(), tables.tables.len() * PAGE as usize);
    }

    #[test]
    fn what_is_mapped_stays() {
        let mut tables = PageTables::new(ROOM);
        tables.map(0, 0, LARGE).unwrap();
        tables.map(0x3000, 0x3000, PAGE).unwrap();
        assert_eq!(tables.map(0x3000, 0x5000, PAGE), Err(MapError::Conflict));
        assert_eq!(tables.map(0, LARGE, LARGE), Err(MapError::Conflict));
        tables.map(LARGE, 0x7000, PAGE).unwrap();
        assert_eq!(tables.map(LARGE, LARGE, LARGE), Err(MapError::Conflict));
        assert_eq!(tables.map(LARGE, 0x8000, PAGE), Err(MapError::Conflict));
        tables.map(LARGE, 0x7000, PAGE).unwrap();
    }

    #[test]
    fn the_room_is_kept_to() {
        let mut tables = PageTables::new(0x3_0000..0x3_3000);
        assert_eq!(tables.map(0, 0, PAGE), Err(MapError::Full));
        assert_eq!(tables.bytes().len(), 0x3000);
    }

    #[test]
    fn the_end_of_the_address_space() {
        let mut tables = PageTables::new(ROOM);
        tables.map(0xffff_ffff_ffff_f000, 0x1000, PAGE).unwrap();
        assert_eq!(translate(&tables, u64::MAX), Some(0x1fff));
        tables.map(0xffff_ffff_ffe0_0000, LARGE, LARGE).unwrap_err();
    }

    proptest! {
        #[test]
        fn every_byte_goes_where_it_should(
            gva in prop_oneof![0u64..1 << 40, 0xffff_ff00_0000_0000u64..0xffff_ffff_ff00_0000],
            frame in 0u64..1 << 25,
            aligned in any::<bool>(),
            size in 1u64..3 * LARGE,
            at in any::<prop::sample::Index>(),
        ) {
            let gva = if aligned { gva & !(LARGE - 1) } else { gva };
            let gpa = match aligned {
                true => (frame << 21) & ADDRESS,
                false => (frame << 12) + (gva & 0xfff),
            };
            let mut tables = PageTables::new(ROOM);
            tables.map(gva, gpa, size).unwrap();
            let offset = at.index(size as usize) as u64;
            for offset in [0, offset, size - 1] {
                prop_assert_eq!(translate(&tables, gva + offset), Some(gpa + offset));
            }
            let end = (gva + size - 1) | 0xfff;
            if let Some(next) = end.checked_add(1) {
                prop_assert_eq!(translate(&tables, next), None);
            }
            if let Some(before) = (gva & !0xfff).checked_sub(1) {
                prop_assert_eq!(translate(&tables, before), None);
            }
        }
    }
}
