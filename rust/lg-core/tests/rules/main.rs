// SPDX-License-Identifier: GPL-2.0

//! Tests of the pure half of lg, one file per module. "SDM" is the Intel 64 Software Developer's
//! Manual; its sections are named by their titles.

mod addr;
mod emulate;
mod entry;
mod exit;
mod foresight;
mod irq;
mod mitigations;
mod monitor;
mod nospec;
mod paging;
mod segment;
mod shadow;
mod tables;
mod tags;
mod xcr0;
