// SPDX-License-Identifier: GPL-2.0

//! Guest page tables for the tests: a small RAM, tables with everything wrong in them that can be,
//! and a second walker to compare with, written from the manual and without looking for speed.

use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{Access, TableMemory, A, D, NX, P, PS, U, W};
use proptest::prelude::*;
use std::cell::RefCell;

/// RAM from GPA 0 up.
#[derive(Clone, Debug)]
pub(crate) struct Ram(RefCell<Vec<u64>>);

impl Ram {
    pub(crate) fn new(pages: usize) -> Self {
        Self(RefCell::new(vec![0; pages * 512]))
    }

    pub(crate) fn set(&self, at: u64, entry: u64) {
        self.0.borrow_mut()[at as usize / 8] = entry;
    }

    pub(crate) fn get(&self, at: u64) -> u64 {
        self.0.borrow()[at as usize / 8]
    }

    pub(crate) fn words(&self) -> Vec<u64> {
        self.0.borrow().clone()
    }
}

impl TableMemory for Ram {
    fn read_pte(&self, at: Gpa) -> Option<u64> {
        assert_eq!(at.get() % 8, 0, "{at} is not aligned");
        self.0.borrow().get(at.get() as usize / 8).copied()
    }

    fn update_pte(&self, at: Gpa, old: u64, new: u64) -> bool {
        let mut words = self.0.borrow_mut();
        let word = &mut words[at.get() as usize / 8];
        let unchanged = *word == old;
        if unchanged {
            *word = new;
        }
        unchanged
    }
}

/// One address mapped by the tables in pages 0 to 3 of the RAM, PML4 first: where its entries are.
pub(crate) struct Mapped {
    pub(crate) ram: Ram,
    pub(crate) gva: Gva,
    pub(crate) entries: Vec<u64>,
}

/// Maps `gva` to `target` by an entry of `leaf_level`. All entries are present, writable, for user
/// mode and not accessed yet, and `target` goes into the last one as it is, bits and all.
pub(crate) fn map(gva: u64, target: u64, leaf_level: u8) -> Mapped {
    let ram = Ram::new(5);
    let gva = Gva::new(gva);
    let mut entries = Vec::new();
    for (table, level) in (leaf_level..=4).rev().enumerate() {
        let at = table as u64 * 4096 + gva.index(level) as u64 * 8;
        let next = (table as u64 + 1) * 4096;
        let entry = match level == leaf_level {
            true if level > 1 => target | PS,
            true => target,
            false => next,
        };
        ram.set(at, entry | P | W | U);
        entries.push(at);
    }
    Mapped { ram, gva, entries }
}

impl Mapped {
    /// Sets bits in the entry of the `nth` table, counted from the root.
    pub(crate) fn set(&self, nth: usize, bits: u64) {
        let at = self.entries[nth];
        self.ram.set(at, self.ram.get(at) | bits);
    }

    /// Clears bits there.
    pub(crate) fn clear(&self, nth: usize, bits: u64) {
        let at = self.entries[nth];
        self.ram.set(at, self.ram.get(at) & !bits);
    }
}

/// All eight kinds of access, among them the impossible fetch that writes.
pub(crate) fn accesses() -> impl Iterator<Item = Access> {
    (0..8).map(|n| Access {
        write: n & 1 != 0,
        fetch: n & 2 != 0,
        user: n & 4 != 0,
    })
}

/// The number of pages of tables that [`any_tables`] makes; the first is the root.
const PAGES: u64 = 6;
/// The indices used in each.
const INDICES: [u64; 5] = [0, 1, 255, 256, 511];

/// An entry from random bits: `dice` decides what is odd about it (nothing, when 0), `noise` fills
/// the address and the bits that the processor ignores.
fn entry(dice: u64, noise: u64) -> u64 {
    let roll = |die: u32| (dice >> (6 * die)) & 63;
    let odd = |die: u32, chance: u64, bits: u64| if roll(die) >= 64 - chance { bits } else { 0 };
    let address = match roll(0) {
        0..=57 => (noise % PAGES) << 12,
        58..=60 => noise & 0x3fff_f000,
        61..=62 => noise & 0x3fff_c000_0000,
        _ => noise & 0x000f_ffff_ffff_f000,
    };
    let rights = (P | W | U) ^ odd(1, 2, P) ^ odd(2, 5, W) ^ odd(3, 5, U) ^ odd(4, 5, NX);
    let marks = odd(5, 32, A) | odd(6, 32, D) | odd(7, 6, PS);
    address | rights | marks | noise & 0x7ff0_0000_0000_0f18
}

/// Tables that lead anywhere, also to themselves.
pub(crate) fn any_tables() -> impl Strategy<Value = Ram> {
    let bits = prop::collection::vec(any::<(u64, u64)>(), PAGES as usize * INDICES.len());
    bits.prop_map(|bits| {
        let ram = Ram::new(PAGES as usize);
        let places = (0..PAGES).flat_map(|page| INDICES.map(|index| page * 4096 + index * 8));
        for (at, (dice, noise)) in places.zip(bits) {
            ram.set(at, entry(dice, noise));
        }
        ram
    })
}

/// Addresses that [`any_tables`] has entries for, mostly.
pub(crate) fn any_gva() -> impl Strategy<Value = Gva> {
    let index = || prop_oneof![19 => prop::sample::select(&INDICES[..]), 1 => 0u64..512];
    let fields = (index(), index(), index(), index(), 0u64..4096);
    let canonical = fields.prop_map(|(a, b, c, d, offset)| {
        Gva::new((a << 39) | (b << 30) | (c << 21) | (d << 12) | offset).canonicalize()
    });
    prop_oneof![30 => canonical, 1 => any::<u64>().prop_map(Gva::new)]
}

pub(crate) fn any_access() -> impl Strategy<Value = Access> {
    (0usize..8).prop_map(|n| accesses().nth(n).unwrap())
}

/// The result of [`hardware`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Outcome {
    /// Address of the 4 KiB page; bytes of the page mapped; R/W, U/S and not XD of all entries; the
    /// D bit afterwards.
    Page(u64, u64, bool, bool, bool, bool),
    Fault(u32),
    NotCanonical,
    Outside(u64),
}

/// The processor, by the manual: SDM, "4-Level Paging and 5-Level Paging", "Access Rights",
/// "Page-Fault Exceptions", "Accessed and Dirty Flags". `ram` is changed as it would be.
pub(crate) fn hardware(ram: &mut [u64], root: u64, gva: u64, access: Access) -> Outcome {
    if gva >> 47 != 0 && gva >> 47 != 0x1_ffff {
        return Outcome::NotCanonical;
    }
    let mut code = 0;
    if access.write {
        code |= 2;
    }
    if access.user {
        code |= 4;
    }
    if access.fetch {
        code |= 16;
    }

    // Find the entries used.
    let mut used: Vec<usize> = Vec::new();
    let mut table = root;
    let mut size = 1u64 << 48;
    for (shift, reserved, reserved_if_large) in [
        (39, 0x000f_c000_0000_0080, 0),
        (30, 0x000f_c000_0000_0000, 0x3fff_e000),
        (21, 0x000f_c000_0000_0000, 0x001f_e000),
        (12, 0x000f_c000_0000_0000, 0),
    ] {
        let at = table + (gva >> shift) % 512 * 8;
        let Some(&entry) = ram.get(at as usize / 8) else {
            return Outcome::Outside(at);
        };
        if entry % 2 == 0 {
            return Outcome::Fault(code);
        }
        let large = entry & 0x80 != 0;
        if entry & reserved != 0 || large && entry & reserved_if_large != 0 {
            return Outcome::Fault(code | 1 | 8);
        }
        used.push(at as usize / 8);
        size = 1 << shift;
        if large && shift > 12 {
            break;
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }

    // Determine the rights.
    let all = |bit: u64| used.iter().all(|&i| ram[i] & bit != 0);
    let writable = all(1 << 1);
    let user_mode_address = all(1 << 2) && gva < 1 << 47; // lg: the upper half is the kernel's
    let executable = !used.iter().any(|&i| ram[i] & (1 << 63) != 0);
    let allowed = match (access.user, access.fetch) {
        // Supervisor-mode accesses with CR0.WP = 1, CR4.SMAP = 0, CR4.SMEP = 1, EFER.NXE = 1.
        (false, false) => true,
        (false, true) => !user_mode_address && executable,
        // User-mode accesses.
        (true, false) => user_mode_address,
        (true, true) => user_mode_address && executable,
    };
    if !allowed || access.write && !writable {
        return Outcome::Fault(code | 1);
    }

    // Mark the entries.
    let leaf = *used.last().unwrap();
    for i in used {
        ram[i] |= 0x20;
    }
    if access.write {
        ram[leaf] |= 0x40;
    }
    let frame = ram[leaf] & 0x000f_ffff_ffff_f000 & !(size - 1);
    let gpa = (frame + gva % size) & !4095;
    let dirty = ram[leaf] & 0x40 != 0;
    Outcome::Page(gpa, size, writable, user_mode_address, executable, dirty)
}
