// SPDX-License-Identifier: GPL-2.0
//! RAM that nobody uses any more.

#![allow(unsafe_code)]

use std::io;

use nix::libc;
use vm_memory::{GuestAddress, GuestMemory};

use crate::memory::dma::Dma;

/// Gives `len` bytes at `start`, whole pages, back to the Host: they are 0 from then on.
///
/// # Errors
///
/// They are not RAM, all of one part.
pub(super) fn give_back(memory: &Dma, start: GuestAddress, len: usize) -> io::Result<()> {
    let slice = memory.get_slice(start, len).map_err(io::Error::other)?;
    let address = slice.ptr_guard_mut().as_ptr();
    // SAFETY: a part of RAM's mapping. Nobody has references into that, and it stays mapped: only its content changes.
    match unsafe { libc::madvise(address.cast(), len, libc::MADV_REMOVE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
