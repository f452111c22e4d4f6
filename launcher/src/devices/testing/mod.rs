// SPDX-License-Identifier: GPL-2.0
//! A device seen from the Guest: its driver, in tests and for fuzzers.

#[cfg_attr(fuzzing, allow(dead_code))] // fuzzers look at no results
pub(super) mod driver;
pub mod fuzz;
