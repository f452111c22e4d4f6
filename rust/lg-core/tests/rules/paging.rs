// SPDX-License-Identifier: GPL-2.0

use crate::tables::{
    accesses, any_access, any_gva, any_tables, hardware, map, Mapped, Outcome, Ram,
};
use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{
    walk, walk_quiet, Access, PageSize, TableMemory, Translation, WalkError, A, D, G, NX, P, PCD,
    PS, PWT, U, W,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::cell::Cell;

const ROOT: Gpa = Gpa::new(0);
const LOAD: Access = Access {
    write: false,
    fetch: false,
    user: false,
};
const STORE: Access = Access {
    write: true,
    ..LOAD
};
const FETCH: Access = Access {
    fetch: true,
    ..LOAD
};
const USER_LOAD: Access = Access { user: true, ..LOAD };

/// In the lower half, with different indices at every level.
const LOWER: u64 = 0x0000_1234_5678_9abc;
/// The same in the upper half.
const UPPER: u64 = 0xffff_9234_5678_9abc;

impl Mapped {
    fn walk(&self, access: Access) -> Result<Translation, WalkError> {
        walk(&self.ram, ROOT, self.gva, access)
    }
}

/// SDM, "Page-Fault Exceptions", bit by bit.
fn code(present: bool, access: Access) -> u32 {
    u32::from(present)
        | (u32::from(access.write) << 1)
        | (u32::from(access.user) << 2)
        | (u32::from(access.fetch) << 4)
}

/// SDM, "4-Level Paging and 5-Level Paging": the frame's bits come from the last entry, those
/// below from the linear address.
#[test]
fn pages_of_every_size_translate() {
    for (level, size, target, gpa) in [
        (1, PageSize::Size4K, 0x7_6543_2000, 0x7_6543_2000),
        (2, PageSize::Size2M, 0x7_6540_0000, 0x7_6558_9000),
        (3, PageSize::Size1G, 0x7_4000_0000, 0x7_5678_9000),
    ] {
        let mapped = map(LOWER, target, level);
        let t = mapped.walk(LOAD).unwrap();
        let expected = target | (LOWER & (size.bytes() - 1) & !0xfff);
        assert_eq!(t.gpa.get(), expected, "{size:?}");
        assert_eq!(expected, gpa);
        assert_eq!(t.size, size);
        assert_eq!(t.pte_at.get(), *mapped.entries.last().unwrap());
        assert_eq!(
            (t.writable, t.user, t.executable, t.dirty),
            (true, true, true, false)
        );
    }
}

/// Bits 11:0 of CR3 hold no part of the address (SDM, "4-Level Paging", table "Use of CR3").
#[test]
fn low_bits_of_the_root_are_ignored() {
    let mapped = map(LOWER, 0x8000, 1);
    let t = walk(&mapped.ram, Gpa::new(0xfff), mapped.gva, LOAD);
    assert_eq!(t.map(|t| t.gpa), Ok(Gpa::new(0x8000)));
}

/// "P flag: 0 if the fault was caused by a not-present page", at whatever level, and even if an
/// entry above forbids the access.
#[test]
fn a_missing_entry_at_any_level_is_not_present() {
    for missing in 0..4 {
        for access in accesses() {
            let mapped = map(LOWER, 0x8000, 1);
            mapped.clear(missing, P);
            if missing > 0 {
                mapped.clear(0, U | W);
                mapped.set(0, NX);
            }
            let fault = WalkError::Fault(code(false, access));
            assert_eq!(mapped.walk(access), Err(fault), "level {}", 4 - missing);
        }
    }
}

/// SDM, "Determination of Access Rights": the whole matrix of one entry's W, U and NX, at each
/// level, against each access, for each half of the address space.
#[test]
fn rights_are_the_conjunction_of_all_levels() {
    for gva in [LOWER, UPPER] {
        for level in 0..4 {
            for rights in 0..8u32 {
                let (writable, user, executable) =
                    (rights & 1 != 0, rights & 2 != 0, rights & 4 != 0);
                let user = user && gva == LOWER;
                for access in accesses() {
                    let mapped = map(gva, 0x8000, 1);
                    if rights & 1 == 0 {
                        mapped.clear(level, W);
                    }
                    if rights & 2 == 0 {
                        mapped.clear(level, U);
                    }
                    if rights & 4 == 0 {
                        mapped.set(level, NX);
                    }
                    let refused = access.write && !writable
                        || access.fetch && !executable
                        || access.user && !user
                        || access.fetch && !access.user && user; // SMEP
                    let before = mapped.ram.words();
                    match mapped.walk(access) {
                        Err(error) => {
                            assert!(refused, "{access:?} {rights:#b} refused");
                            assert_eq!(error, WalkError::Fault(code(true, access)));
                            assert_eq!(mapped.ram.words(), before, "marked after a refusal");
                        }
                        Ok(t) => {
                            assert!(!refused, "{access:?} {rights:#b} allowed");
                            assert_eq!(
                                (t.writable, t.user, t.executable),
                                (writable, user, executable)
                            );
                        }
                    }
                }
            }
        }
    }
}

/// The bits that must be 0, by level and kind (SDM, "4-Level Paging and 5-Level Paging", the
/// formats of the entries), one by one; every other bit changes nothing.
#[test]
fn reserved_bits_fault_and_others_do_not() {
    for (leaf_level, target) in [(1, 0x8000), (2, 0), (3, 0)] {
        for nth in 0..5 - usize::from(leaf_level) {
            let level = 4 - nth as u8;
            let is_large = level == leaf_level && level > 1;
            for bit in 0..64 {
                if bit == 7 && (2..=3).contains(&level) {
                    continue; // makes the entry one of the other kind
                }
                let reserved = match bit {
                    46..=51 => true,
                    7 => level == 4,
                    13..=20 => is_large,
                    21..=29 => is_large && level == 3,
                    _ => false,
                };
                let mapped = map(LOWER, target, leaf_level);
                mapped.set(nth, 1 << bit);
                let outcome = mapped.walk(USER_LOAD);
                let fault = Err(WalkError::Fault(0b1101));
                assert_eq!(
                    outcome == fault,
                    reserved,
                    "bit {bit} at level {level}: {outcome:?}"
                );
            }
        }
    }
}

/// A reserved bit in an entry that is not present is nobody's business: Linux inverts the address
/// bits there, against L1TF.
#[test]
fn reserved_bits_count_only_when_present() {
    let mapped = map(LOWER, 0x000f_ffff_ffff_8000, 1);
    mapped.clear(3, P);
    assert_eq!(mapped.walk(USER_LOAD), Err(WalkError::Fault(0b0100)));
}

/// SDM, "Accessed and Dirty Flags": A in all entries used, D in the last one on a write.
#[test]
fn loads_mark_accessed_and_stores_dirty() {
    for leaf_level in 1..=3 {
        for access in [LOAD, STORE, USER_LOAD] {
            let mapped = map(LOWER, 0, leaf_level);
            let before: Vec<u64> = mapped
                .entries
                .iter()
                .map(|&at| mapped.ram.get(at))
                .collect();
            let t = mapped.walk(access).unwrap();
            assert_eq!(t.dirty, access.write);
            for (i, (&at, before)) in mapped.entries.iter().zip(&before).enumerate() {
                let last = i + 1 == mapped.entries.len();
                let dirty = if last && access.write { D } else { 0 };
                assert_eq!(mapped.ram.get(at), before | A | dirty);
            }
        }
    }
}

#[test]
fn quiet_walks_change_nothing_and_find_the_same() {
    let mapped = map(LOWER, 0x8000, 1);
    let before = mapped.ram.words();
    let quiet = walk_quiet(&mapped.ram, ROOT, mapped.gva, LOAD);
    assert_eq!(mapped.ram.words(), before);
    assert_eq!(quiet, mapped.walk(LOAD));
}

/// Entries that have their bits already are not written again: no cache line goes back and forth.
#[test]
fn marked_entries_are_left_alone() {
    struct NoUpdate<'a>(&'a Ram);
    impl TableMemory for NoUpdate<'_> {
        fn read_pte(&self, at: Gpa) -> Option<u64> {
            self.0.read_pte(at)
        }
        fn update_pte(&self, at: Gpa, _: u64, _: u64) -> bool {
            panic!("{at} was written");
        }
    }
    let mapped = map(LOWER, 0x8000, 1);
    let first = mapped.walk(STORE);
    assert_eq!(walk(&NoUpdate(&mapped.ram), ROOT, mapped.gva, STORE), first);
}

/// The upper half is the Guest kernel's, also where the Guest's tables say U.
#[test]
fn user_mode_has_no_upper_half() {
    let mapped = map(UPPER, 0x8000, 1);
    assert_eq!(mapped.walk(USER_LOAD), Err(WalkError::Fault(0b0101)));
    assert_eq!(mapped.walk(FETCH).map(|t| t.user), Ok(false));
}

#[test]
fn addresses_that_are_not_canonical_reach_no_table() {
    let ram = Ram::new(0);
    for raw in [
        1 << 47,
        0xffff_7fff_ffff_ffff,
        1 << 56,
        0xff00_0000_0000_0000,
    ] {
        let result = walk(&ram, ROOT, Gva::new(raw), LOAD);
        assert_eq!(result, Err(WalkError::NotCanonical));
    }
}

#[test]
fn tables_outside_ram_are_named() {
    let result = walk(&Ram::new(0), Gpa::new(0x5000), Gva::new(8 << 39), LOAD);
    assert_eq!(result, Err(WalkError::TableOutside(Gpa::new(0x5040))));

    for nth in 0..3 {
        let mapped = map(LOWER, 0x8000, 1);
        mapped.set(nth, 0x3fff_0000_0000);
        let Err(WalkError::TableOutside(at)) = mapped.walk(LOAD) else {
            panic!("level {} leads outside", 4 - nth);
        };
        assert_eq!(at.page().get() & 0x3fff_0000_0000, 0x3fff_0000_0000);
    }
}

/// A page outside RAM is none of the walk's business: it may be a device.
#[test]
fn a_page_need_not_be_ram() {
    let mapped = map(LOWER, 0xd000_0000, 1);
    assert_eq!(mapped.walk(STORE).map(|t| t.gpa), Ok(Gpa::new(0xd000_0000)));
}

/// The recursive mapping: one entry serves at all four levels, and is the page's as well.
#[test]
fn a_table_may_map_itself() {
    let ram = Ram::new(1);
    ram.set(0xff8, P | W);
    let t = walk(&ram, ROOT, Gva::new(u64::MAX), STORE).unwrap();
    assert_eq!((t.gpa, t.dirty), (ROOT, true));
    assert_eq!(ram.get(0xff8), P | W | A | D);
}

/// RAM whose entries another processor changes right before they are marked.
struct Raced<'a, F: Fn(&Ram, Gpa)> {
    ram: &'a Ram,
    races: Cell<u32>,
    change: F,
}

impl<F: Fn(&Ram, Gpa)> TableMemory for Raced<'_, F> {
    fn read_pte(&self, at: Gpa) -> Option<u64> {
        self.ram.read_pte(at)
    }

    fn update_pte(&self, at: Gpa, old: u64, new: u64) -> bool {
        if let Some(left) = self.races.get().checked_sub(1) {
            self.races.set(left);
            (self.change)(self.ram, at);
        }
        self.ram.update_pte(at, old, new)
    }
}

#[test]
fn a_lost_race_is_run_again() {
    let mapped = map(LOWER, 0x8000, 1);
    // The other processor remaps the page, so that the walk must not answer with the old one.
    let raced = Raced {
        ram: &mapped.ram,
        races: Cell::new(1),
        change: |ram: &Ram, _| ram.set(mapped.entries[3], 0x9000 | P | W | U),
    };
    mapped.set(0, A);
    mapped.set(1, A);
    mapped.set(2, A);
    let t = walk(&raced, ROOT, mapped.gva, STORE).unwrap();
    assert_eq!(t.gpa, Gpa::new(0x9000));
    assert_eq!(
        mapped.ram.get(mapped.entries[3]),
        0x9000 | P | W | U | A | D
    );
}

/// Write protection that arrives in the middle wins, and the page does not become dirty.
#[test]
fn a_race_with_write_protection_ends_in_a_fault() {
    let mapped = map(LOWER, 0x8000, 1);
    let raced = Raced {
        ram: &mapped.ram,
        races: Cell::new(4),
        change: |ram: &Ram, _| ram.set(mapped.entries[3], 0x8000 | P | U),
    };
    assert_eq!(
        walk(&raced, ROOT, mapped.gva, STORE),
        Err(WalkError::Fault(0b0011))
    );
    assert_eq!(mapped.ram.get(mapped.entries[3]) & D, 0);
}

/// A Guest that changes its tables for ever holds the Host up for a bounded time.
#[test]
fn an_endless_race_is_given_up() {
    let mapped = map(LOWER, 0x8000, 1);
    let raced = Raced {
        ram: &mapped.ram,
        races: Cell::new(u32::MAX),
        change: |ram: &Ram, at: Gpa| ram.set(at.get(), ram.get(at.get()) ^ (1 << 9)),
    };
    assert_eq!(
        walk(&raced, ROOT, mapped.gva, STORE),
        Err(WalkError::Contended)
    );
    assert!(u32::MAX - raced.races.get() < 100);
}

/// Fault-around in a large page needs no memory at all.
#[test]
fn neighbours_in_a_large_page_are_known() {
    for (level, size) in [(2, PageSize::Size2M), (3, PageSize::Size1G)] {
        let mapped = map(LOWER, 0x4000_0000, level);
        let t = mapped.walk(STORE).unwrap();
        let (first, last) = (LOWER & !(size.bytes() - 1), LOWER | (size.bytes() - 1));
        for other in [first, LOWER, last] {
            let quiet = walk_quiet(&mapped.ram, ROOT, Gva::new(other), LOAD).unwrap();
            assert_eq!(
                t.region(mapped.gva)
                    .pages(&Ram::new(0))
                    .and_then(|page| page(Gva::new(other))),
                Some(quiet)
            );
        }
        for other in [first - 1, last + 1, LOWER ^ size.bytes()] {
            assert_eq!(
                t.region(mapped.gva)
                    .pages(&mapped.ram)
                    .and_then(|page| page(Gva::new(other))),
                None
            );
        }
    }
}

/// One page table covers 2 MiB; what lies beyond takes a walk of its own.
#[test]
fn neighbours_share_a_page_table() {
    let mapped = map(LOWER, 0x8000, 1);
    let t = mapped.walk(LOAD).unwrap();
    // Every entry of the page table is good.
    let table = mapped.entries[3] & !0xfff;
    (0..512).for_each(|i| mapped.ram.set(table + i * 8, 0x9000 | P | A));
    let first = LOWER & !0x1f_ffff;
    for (other, known) in [
        (first, true),
        (first + 0x1f_ffff, true),
        (first - 1, false),
        (first + 0x20_0000, false),
        (LOWER ^ 0x20_0000, false),
        (LOWER ^ (1 << 46), false),
    ] {
        let found = t
            .region(mapped.gva)
            .pages(&mapped.ram)
            .and_then(|page| page(Gva::new(other)));
        assert_eq!(found.is_some(), known, "{other:#x}");
    }
}

/// An entry that was never accessed must fault first, or the Guest would not see it used.
#[test]
fn neighbours_are_taken_only_if_accessed() {
    let mapped = map(LOWER, 0x8000, 1);
    let other = Gva::new(LOWER + 4096);
    let at = mapped.entries[3] + 8;
    let t = mapped.walk(LOAD).unwrap();
    for (entry, accepted) in [
        (0, false),
        (0x9000 | P, false),
        (0x9000 | A, false),
        (0x9000 | P | A | (1 << 50), false),
        (0x9000 | P | A, true),
    ] {
        mapped.ram.set(at, entry);
        let before = mapped.ram.words();
        let found = t
            .region(mapped.gva)
            .pages(&mapped.ram)
            .and_then(|page| page(other));
        assert_eq!(found.is_some(), accepted, "{entry:#x}");
        assert_eq!(mapped.ram.words(), before);
    }
}

#[test]
fn error_codes_of_the_hardware_become_accesses() {
    for access in accesses() {
        // To the processor all of it is user mode.
        let hardware = code(true, access) | 0b100;
        assert_eq!(Access::from_error_code(hardware, access.user), access);
    }
}

/// The bits this module has names for (SDM, "Format of a Page-Table Entry that Maps a 4-KByte
/// Page").
#[test]
fn the_named_bits_are_where_the_manual_has_them() {
    let bits = [P, W, U, PWT, PCD, A, D, PS, G];
    assert!(bits
        .into_iter()
        .enumerate()
        .all(|(bit, mask)| mask == 1 << bit));
    assert_eq!(NX, 1 << 63);
}

fn outcome(result: Result<Translation, WalkError>) -> Outcome {
    match result {
        Ok(t) => Outcome::Page(
            t.gpa.get(),
            t.size.bytes(),
            t.writable,
            t.user,
            t.executable,
            t.dirty,
        ),
        Err(WalkError::Fault(code)) => Outcome::Fault(code),
        Err(WalkError::NotCanonical) => Outcome::NotCanonical,
        Err(WalkError::TableOutside(at)) => Outcome::Outside(at.get()),
        Err(WalkError::Contended) => unreachable!("there is one processor"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Both walkers agree on the result and on every bit of memory afterwards.
    #[test]
    fn walks_like_the_manual(ram in any_tables(), gva in any_gva(), access in any_access()) {
        let mut words = ram.words();
        let expected = hardware(&mut words, 0, gva.get(), access);
        prop_assert_eq!(outcome(walk(&ram, ROOT, gva, access)), expected);
        prop_assert_eq!(ram.words(), words);
    }

    /// The neighbours found beside a page are what a walk there finds.
    #[test]
    fn neighbours_are_what_a_walk_finds(
        ram in any_tables(),
        gva in any_gva(),
        access in any_access(),
        distance in -512i64..512,
    ) {
        let Ok(t) = walk(&ram, ROOT, gva, access) else { return Ok(()) };
        let other = Gva::new(gva.get().wrapping_add_signed(distance * 4096));
        let quiet = walk_quiet(&ram, ROOT, other, LOAD);
        let before = ram.words();
        if let Some(found) = t.region(gva).pages(&ram).and_then(|page| page(other)) {
            prop_assert_eq!(Ok(found), quiet);
        }
        prop_assert_eq!(ram.words(), before);
    }
}

/// The property above would mean little if all its walks ended alike.
#[test]
fn random_tables_lead_to_every_outcome() {
    let mut runner = TestRunner::deterministic();
    let mut seen = [0; 8];
    for _ in 0..4096 {
        let case = (any_tables(), any_gva(), any_access());
        let (ram, gva, access) = case.new_tree(&mut runner).unwrap().current();
        let kind = match hardware(&mut ram.words(), 0, gva.get(), access) {
            Outcome::Page(_, 0x1000, ..) => 0,
            Outcome::Page(_, 0x20_0000, ..) => 1,
            Outcome::Page(..) => 2,
            Outcome::Fault(code) if code & 8 != 0 => 3,
            Outcome::Fault(code) if code & 1 != 0 => 4,
            Outcome::Fault(_) => 5,
            Outcome::NotCanonical => 6,
            Outcome::Outside(_) => 7,
        };
        seen[kind] += 1;
    }
    assert!(seen.iter().all(|&count| count > 20), "{seen:?}");
}
