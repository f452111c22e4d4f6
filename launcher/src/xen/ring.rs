// SPDX-License-Identifier: GPL-2.0
//! Rings of bytes, as console and xenstore have them.
//!
//! The indices run freely, and the kernel can store anything in all of them. What is used is a copy; it is masked by
//! the ring's size, and two that are further apart than that break the ring.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::Memory;

/// A ring, by the GPAs of its parts.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// The bytes.
    pub data: u64,
    /// Their number, a power of 2.
    pub size: u32,
    /// The index of who takes them.
    pub taken: u64,
    /// The index of who adds them.
    pub added: u64,
}

/// The kernel has broken a ring.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Broken {
    #[error("a ring of {size} cannot hold {held}")]
    Indices { size: u32, held: u32 },
    #[error("a ring is not in RAM: {0}")]
    Memory(#[from] GuestMemoryError),
}

impl Ring {
    /// Takes what is in it.
    ///
    /// # Errors
    ///
    /// The kernel has broken it.
    pub fn take(&self, memory: &Memory) -> Result<Vec<u8>, Broken> {
        let (taken, added) = self.indices(memory)?;
        let mut bytes = vec![0; added.wrapping_sub(taken) as usize];
        let until_wrap = self.until_wrap(taken, bytes.len());
        let (first, second) = bytes.split_at_mut(until_wrap);
        memory.read_slice(first, self.place(taken))?;
        memory.read_slice(second, GuestAddress(self.data))?;
        memory.store(added, GuestAddress(self.taken), Ordering::SeqCst)?;
        Ok(bytes)
    }

    /// Adds as many of `bytes` as there is room for, and tells how many.
    ///
    /// # Errors
    ///
    /// The kernel has broken it.
    pub fn add(&self, memory: &Memory, bytes: &[u8]) -> Result<usize, Broken> {
        let (taken, added) = self.indices(memory)?;
        let room = self.size - added.wrapping_sub(taken);
        let count = bytes.len().min(room as usize);
        let (first, second) = bytes[..count].split_at(self.until_wrap(added, count));
        memory.write_slice(first, self.place(added))?;
        memory.write_slice(second, GuestAddress(self.data))?;
        let added = added.wrapping_add(count as u32);
        memory.store(added, GuestAddress(self.added), Ordering::SeqCst)?;
        Ok(count)
    }

    /// The room in it, in bytes.
    ///
    /// # Errors
    ///
    /// The kernel has broken it.
    pub fn room(&self, memory: &Memory) -> Result<usize, Broken> {
        let (taken, added) = self.indices(memory)?;
        Ok((self.size - added.wrapping_sub(taken)) as usize)
    }

    /// Both indices, which fit together.
    fn indices(&self, memory: &Memory) -> Result<(u32, u32), Broken> {
        let index = |place| memory.load::<u32>(GuestAddress(place), Ordering::SeqCst);
        let (taken, added) = (index(self.taken)?, index(self.added)?);
        let held = added.wrapping_sub(taken);
        match held <= self.size {
            true => Ok((taken, added)),
            false => Err(Broken::Indices {
                size: self.size,
                held,
            }),
        }
    }

    fn place(&self, index: u32) -> GuestAddress {
        GuestAddress(self.data + u64::from(index % self.size))
    }

    /// Of `count` bytes from `index` on, those that are before the end of the ring.
    fn until_wrap(&self, index: u32, count: usize) -> usize {
        count.min((self.size - index % self.size) as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RING: Ring = Ring {
        data: 0x1000,
        size: 1024,
        taken: 0x2000,
        added: 0x2004,
    };

    fn memory(taken: u32, added: u32) -> Memory {
        let memory = crate::memory::create(1 << 20).unwrap();
        memory
            .write_obj([taken, added], GuestAddress(RING.taken))
            .unwrap();
        memory
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            start in any::<u32>(),
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 0..8),
        ) {
            let memory = memory(start, start);
            for piece in pieces {
                let count = RING.add(&memory, &piece).unwrap();
                prop_assert_eq!(count, piece.len().min(1024));
                prop_assert_eq!(RING.room(&memory).unwrap(), 1024 - count);
                prop_assert_eq!(RING.take(&memory).unwrap(), &piece[..count]);
            }
        }

        #[test]
        fn any_indices(taken in any::<u32>(), added in any::<u32>()) {
            let memory = memory(taken, added);
            let held = added.wrapping_sub(taken);
            prop_assert_eq!(RING.add(&memory, &[1; 100]).is_ok(), held <= 1024);
            prop_assert_eq!(RING.take(&memory).is_ok(), held <= 1024);
        }
    }

    #[test]
    fn indices_too_far_apart_and_back() {
        for (taken, added) in [(0, 1025), (5, 4), (u32::MAX, 1024)] {
            let memory = memory(taken, added);
            assert!(matches!(
                RING.take(&memory),
                Err(Broken::Indices { size: 1024, .. })
            ));
        }
        let outside = Ring {
            data: 1 << 40,
            ..RING
        };
        assert!(matches!(
            outside.take(&memory(0, 4)),
            Err(Broken::Memory(_))
        ));
    }
}
