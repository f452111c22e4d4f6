// SPDX-License-Identifier: GPL-2.0
//! This module knows where things are: GVAs of the image and of RAM, and their GPAs.

use lguest_call::abi;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// The distance at which the image is linked: GVA minus GPA (`kernel_base` of guest.ld).
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// The address at which RAM starts (bindgen has no unsigned numbers as large as this one).
const PAGE_OFFSET: u64 = abi::LGUEST_PAGE_OFFSET as u64;

/// GPA of something in the image or in the direct map.
pub fn gpa_of<T: ?Sized>(object: *const T) -> u64 {
    let gva = object.cast::<u8>() as u64;
    gva - if gva >= KERNEL_BASE {
        KERNEL_BASE
    } else {
        PAGE_OFFSET
    }
}

/// The address in the direct map of the RAM at `gpa`.
pub fn gpa_to_ptr<T>(gpa: u64) -> *mut T {
    (PAGE_OFFSET + gpa) as *mut T
}
