// SPDX-License-Identifier: GPL-2.0
//! The kernel's side, for tests and fuzzers.

pub mod fuzz;
pub(in crate::xen) mod kernel;
