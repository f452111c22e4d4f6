// SPDX-License-Identifier: GPL-2.0
//! Memory as a device reaches it: by the addresses that its driver gives.
//!
//! They are GPAs. Where a kernel of Xen's has a grant table, one with bit 63 set names a grant instead: its page's
//! number is the number of the grant, and a buffer that goes on behind the end of a page goes on with the next grant
//! (`XEN_GRANT_DMA_ADDR_OFF`, drivers/xen/grant-dma-ops.c of Linux). Linux makes grants of one buffer at a time, whose
//! frames follow each other; grants whose frames do not are no buffer here.

use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use crate::memory::grants::{BadGrant, Grants, Use};
use crate::memory::{Memory, PAGE};

/// Set in an address that names a grant.
pub const GRANTED: u64 = 1 << 63;

/// The memory of a device.
#[derive(Clone)]
pub struct Dma(Window);

/// All addresses but the last, as one region.
#[derive(Clone)]
pub struct Window {
    memory: Memory,
    grants: Option<Arc<Grants>>,
}

impl From<Memory> for Dma {
    /// Without grants: all addresses are GPAs of `memory`.
    fn from(memory: Memory) -> Self {
        let grants = None;
        Self(Window { memory, grants })
    }
}

impl Dma {
    /// Addresses are those of `memory`, but for those that name one of `grants`.
    pub fn with_grants(memory: Memory, grants: Grants) -> Self {
        let grants = Some(Arc::new(grants));
        Self(Window { memory, grants })
    }

    /// What addresses that name no grant are in.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }
}

impl Window {
    /// The table, if `address` names a grant.
    fn grants_at(&self, address: u64) -> Option<&Grants> {
        self.grants.as_deref().filter(|_| address & GRANTED != 0)
    }
}

/// The address of `count` bytes at `address`, which names one of `grants`, in the memory whose pages those are.
///
/// The direction of a transfer is not known here, so the right to write is not asked for: whoever has a device write
/// where it granted to read has its own page written.
fn granted(grants: &Grants, address: u64, count: usize) -> Result<GuestAddress, BadGrant> {
    let first = (address & !GRANTED) / PAGE;
    let offset = address % PAGE;
    let page = |number: u64| {
        let grant = u32::try_from(number).map_err(|_| BadGrant::Beyond(u32::MAX))?;
        grants.page(grant, Use::Read)
    };
    let start = page(first)?;
    // A buffer of more pages than there are grants ends at the first that is not there.
    for number in 1..(offset + count as u64).div_ceil(PAGE) {
        if page(first + number)? != start + number * PAGE {
            return Err(BadGrant::Apart((first + number) as u32));
        }
    }
    Ok(GuestAddress(start + offset))
}

impl GuestMemory for Dma {
    type R = Window;

    fn iter(&self) -> impl Iterator<Item = &Window> {
        std::iter::once(&self.0)
    }

    fn find_region(&self, address: GuestAddress) -> Option<&Window> {
        (address <= self.0.last_addr()).then_some(&self.0)
    }

    /// Is there something at `address`? Of grants that is only known when they are used.
    fn address_in_range(&self, address: GuestAddress) -> bool {
        self.0.grants_at(address.0).is_some() || self.0.memory.address_in_range(address)
    }
}

impl GuestMemoryRegion for Window {
    type B = ();

    fn len(&self) -> GuestUsize {
        GuestUsize::MAX
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(0)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        address: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        match self.grants_at(address.0) {
            None => self.memory.get_slice(GuestAddress(address.0), count),
            Some(grants) => {
                let place = granted(grants, address.0, count);
                let place = place
                    .map_err(|error| GuestMemoryError::IOError(std::io::Error::other(error)))?;
                grants.memory().get_slice(place, count)
            }
        }
    }
}

impl GuestMemoryRegionBytes for Window {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    const TABLE: u64 = 0x8_0000;
    const RAM_PAGES: u64 = 0x80;

    /// Grants 1 to 4 are of frames 5, 6, 9 and 10; there are 1024.
    fn dma() -> Dma {
        let memory = crate::memory::create(1 << 20).unwrap();
        for (grant, frame) in [(1, 5), (2, 6), (3, 9), (4, 10u64)] {
            let place = GuestAddress(TABLE + 8 * grant);
            memory.write_obj(1 | (frame << 32), place).unwrap();
        }
        let grants = Grants::new(memory.clone(), TABLE, 2, RAM_PAGES);
        Dma::with_grants(memory, grants)
    }

    fn by_grant(grant: u64, offset: u64) -> GuestAddress {
        GuestAddress(GRANTED | (grant * PAGE + offset))
    }

    #[test]
    fn plain_and_granted() {
        let dma = dma();
        dma.write_slice(b"plain", GuestAddress(0x5ffe)).unwrap();
        let mut read = [0; 5];
        dma.read_slice(&mut read, by_grant(1, 0xffe)).unwrap();
        assert_eq!(&read, b"plain", "over the end of a page");
        dma.store(7u16, by_grant(4, 2), Ordering::SeqCst).unwrap();
        assert_eq!(dma.read_obj::<u16>(GuestAddress(0xa002)).unwrap(), 7);
        assert!(dma.get_slice(by_grant(3, 0), 0x2000).is_ok());
    }

    #[test]
    fn what_is_no_buffer() {
        let dma = dma();
        for (address, count) in [
            (by_grant(0, 0), 1),
            (by_grant(2, 0xfff), 2),
            (by_grant(1, 0), 0x2001),
            (by_grant(4, 0xfff), 2),
            (by_grant(1023, 0), 0x1001),
            (by_grant(1024, 0), 1),
            (by_grant(1 << 32, 0), 1),
            (GuestAddress(u64::MAX), 1),
            (GuestAddress(u64::MAX - 1), 1),
            (GuestAddress(1 << 20), 1),
            (GuestAddress((1 << 20) - 1), 2),
        ] {
            assert!(
                dma.get_slice(address, count).is_err(),
                "{address:?} {count:x}"
            );
        }
        assert!(dma.get_slice(by_grant(1, 0), usize::MAX >> 1).is_err());
    }

    #[test]
    fn without_a_table_nothing_is_granted() {
        let dma = Dma::from(crate::memory::create(1 << 20).unwrap());
        assert!(!dma.address_in_range(by_grant(1, 0)));
        assert!(dma.get_slice(by_grant(1, 0), 1).is_err());
        assert!(dma.get_slice(GuestAddress(0), 1).is_ok());
    }

    proptest! {
        /// Whatever the table and the address are, what is reached is RAM.
        #[test]
        fn only_ram(entries in prop::collection::vec(any::<u64>(), 8), address in any::<u64>(), near in 0..0x9000u64,
            count in 0..0x5000usize) {
            let memory = crate::memory::create(1 << 20).unwrap();
            for (place, entry) in entries.into_iter().enumerate() {
                // Mostly such as are good by themselves.
                let entry = if entry % 4 == 0 { entry } else { 1 | ((entry >> 57) << 32) };
                memory.write_obj(entry, GuestAddress(TABLE + 8 * place as u64)).unwrap();
            }
            let dma = Dma::with_grants(memory.clone(), Grants::new(memory.clone(), TABLE, 1, RAM_PAGES));
            let base = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
            for address in [address, GRANTED | near] {
                if let Ok(slice) = dma.get_slice(GuestAddress(address), count) {
                    let start = slice.ptr_guard().as_ptr() as u64 - base;
                    let end = if address & GRANTED != 0 { RAM_PAGES * PAGE } else { 1 << 20 };
                    prop_assert!(start + count as u64 <= end);
                }
            }
        }
    }
}
