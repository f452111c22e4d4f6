// SPDX-License-Identifier: GPL-2.0

//! The virtual interrupts that wait for a vCPU, and what else it is called for.

use super::sync::{fence, AtomicU64, Ordering};

/// A set of vectors, which anybody may add to while the vCPU takes from it. Raising a vector twice
/// before its delivery delivers it once, as on a local APIC.
#[derive(Debug, Default)]
pub struct Pending {
    words: [AtomicU64; 4],
    calls: AtomicU64,
}

/// What a vCPU is called for, beside virtual interrupts. Each waits once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// An NMI.
    Nmi = 1,
    /// The end of its wait for a lock.
    Kick = 2,
}

impl Pending {
    /// Nothing is pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `vector` pending. Says whether it was not before. Who then finds out whether the vCPU sleeps does so
    /// behind that: either he sees it asleep, or it has seen the vector.
    pub fn set(&self, vector: u8) -> bool {
        let bit = 1 << (vector & 63);
        let new = self
            .words
            .get(usize::from(vector >> 6))
            .is_some_and(|word| word.fetch_or(bit, Ordering::SeqCst) & bit == 0);
        fence(Ordering::SeqCst);
        new
    }

    /// Calls the vCPU; as [`set`](Self::set) else.
    pub fn call(&self, call: Call) -> bool {
        let new = self.calls.fetch_or(call as u64, Ordering::SeqCst) & call as u64 == 0;
        fence(Ordering::SeqCst);
        new
    }

    /// Is the vCPU called for that?
    pub fn is_called(&self, call: Call) -> bool {
        self.calls.load(Ordering::SeqCst) & call as u64 != 0
    }

    /// The vCPU has heard that. Only one thread does.
    pub fn answer(&self, call: Call) {
        self.calls.fetch_and(!(call as u64), Ordering::SeqCst);
    }

    /// Nothing is pending any more, and the vCPU is called for nothing.
    pub fn clear(&self) {
        for word in self.words.iter().chain([&self.calls]) {
            word.store(0, Ordering::SeqCst);
        }
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

    /// Says whether no vector is pending.
    pub fn is_empty(&self) -> bool {
        self.words
            .iter()
            .all(|word| word.load(Ordering::SeqCst) == 0)
    }
}
