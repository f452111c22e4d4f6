// SPDX-License-Identifier: GPL-2.0
//! The grant table, version 1: the pages that the kernel lets the backends use.
//!
//! All backends are in this process, and all of RAM is theirs to reach: a grant gives no right, but names a page. So
//! nothing is mapped, and an entry is not marked as in use; a kernel that takes a page back while a backend works
//! on it gets what it asks for, in its own RAM. An entry is read once, at each use.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use xen_abi::rings::{GRANT_ACCESS, GRANT_KIND, GRANT_READ_ONLY};

use crate::memory::{Memory, PAGE};

/// The domain that backends are in.
const BACKEND: u16 = 0;
const ENTRY: u64 = size_of::<xen_abi::rings::Grant>() as u64;

/// The table.
#[derive(Clone)]
pub struct Grants {
    memory: Memory,
    table: u64,
    entries: u64,
    /// Pages of RAM: the frames that may be granted.
    ram_pages: u64,
}

/// The use of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is only read.
    Read,
    /// It is written.
    Write,
}

/// A grant that gives nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum BadGrant {
    #[error("grant {0} is beyond the table")]
    Beyond(u32),
    #[error("grant {0} is not for this use")]
    Refused(u32),
    #[error("grant {0} is of no RAM")]
    Frame(u32),
    #[error("grant {0} is of a frame that does not follow that of the one before")]
    Apart(u32),
}

impl Grants {
    /// The table at GPA `table` of `memory`, which has so many pages; the kernel's RAM has `ram_pages`.
    pub fn new(memory: Memory, table: u64, pages: u64, ram_pages: u64) -> Self {
        let entries = pages * PAGE / ENTRY;
        Self {
            memory,
            table,
            entries,
            ram_pages,
        }
    }

    /// The memory whose pages are granted.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The GPA of the page that `grant` names.
    ///
    /// # Errors
    ///
    /// It names none, or not for this use.
    pub fn page(&self, grant: u32, how: Use) -> Result<u64, BadGrant> {
        if u64::from(grant) >= self.entries {
            return Err(BadGrant::Beyond(grant));
        }
        let place = GuestAddress(self.table + u64::from(grant) * ENTRY);
        let entry: u64 =
            (self.memory.load(place, Ordering::Acquire)).map_err(|_| BadGrant::Beyond(grant))?;
        let (flags, domain, frame) = (entry as u16, (entry >> 16) as u16, entry >> 32);
        let writable = flags & GRANT_READ_ONLY == 0;
        if flags & GRANT_KIND != GRANT_ACCESS
            || domain != BACKEND
            || (how == Use::Write && !writable)
        {
            return Err(BadGrant::Refused(grant));
        }
        match frame < self.ram_pages {
            true => Ok(frame * PAGE),
            false => Err(BadGrant::Frame(grant)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: u64 = 0x8_0000;
    const RAM_PAGES: u64 = 0x80;

    fn table() -> (Memory, Grants) {
        let memory = crate::memory::create(1 << 20).unwrap();
        (memory.clone(), Grants::new(memory, TABLE, 2, RAM_PAGES))
    }

    fn entry(flags: u16, domain: u16, frame: u32) -> u64 {
        u64::from(flags) | (u64::from(domain) << 16) | (u64::from(frame) << 32)
    }

    #[test]
    fn entries_are_checked() {
        let (memory, grants) = table();
        let set = |grant: u64, entry: u64| {
            memory
                .write_obj(entry, GuestAddress(TABLE + 8 * grant))
                .unwrap()
        };
        set(1, entry(1, 0, 5));
        set(2, entry(1 | 4, 0, 6));
        set(3, entry(1, 7, 5));
        set(4, entry(2, 0, 5));
        set(5, entry(1, 0, RAM_PAGES as u32));
        set(1023, entry(1 | 8 | 16, 0, 0x7f));
        assert_eq!(grants.page(0, Use::Read), Err(BadGrant::Refused(0)));
        assert_eq!(grants.page(1, Use::Write), Ok(0x5000));
        assert_eq!(grants.page(2, Use::Read), Ok(0x6000));
        assert_eq!(grants.page(2, Use::Write), Err(BadGrant::Refused(2)));
        assert_eq!(grants.page(3, Use::Read), Err(BadGrant::Refused(3)));
        assert_eq!(grants.page(4, Use::Read), Err(BadGrant::Refused(4)));
        assert_eq!(
            grants.page(5, Use::Read),
            Err(BadGrant::Frame(5)),
            "the shim's area"
        );
        assert_eq!(grants.page(1023, Use::Write), Ok(0x7f000));
        assert_eq!(grants.page(1024, Use::Read), Err(BadGrant::Beyond(1024)));
        assert_eq!(
            grants.page(u32::MAX, Use::Read),
            Err(BadGrant::Beyond(u32::MAX))
        );
    }

    proptest! {
        #[test]
        fn whatever_is_granted_is_ram(grant in 0u32..1030, entry in any::<u64>(), write in any::<bool>()) {
            let (memory, grants) = table();
            if grant < 1024 {
                memory.write_obj(entry, GuestAddress(TABLE + 8 * u64::from(grant))).unwrap();
            }
            if let Ok(page) = grants.page(grant, if write { Use::Write } else { Use::Read }) {
                prop_assert!(page % PAGE == 0 && page / PAGE < RAM_PAGES);
            }
        }
    }
}
