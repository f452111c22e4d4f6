// SPDX-License-Identifier: GPL-2.0

//! The virtual interrupts that wait for a vCPU.

use core::sync::atomic::{AtomicU64, Ordering};

/// A set of vectors, which anybody may add to while the vCPU takes from it. Raising a vector twice
/// before its delivery delivers it once, as on a local APIC.
#[derive(Debug, Default)]
pub struct Pending {
    words: [AtomicU64; 4],
}

impl Pending {
    /// Nothing is pending.
    pub const fn new() -> Self {
        Self {
            words: [const { AtomicU64::new(0) }; 4],
        }
    }

    /// Makes `vector` pending. Says whether it was not before.
    pub fn set(&self, vector: u8) -> bool {
        let bit = 1 << (vector & 63);
        self.words
            .get(usize::from(vector >> 6))
            .is_some_and(|word| word.fetch_or(bit, Ordering::SeqCst) & bit == 0)
    }

    /// Takes the vector to deliver next: the highest, which is the priority rule of a local APIC
    /// (SDM, "Interrupt, Task, and Processor Priority") without its classes.
    ///
    /// Only one thread takes.
    pub fn take_highest(&self) -> Option<u8> {
        for (base, word) in [192u8, 128, 64, 0].into_iter().zip(self.words.iter().rev()) {
            if let Some(bit) = word.load(Ordering::SeqCst).checked_ilog2() {
                word.fetch_and(!(1 << bit), Ordering::SeqCst);
                return u8::try_from(bit).ok().map(|bit| base | bit);
            }
        }
        None
    }

    /// Says whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.words
            .iter()
            .all(|word| word.load(Ordering::SeqCst) == 0)
    }
}
