// SPDX-License-Identifier: GPL-2.0

//! The last exits of a vCPU, which are always kept: whoever asks what a Guest died of has not asked for a
//! record before.
//!
//! Every exit pays for this, so it is what [`Switcher::take_stock`](super::Switcher) has at hand at that moment: no
//! times, and not what came of it.

use crate::lg_core::exit::Exit;
use kernel::prelude::*;

/// So many are kept, a power of two.
const KEPT: usize = 32;

/// An exit as it is kept.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) exit: Exit,
    pub(crate) user_mode: bool,
    pub(crate) rip: u64,
    /// If it was a hypercall, its number.
    pub(crate) rax: u64,
}

impl Left {
    const NONE: Self = Self {
        exit: Exit::Interrupted,
        user_mode: false,
        rip: 0,
        rax: 0,
    };
}

/// The last exits. The one before which the Guest was entered `n` times is at index `n`, modulo their number.
///
/// # Invariants
///
/// There are [`KEPT`] of them: in memory of their own, for a kernel stack has no room for them.
pub(super) struct Last(KVec<Left>);

impl Last {
    /// None yet. May sleep.
    pub(super) fn new() -> Result<Self> {
        Ok(Self(KVec::from_elem(Left::NONE, KEPT, GFP_KERNEL_ACCOUNT)?))
    }

    /// The Guest has left after that many entries.
    #[inline(always)]
    pub(super) fn note(&mut self, entries: u64, left: Left) {
        self.0[entries as usize % KEPT] = left;
    }

    /// The exit `back` exits before the last, of which there were `entries`. `None` if it is not kept.
    pub(super) fn get(&self, entries: u64, back: u64) -> Option<&Left> {
        (back < entries.min(KEPT as u64)).then(|| &self.0[(entries - back) as usize % KEPT])
    }
}
