// SPDX-License-Identifier: GPL-2.0

//! Who is in the Guest.
//!
//! A vCPU that is out of the Guest has nothing of it in its processor that it could use: each entry has that forget what
//! is gone (`tags`), or all of it. So whoever takes something away (a translation, a table, the right to run) has to wait for nobody
//! but those that are *in*, and only for the visit that they are on:
//!
//! ```text
//!   the vCPU                          the one who takes
//!   in (enter)                        take away
//!   fence                             fence
//!   look what there is, use it        who is in? make him leave, wait
//!   out (leave)                       now nobody has it
//! ```
//!
//! Of the two, at least one sees what the other has done. Nobody waits while he is in himself, and to leave takes
//! no lock: two that wait for each other's vCPUs both get on.

use super::sync::{fence, AtomicU64, Ordering};

/// Whether one vCPU is in the Guest, as the others see it.
#[derive(Debug, Default)]
pub struct Presence {
    /// How often it went in and out: odd while it is in.
    changes: AtomicU64,
    /// The root it is on, as the Guest has it.
    root: AtomicU64,
}

/// One stay of a vCPU in the Guest; or none, which is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit(Option<u64>);

impl Visit {
    /// No visit.
    pub const NONE: Self = Self(None);
}

impl Presence {
    /// A vCPU that is out.
    pub fn new() -> Self {
        Self::default()
    }

    /// The vCPU is in from now on. What it looks at afterwards, its processor walking tables among it, is at least
    /// as new as what was done before a [`fence_and_visit`](Self::fence_and_visit) that has not seen it in.
    pub fn enter(&self) {
        let changes = self.changes.load(Ordering::Relaxed);
        // Who sees this visit, and not the end of the one before, may still rely on that.
        self.changes
            .store(changes.wrapping_add(1), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The vCPU is out.
    pub fn leave(&self) {
        let changes = self.changes.load(Ordering::Relaxed);
        self.changes
            .store(changes.wrapping_add(1), Ordering::Release);
    }

    /// Is the vCPU in? Its own thread asks.
    pub fn is_in(&self) -> bool {
        self.changes.load(Ordering::Relaxed) & 1 != 0
    }

    /// The visit that the vCPU may be on which does not know of what the caller has done before.
    pub fn fence_and_visit(&self) -> Visit {
        fence(Ordering::SeqCst);
        let changes = self.changes.load(Ordering::Acquire);
        Visit((changes & 1 != 0).then_some(changes))
    }

    /// Is that visit over? Then all that the vCPU has done on it was before.
    pub fn is_over(&self, visit: Visit) -> bool {
        visit
            .0
            .is_none_or(|visit| self.changes.load(Ordering::Acquire) != visit)
    }

    /// The root of the Guest's that the vCPU is on.
    pub fn root(&self) -> u64 {
        self.root.load(Ordering::Relaxed)
    }

    /// Says which one it is; under the lock of whoever asks.
    pub fn set_root(&self, root: u64) {
        self.root.store(root, Ordering::Relaxed);
    }
}
