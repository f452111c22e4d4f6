// SPDX-License-Identifier: GPL-2.0

//! What the Rust interface of the Host's kernel calls otherwise from one version to the next: from Linux 7.2, which Debian
//! builds by Rust 1.97, to 7.3 by 1.85.
//!
//! What can be written so that every version takes it is written so where it is used, and is not here.

use core::{
    arch::x86_64::CpuidResult,
    borrow::Borrow, //
};
use kernel::{
    bindings,
    ffi,
    prelude::*, //
};

/// Of no such call; 7.2 does not name it beside the others.
pub(crate) fn enosys() -> Error {
    Error::from_errno(-(bindings::ENOSYS as ffi::c_int))
}

/// Of memory that has failed; 7.2 does not name it either.
pub(crate) fn ehwpoison() -> Error {
    Error::from_errno(-(bindings::EHWPOISON as ffi::c_int))
}

/// The value of a module parameter: in 7.2 its `value()` is a reference.
pub(crate) fn parameter(value: impl Borrow<u32>) -> u32 {
    *value.borrow()
}

/// What the function of a timer returns that is not to run again: an integer in 7.2, and a structure of one in 7.3.
pub(super) fn no_restart() -> bindings::hrtimer_restart {
    const {
        assert!(size_of::<bindings::hrtimer_restart>() == size_of::<ffi::c_uint>());
    }
    // SAFETY: Both are an integer, for which 0 is a value; and HRTIMER_NORESTART is 0 (include/linux/hrtimer_types.h).
    unsafe { core::mem::zeroed() }
}

/// What CPUID says. Of a leaf that the CPU has not, it says what it says of another, or zeros; newer Rusts call it safe.
#[allow(unused_unsafe)]
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    // SAFETY: Every 64-bit CPU has the instruction.
    unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) }
}
