// SPDX-License-Identifier: GPL-2.0

//! The virtual interrupts that wait for a vCPU.

/// A set of vectors. Raising a vector twice before its delivery delivers it once, as on a local
/// APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    words: [u64; 4],
}

impl Pending {
    /// Nothing is pending.
    pub const fn new() -> Self {
        Self { words: [0; 4] }
    }

    /// Makes `vector` pending.
    pub fn set(&mut self, vector: u8) {
        if let Some(word) = self.words.get_mut(usize::from(vector >> 6)) {
            *word |= Self::bit(vector);
        }
    }

    /// Forgets `vector`, pending or not.
    pub fn clear(&mut self, vector: u8) {
        if let Some(word) = self.words.get_mut(usize::from(vector >> 6)) {
            *word &= !Self::bit(vector);
        }
    }

    /// The vector to deliver next: the highest, which is the priority rule of a local APIC
    /// (SDM 12.8.3) without its classes. It stays pending.
    pub fn highest(&self) -> Option<u8> {
        let (base, word) = [192u8, 128, 64, 0]
            .into_iter()
            .zip(self.words.iter().rev())
            .find(|(_, word)| **word != 0)?;
        u8::try_from(word.ilog2()).ok().map(|bit| base | bit)
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.words == [0; 4]
    }

    fn bit(vector: u8) -> u64 {
        1 << (vector & 63)
    }
}
