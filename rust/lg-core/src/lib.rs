// SPDX-License-Identifier: GPL-2.0

//! The pure half of lg: every decision that needs neither the Host kernel nor the hardware.
//!
//! The files beside this one are compiled twice from the same text: by Cargo, for the tests, and
//! into `lg.ko`, which includes them as modules. So they know only each other (through `super`)
//! and `core`, allocate nothing, contain no `unsafe`, and have no operation that can panic: a
//! panic in the kernel takes the machine down, and nearly every value here was chosen by a Guest.
//!
//! Where a rule is the processor's, the comment names the section of the Intel 64 Software
//! Developer's Manual ("SDM") by its title, since the numbers move from edition to edition.

#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod addr;
pub mod emulate;
pub mod eret;
pub mod event;
pub mod exit;
pub mod flags;
pub mod foresight;
pub mod irq;
pub mod mitigations;
pub mod monitor;
pub mod paging;
pub mod power;
pub mod presence;
pub mod segment;
pub mod shadow;
pub mod sync;
pub mod tags;
pub mod xcr0;
