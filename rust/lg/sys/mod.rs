// SPDX-License-Identifier: GPL-2.0

//! Everything `unsafe`: the CPU, the Host kernel's C functions, page tables, and Guest memory.
//!
//! The modules above see safe interfaces only, and the compiler holds them to it
//! (`#![deny(unsafe_code)]`).

pub(crate) mod async_pf;
pub(crate) mod compat;
pub(crate) mod cpu;
pub(crate) mod eventfd;
pub(crate) mod features;
pub(crate) mod hole;
pub(crate) mod host;
pub(crate) mod mitigations;
pub(crate) mod nospec;
pub(crate) mod notifier;
pub(crate) mod page;
pub(crate) mod probe;
pub(crate) mod ram;
pub(crate) mod ring;
pub(crate) mod section;
pub(crate) mod slots;
pub(crate) mod switcher;
pub(crate) mod table;
pub(crate) mod tags;
pub(crate) mod task;
pub(crate) mod timer;
pub(crate) mod uabi;
