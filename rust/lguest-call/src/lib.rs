// SPDX-License-Identifier: GPL-2.0
//! What each program in Guest kernel mode needs, however it starts and wherever it lies: the bare Guests (`lguest-guest`)
//! and the shim (`xen-shim`).
//!
//! The contract behind it is `include/uapi/linux/lguest.h` (in Rust: [`abi`]).
//!
//! Each line knows what is on lines below it, and nothing above; a test holds that (`rust/layers`):
//!
//! ```text
//!   irq             virtual interrupts on, off, and waiting
//!   hypercall       a function for each
//!   shared          the shared page
//!   mem             memcpy and its kin
//!   abi             the contract
//! ```

#![no_std]

pub use lguest_abi as abi;

pub mod hypercall;
pub mod irq;
mod mem;
pub mod shared;
