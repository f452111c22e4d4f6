// SPDX-License-Identifier: GPL-2.0
//! The contract of Guest, Launcher and Host: `include/uapi/linux/lguest.h` as bindgen translates it, with the names of
//! the header. The header documents every item; nothing is added here, so that there is one copy of every number.
//!
//! The ioctl numbers, which the header computes with macros, are `LGUEST_IOCTL_*`.

#![no_std]
#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    missing_docs
)]
#![allow(clippy::all, unsafe_op_in_unsafe_fn)]

include!(concat!(env!("OUT_DIR"), "/abi.rs"));
