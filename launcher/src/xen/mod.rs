// SPDX-License-Identifier: GPL-2.0
//! The devices of a kernel that runs by Xen's paravirtual ABI.

#![forbid(unsafe_code)]

pub mod console;
pub mod events;
pub mod grants;
pub mod ring;
pub mod store;
#[cfg(any(test, fuzzing))]
mod testing;
