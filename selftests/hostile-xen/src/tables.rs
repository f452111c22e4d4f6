// SPDX-License-Identifier: GPL-2.0
//! Page tables, which the kernel writes as it likes: they are memory.

use crate::boot::{start_info, BASE};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Where a program's code is, and the end of its stack.
pub const PROGRAM: u64 = 0x40_0000;
#[allow(missing_docs)]
pub const PROGRAM_STACK: u64 = 0x60_0000;

const PRESENT: u64 = 1;
const TABLE: u64 = 0x67;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page of the image.
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: the words are read and written as such; who is given a page has it alone.
unsafe impl Sync for Page {}

impl Page {
    /// All zeros.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    /// Its address.
    pub fn gva(&self) -> u64 {
        self.0.get() as u64
    }

    /// Its frame.
    pub fn frame(&self) -> u64 {
        gpa_of(self.gva()) / 4096
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

static POOL: [Page; 32] = [const { Page::new() }; 32];

/// A page that nobody has been given yet, all zeros.
pub fn page() -> &'static Page {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    &POOL[NEXT.fetch_add(1, Relaxed)]
}

/// GPA of something in the mapping that the Launcher made.
pub fn gpa_of(gva: u64) -> u64 {
    gva - BASE
}

/// The entry of level 1 for `gva` in the Launcher's tables; tables above it are made when missing.
pub fn entry(gva: u64) -> *mut u64 {
    let mut table = start_info().pt_base;
    for level in [4, 3, 2] {
        let at = (table + ((gva >> (12 + 9 * (level - 1))) & 511) * 8) as *mut u64;
        // SAFETY: an entry of a table, all of which are mapped at BASE.
        unsafe {
            if at.read_volatile() & PRESENT == 0 {
                at.write_volatile(gpa_of(page().gva()) | TABLE);
            }
            table = BASE + (at.read_volatile() & ADDRESS);
        }
    }
    (table + ((gva >> 12) & 511) * 8) as *mut u64
}

/// Maps a program that begins with `code`, with a stack.
pub fn map_program(code: &[u8]) {
    for (gva, bytes) in [(PROGRAM, code), (PROGRAM_STACK - 4096, &[][..])] {
        let page = page();
        // SAFETY: the page is nobody's, and the code fits; an entry of our tables.
        unsafe {
            let to = page.gva() as *mut u8;
            to.copy_from(bytes.as_ptr(), bytes.len().min(4096));
            entry(gva).write_volatile(gpa_of(page.gva()) | TABLE);
        }
    }
}
