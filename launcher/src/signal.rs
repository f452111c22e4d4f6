// SPDX-License-Identifier: GPL-2.0
//! Signals that do nothing but to end a system call that waits, or to let it fail.

#![forbid(unsafe_code)]

use std::ffi::c_void;
use std::io;

use nix::libc::siginfo_t;
use nix::sys::signal::Signal;
use vmm_sys_util::signal::register_signal_handler;

/// From now on, `signal` does nothing by itself: the system call that it comes in says so.
///
/// # Errors
///
/// The system has no such signal.
pub fn only_interrupt(signal: Signal) -> io::Result<()> {
    extern "C" fn nothing(_: i32, _: *mut siginfo_t, _: *mut c_void) {}
    register_signal_handler(signal as i32, nothing).map_err(io::Error::from)
}
