// SPDX-License-Identifier: GPL-2.0
//! Guest page tables: frames to make them of, and a mapper that is small enough to make wrong tables on purpose.
//!
//! RAM is at `LGUEST_PAGE_OFFSET + GPA` in every root made here, as it is in the Launcher's.

pub use crate::address::{gpa_of, gpa_to_ptr, PAGE};
use crate::params::boot_params;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_call::hypercall;

/// Bits of a page-table entry (SDM volume 3, table 5-20).
pub mod pte {
    #![allow(missing_docs)]
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// The address in an entry.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}
use pte::{ACCESSED, ADDRESS, DIRTY, LARGE, PRESENT, USER, WRITE};

/// A fresh frame of RAM, all zero. Frames are never given back.
pub fn alloc_frame() -> u64 {
    alloc_frames(PAGE)
}

/// `size` bytes of RAM, all zero, at a GPA that is a multiple of `size` (a power of two, at least a page).
pub fn alloc_frames(size: u64) -> u64 {
    extern "C" {
        static image_end: u8;
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);

    let place = |next| {
        let next = match next {
            0 => gpa_of(&raw const image_end),
            next => next,
        };
        next.next_multiple_of(size)
    };
    // Several vCPUs may ask at once.
    let taken = NEXT.fetch_update(Relaxed, Relaxed, |next| Some(place(next) + size));
    let frame = taken.map_or(0, place);
    assert!(
        frame + size <= ram_end(),
        "out of memory: the guest needs more RAM (lg run -m)"
    );
    // SAFETY: RAM past the image that nobody has been given yet.
    unsafe { gpa_to_ptr::<u8>(frame).write_bytes(0, size as usize) };
    frame
}

/// The end of the RAM that holds our image.
pub fn ram_end() -> u64 {
    const E820_RAM: u32 = 1;
    let params = boot_params();
    let image = gpa_of(ram_end as *const u8);
    (0..usize::from(params.e820_entries))
        .map(|i| params.e820_table[i])
        .filter(|entry| entry.type_ == E820_RAM)
        .map(|entry| (entry.addr, entry.addr + entry.size))
        .find(|(start, end)| (*start..*end).contains(&image))
        .map_or(0, |(_, end)| end)
}

/// The root in use: the GPA in CR3. The Host emulates the instruction.
pub fn current_root() -> u64 {
    let cr3: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    cr3 & ADDRESS
}

/// An address space: the GPA of its root. Tables are made on demand and live for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace(pub u64);

impl AddressSpace {
    /// The one in use.
    pub fn current() -> Self {
        Self(current_root())
    }

    /// A new one: the upper half of the current one, and an empty lower half.
    pub fn new() -> Self {
        let root = alloc_frame();
        let (from, to) = (gpa_to_ptr::<u64>(current_root()), gpa_to_ptr::<u64>(root));
        // SAFETY: both are frames of 512 entries, and `to` is ours alone.
        unsafe { from.add(256).copy_to_nonoverlapping(to.add(256), 256) };
        Self(root)
    }

    /// Makes it the current one; nothing is cached of its user half afterwards.
    pub fn activate(self) {
        assert_eq!(hypercall::write_cr3(self.0), 0, "WRITE_CR3");
    }

    /// The entry that maps `gva`, in the table of `level` (1: 4 KiB pages, 2: 2 MiB); tables above it are made, present,
    /// writable and for user mode, when missing.
    pub fn entry(self, gva: u64, level: u32) -> *mut u64 {
        let mut table = self.0;
        for above in (level + 1..=4).rev() {
            let slot = slot(table, gva, above);
            // SAFETY: `slot` is an entry of one of our tables.
            unsafe {
                if slot.read_volatile() & PRESENT == 0 {
                    slot.write_volatile(alloc_frame() | PRESENT | WRITE | USER | ACCESSED);
                }
                assert_eq!(
                    slot.read_volatile() & LARGE,
                    0,
                    "{gva:#x} is in a large page"
                );
                table = slot.read_volatile() & ADDRESS;
            }
        }
        slot(table, gva, level)
    }

    /// Maps the page at `gva` to the frame at `gpa`; `flags` are those of [`pte`] beside PRESENT. No flush.
    pub fn map(self, gva: u64, gpa: u64, flags: u64) {
        // SAFETY: an entry of our own tables; what it maps is the caller's choice, as in every kernel.
        unsafe { self.entry(gva, 1).write_volatile(gpa | flags | PRESENT) };
    }

    /// Maps 2 MiB at `gva`.
    pub fn map_large(self, gva: u64, gpa: u64, flags: u64) {
        // SAFETY: as in `map`.
        unsafe {
            self.entry(gva, 2)
                .write_volatile(gpa | flags | PRESENT | LARGE)
        };
    }

    /// Maps a fresh frame at `gva` for user mode, writable and executable, and returns its GPA.
    pub fn map_new_user(self, gva: u64) -> u64 {
        let frame = alloc_frame();
        self.map(gva, frame, WRITE | USER);
        frame
    }

    /// Takes the page at `gva` out of the tables. No flush.
    pub fn unmap(self, gva: u64) {
        // SAFETY: as in `map`.
        unsafe { self.entry(gva, 1).write_volatile(0) };
    }

    /// The accessed and dirty bits of the page at `gva`.
    pub fn accessed_dirty(self, gva: u64) -> (bool, bool) {
        // SAFETY: as in `map`.
        let entry = unsafe { self.entry(gva, 1).read_volatile() };
        (entry & ACCESSED != 0, entry & DIRTY != 0)
    }
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self::new()
    }
}

/// The entry for `gva` in the table at GPA `table`.
fn slot(table: u64, gva: u64, level: u32) -> *mut u64 {
    let index = (gva >> (12 + 9 * (level - 1))) & 511;
    gpa_to_ptr(table + index * 8)
}
