// SPDX-License-Identifier: GPL-2.0

use xen_core::page_table::bit::{ACCESSED, DIRTY, PRESENT, USER, WRITE};
use xen_core::page_table::{
    index, is_canonical, preserve_accessed_dirty, still_right, with_writable_tables, Roots,
};

const FRAME: u64 = 0x1234_5000;
const NX: u64 = 1 << 63;

#[test]
fn indices() {
    assert_eq!(index(0xffff_8000_0000_0000, 4), 256);
    assert_eq!(index(0xffff_ffff_8100_0000, 4), 511);
    assert_eq!(index(0xffff_ffff_8100_0000, 3), 510);
    assert_eq!(index(0xffff_ffff_8100_0000, 2), 8);
    assert_eq!(index(0x7000, 1), 7);
}

#[test]
fn canonical_addresses() {
    assert!(is_canonical(0) && is_canonical((1 << 47) - 1) && is_canonical(!0 << 47));
    assert!(!is_canonical(1 << 47) && !is_canonical(1 << 63));
}

#[test]
fn pages_of_the_kernel_that_are_to_be_read_only_are_not() {
    assert_eq!(
        with_writable_tables(FRAME | PRESENT | NX),
        FRAME | PRESENT | WRITE | NX
    );
    for as_it_is in [
        FRAME | PRESENT | USER,
        FRAME,
        0,
        FRAME | PRESENT | WRITE | USER,
    ] {
        assert_eq!(with_writable_tables(as_it_is), as_it_is);
    }
}

#[test]
fn what_needs_no_flush() {
    let old = FRAME | PRESENT | NX;
    for new in [old, old | WRITE, old | ACCESSED | DIRTY] {
        assert!(still_right(old, new), "{new:#x}");
    }
    assert!(still_right(0, old));
    assert!(still_right(old | ACCESSED | DIRTY, old));
    for (old, new) in [
        (old | WRITE, old),
        (old, 0),
        (old, old + 0x1000),
        (FRAME | PRESENT, old),
        (FRAME | PRESENT | USER, FRAME | PRESENT),
    ] {
        assert!(!still_right(old, new), "{old:#x} {new:#x}");
    }
}

#[test]
fn accessed_and_dirty_bits_are_kept() {
    assert_eq!(
        preserve_accessed_dirty(FRAME | PRESENT | WRITE | DIRTY, FRAME | PRESENT),
        FRAME | PRESENT | DIRTY
    );
    assert_eq!(preserve_accessed_dirty(0, ACCESSED), ACCESSED);
}

#[test]
fn a_root_goes_away_once_and_a_table_that_was_none_never() {
    let roots = Roots::new();
    roots.loaded(0x1234);
    roots.loaded(0x1235);
    for none in [0, 0x1233, 0x1234 + 256] {
        assert!(!roots.take(none), "{none:#x}");
    }
    assert!(roots.take(0x1234) && !roots.take(0x1234));
    // Where two have one place, the later is known.
    roots.loaded(0x1235 + 256);
    assert!(!roots.take(0x1235) && roots.take(0x1235 + 256));
}
