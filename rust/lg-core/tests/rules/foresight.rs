// SPDX-License-Identifier: GPL-2.0

//! A note says of each page what the processor would, and forgets what it may no longer say.

use crate::tables::{any_gva, any_tables, hardware, map, Outcome};
use lg_core::addr::{Gpa, Gva};
use lg_core::foresight::{Note, ABSENT, BLOCK_PAGES, READ_ONLY, READ_ONLY_SHIFT};
use lg_core::paging::{Access, P, W};
use lg_core::shadow::Flush;
use proptest::prelude::*;

const ROOT: Gpa = Gpa::new(0);
/// An address in the lower half, and the pages of its block.
const GVA: u64 = 0x1234_5678_9abc;
const FIRST: u64 = 0x1234_5678_0000;
/// A note that knows something of each page of the block, and none else.
const FULL: Note = Note {
    block: FIRST >> 16,
    pages: !0,
};
const WRITE: u64 = ABSENT as u64 | 2;

fn gva(page: u64) -> Gva {
    Gva::new(FIRST + page * 4096 + 123)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4096) })]

    /// Of loads and stores of user mode to each page of the block, those fault for want of the page or of the right to
    /// write that the note says, and no others do.
    #[test]
    fn a_note_is_what_the_processor_finds(ram in any_tables(), gva in any_gva()) {
        let gva = Gva::new(gva.get() & ((1 << 47) - 1));
        let before = ram.words();
        let note = Note::of(&ram, ROOT, gva);
        prop_assert_eq!(&ram.words(), &before, "an entry was changed");
        prop_assert_eq!(note.block, gva.get() >> 16);
        let first = gva.get() & !0xffff;
        for n in 0..BLOCK_PAGES {
            let access = |write| {
                let access = Access { write, fetch: false, user: true };
                hardware(&mut ram.words(), 0, first + n * 4096, access)
            };
            let absent = (note.pages >> n) & 1 != 0;
            let read_only = (note.pages >> (READ_ONLY_SHIFT as u64 + n)) & 1 != 0;
            prop_assert_eq!(absent, access(false) == Outcome::Fault(ABSENT), "page {}", n);
            prop_assert_eq!(read_only, access(true) == Outcome::Fault(READ_ONLY), "page {}", n);
        }
    }

    /// Whatever is flushed: those pages of the block are crossed out, and no others.
    #[test]
    fn a_flush_crosses_out_its_pages(first in -40i64..40, count in 0usize..64) {
        let first = (FIRST >> 12).wrapping_add_signed(first);
        let mut note = FULL;
        note.flush(Flush::Pages(Gva::new((first << 12) | 5), count));
        for n in 0..BLOCK_PAGES {
            let flushed = (first..first + count as u64).contains(&((FIRST >> 12) + n));
            let left = (note.pages >> n) & 0x1_0001;
            prop_assert_eq!(left, if flushed { 0 } else { 0x1_0001 }, "page {}", n);
        }
    }
}

/// The random tables have few pages beside each other; here are some of each kind.
#[test]
fn a_note_tells_pages_apart() {
    let mapped = map(FIRST, 0x8000, 1);
    let at = mapped.entries[3];
    mapped.ram.set(at + 8, 0x8000 | P | 4);
    mapped.ram.set(at + 9 * 8, 0x8000 | P | W | 4);
    mapped.ram.set(at + 15 * 8, 0x8000 | P | 4 | (1 << 50));
    let note = |mapped: &crate::tables::Mapped| Note::of(&mapped.ram, ROOT, Gva::new(GVA));
    let expected = Note {
        block: FIRST >> 16,
        pages: (1 << 17) | 0x7dfc,
    };
    assert_eq!(note(&mapped), expected);
    // What is above forbids as well.
    mapped.clear(1, W);
    assert_eq!(note(&mapped).pages, (0x203 << 16) | 0x7dfc);
    mapped.clear(2, P);
    assert_eq!(note(&mapped).pages, 0xffff);
    // A table that is not RAM is no reason to say anything.
    mapped.set(2, P | (1 << 40));
    assert_eq!(note(&mapped).pages, 0);
}

#[test]
fn a_fault_is_taken_once() {
    for n in 0..BLOCK_PAGES {
        for code in [ABSENT.into(), WRITE, READ_ONLY.into()] {
            let mut note = FULL;
            assert!(note.take(code, gva(n)));
            assert!(!note.take(code, gva(n)));
            assert_eq!(note.pages.count_zeros(), 1);
        }
    }
}

#[test]
fn other_faults_are_the_hosts() {
    for code in 0..=u64::from(u16::MAX) {
        let known = [ABSENT.into(), WRITE, READ_ONLY.into()].contains(&code);
        assert_eq!({ FULL }.take(code, gva(3)), known, "{code:#x}");
        assert!(!{ FULL }.take(code | (1 << 32), gva(3)));
    }
    for away in [16 * 4096, 1 << 47, 0xffff << 48] {
        let mut note = FULL;
        assert!(!note.take(WRITE, Gva::new(gva(3).get() ^ away)));
        assert_eq!(note, FULL);
    }
    // Nothing is known in the beginning, of the first block neither.
    assert!(!Note::default().take(WRITE, Gva::new(0)));
}

#[test]
fn what_was_given_is_crossed_out_and_no_more() {
    let mut note = FULL;
    note.cross_out(Gva::new(gva(5).get() ^ (1 << 40)));
    assert_eq!(note, FULL);
    note.cross_out(gva(5));
    assert_eq!(note.pages, !0x20_0020);
    note.flush(Flush::Page(gva(6)));
    assert_eq!(note.pages, !0x60_0060);
    for all in [Flush::Lower, Flush::All] {
        let mut note = FULL;
        note.flush(all);
        assert_eq!(note, Note::default());
    }
}
