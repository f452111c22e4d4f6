// SPDX-License-Identifier: GPL-2.0
//! The Launcher's words to the Guest.

use crate::address::gpa_to_ptr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_call::abi::boot_params;

/// GPA of the boot_params.
static BOOT_PARAMS: AtomicU64 = AtomicU64::new(0);

/// Remembers where they are.
pub(crate) fn set(boot_params: u64) {
    BOOT_PARAMS.store(boot_params, Relaxed);
}

/// The Launcher's boot_params: a copy.
pub fn boot_params() -> boot_params {
    let params = gpa_to_ptr::<boot_params>(BOOT_PARAMS.load(Relaxed));
    // SAFETY: the Launcher left the structure there, in RAM, and nobody writes it.
    unsafe { params.read_unaligned() }
}

/// The kernel command line.
pub fn command_line() -> &'static str {
    let line = gpa_to_ptr::<i8>(u64::from({ boot_params().hdr }.cmd_line_ptr));
    // SAFETY: the Launcher left a NUL-terminated string there, in RAM, and nobody writes it.
    unsafe { core::ffi::CStr::from_ptr(line) }
        .to_str()
        .unwrap_or("")
}
