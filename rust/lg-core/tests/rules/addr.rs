// SPDX-License-Identifier: GPL-2.0

use lg_core::addr::{Gpa, Gva, Hpa, PAGE_SIZE, TABLE_ENTRIES};
use proptest::prelude::*;

/// SDM, "Canonical Addressing": bits 63:48 repeat bit 47.
#[test]
fn canonical_addresses_end_at_bit_47() {
    for (raw, canonical, upper) in [
        (0, true, false),
        (0x0000_7fff_ffff_ffff, true, false),
        (0x0000_8000_0000_0000, false, false),
        (0x00ff_ffff_ffff_ffff, false, false), // canonical with 57 bits
        (0xff00_0000_0000_0000, false, false), // likewise
        (0xffff_7fff_ffff_ffff, false, false),
        (0xffff_8000_0000_0000, true, true),
        (u64::MAX, true, true),
    ] {
        let gva = Gva::new(raw);
        assert_eq!(gva.is_canonical(), canonical, "{gva}");
        assert_eq!(gva.is_upper(), upper, "{gva}");
    }
}

/// SDM, "Paging", the linear address of 4-level paging: bits 47:39, 38:30, 29:21, 20:12, 11:0.
#[test]
fn indices_are_the_nine_bit_fields() {
    let gva = Gva::new(0x0123_4567_89ab_cdef);
    let fields = (1..=5)
        .rev()
        .fold(0, |sum, level| (sum << 9) | gva.index(level) as u64);
    assert_eq!((fields << 12) | gva.offset(), gva.get() & ((1 << 57) - 1));
}

#[test]
fn display_is_hexadecimal() {
    assert_eq!(Gpa::new(0xd000_0000).to_string(), "0xd0000000");
    assert_eq!(Hpa::new(0).to_string(), "0x0");
}

proptest! {
    #[test]
    fn canonicalize_changes_nothing_but_the_unused_bits(raw: u64) {
        let gva = Gva::new(raw);
        let fixed = gva.canonicalize();
        prop_assert!(fixed.is_canonical());
        prop_assert_eq!(fixed.get() << 16, raw << 16);
        prop_assert_eq!(gva.is_canonical(), fixed == gva);
    }

    #[test]
    fn page_and_offset_make_the_address(raw: u64) {
        let gpa = Gpa::new(raw);
        prop_assert_eq!(gpa.page().get() + gpa.offset(), raw);
        prop_assert_eq!(gpa.gfn() * PAGE_SIZE, gpa.page().get());
        prop_assert_eq!(gpa.checked_add(1).map(Gpa::get), raw.checked_add(1));
    }

    /// Any level: the result indexes a table without a check.
    #[test]
    fn no_index_leaves_the_table(raw: u64, level: u8) {
        prop_assert!(Gva::new(raw).index(level) < TABLE_ENTRIES);
    }
}
