// SPDX-License-Identifier: GPL-2.0

//! For tests: what several vCPUs do at a time, in every order that the memory model allows.
//!
//! The files of `lg-core` that vCPUs share without a lock are compiled here a third time, with Loom's atomics in the
//! place of core's. Each test in `tests` is a little of what the module does with them. Loom runs it in all orders
//! that there are, and sees to it that what one thread does to a cell happens before, or after, what another does.
//!
//! Loom takes accesses that are `SeqCst` for `AcqRel` ones: whatever needs more than that has a fence, which is a rule
//! for those files. A model is worth something if it fails when one fence or comparison is taken away; which were
//! tried is said in each.

#[path = "../../lg-core/src/addr.rs"]
pub mod addr;
#[path = "../../lg-core/src/irq.rs"]
pub mod irq;
#[path = "../../lg-core/src/power.rs"]
pub mod power;
#[path = "../../lg-core/src/presence.rs"]
pub mod presence;
#[path = "../../lg-core/src/tags.rs"]
pub mod tags;

/// Loom's, for the files above.
mod sync {
    pub(crate) use loom::sync::atomic::{fence, AtomicU64, Ordering};
}
