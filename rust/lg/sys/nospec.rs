// SPDX-License-Identifier: GPL-2.0

//! Numbers of a Guest's or a Launcher's that choose an element of the Host's (Spectre v1).
//!
//! A CPU may go on for a while as if a number were in bounds that is not, and read what lies there: what it
//! reads by that leaves traces in its caches. So whoever indexes by such a number takes it from here,
//! where it is 0 if it is out of bounds, also for a CPU that has guessed that it is not
//! (linux:Documentation/admin-guide/hw-vuln/spectre.rst, linux:include/linux/nospec.h).

use core::arch::asm;

/// `index` if it is below `len`, else 0. By arithmetic, for what a compiler makes of a comparison may be
/// the very branch that is mispredicted.
#[inline(always)]
pub(crate) fn index(index: usize, len: usize) -> usize {
    let mask: usize;
    // SAFETY: Two registers are compared, and a third becomes all ones or 0.
    unsafe {
        asm!(
            "cmp {index}, {len}",
            "sbb {mask}, {mask}",
            index = in(reg) index,
            len = in(reg) len,
            mask = lateout(reg) mask,
            options(pure, nomem, nostack)
        );
    }
    index & mask
}

/// The element of that index, if there is one.
#[inline(always)]
pub(crate) fn get<T>(slice: &[T], at: usize) -> Option<&T> {
    // Not asked of the masked one, whether it is the same: what is equal may be exchanged.
    if at >= slice.len() {
        return None;
    }
    slice.get(index(at, slice.len()))
}

/// The same, to be changed.
#[inline(always)]
pub(crate) fn get_mut<T>(slice: &mut [T], at: usize) -> Option<&mut T> {
    if at >= slice.len() {
        return None;
    }
    slice.get_mut(index(at, slice.len()))
}
