// SPDX-License-Identifier: GPL-2.0
//! How full a file system is, in the type that fuse-backend-rs wants: the C library's, which only
//! the C library can make.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use fuse_backend_rs::abi::fuse_abi::statvfs64;
use nix::errno::Errno;
use nix::libc;

/// The size of the file system of `found`, and what is free of it.
pub(super) fn of(found: BorrowedFd<'_>) -> io::Result<statvfs64> {
    let mut answer = MaybeUninit::uninit();
    // SAFETY: the descriptor is open, and the call writes one statvfs64.
    let result = unsafe { libc::fstatvfs64(found.as_raw_fd(), answer.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: the call was successful, so it has written all of it.
    Ok(unsafe { answer.assume_init() })
}
