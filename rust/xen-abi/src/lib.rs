// SPDX-License-Identifier: GPL-2.0
//! The layouts and numbers that three programs share: a Linux that runs by Xen's paravirtual ABI, the shim
//! (`rust/xen-shim`), which answers it, and the Launcher, which builds its first memory and serves its devices.
//!
//! The kernel's half is Xen's public ABI, written down by hand and held by tests to the sizes and offsets that C gives
//! it. The half between the Launcher and the shim is lg's own: [`handover`].

#![no_std]

pub mod event_channel;
pub mod handover;
pub mod memory;
pub mod number;
pub mod rings;
pub mod start_info;
pub mod vcpu;
