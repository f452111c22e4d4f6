// SPDX-License-Identifier: GPL-2.0

//! The atomic operations of what several processors use at a time. The models (`rust/lg-models`) compile the same
//! files with Loom's.

pub use core::sync::atomic::{fence, AtomicU64, Ordering};
