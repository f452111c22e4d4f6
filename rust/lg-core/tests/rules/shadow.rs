// SPDX-License-Identifier: GPL-2.0

use crate::tables::{accesses, any_access, any_gva, any_tables, map};
use lg_core::addr::{Gpa, Gva, Hpa};
use lg_core::paging::{walk, walk_quiet, Access, A, D, G, NX, P, PCD, PS, PWT, U, W};
use lg_core::shadow::{half, leaf, permits, Half};
use proptest::prelude::*;

const ROOT: Gpa = Gpa::new(0);
const PAGE: Hpa = Hpa::new(0x1_2345_6000);

#[test]
fn halves_meet_at_bit_47() {
    assert_eq!(half(Gva::new(0)), Half::User);
    assert_eq!(half(Gva::new(0x0000_7fff_ffff_ffff)), Half::User);
    assert_eq!(half(Gva::new(0xffff_8000_0000_0000)), Half::Kernel);
    assert_eq!(half(Gva::new(u64::MAX)), Half::Kernel);
}

/// Word for word what the processor will read.
#[test]
fn entries_are_these() {
    let user = 0x0000_1234_5678_9000;
    let kernel = 0xffff_9234_5678_9000;
    let always = PAGE.get() | P | U | A | D;
    for (gva, guest, tables, expected) in [
        (user, W | U | D, Half::User, Some(always | W)),
        (user, W | U, Half::User, Some(always)),
        (user, U | D, Half::User, Some(always)),
        (user, W | U | D | NX, Half::User, Some(always | W | NX)),
        (user, W | U | D, Half::Kernel, Some(always | W | NX)),
        (user, W | D, Half::User, None),
        (user, W | D, Half::Kernel, Some(always | W)),
        (kernel, W | D, Half::Kernel, Some(always | W)),
        (kernel, W | U | D, Half::Kernel, Some(always | W)),
        (kernel, W | U | D, Half::User, None),
        (kernel, NX, Half::Kernel, Some(always | NX)),
    ] {
        let mapped = map(gva, 0x8000 | D | W | U, 1);
        mapped.clear(3, W | U | D);
        mapped.set(3, guest);
        let load = Access::default();
        let t = walk(&mapped.ram, ROOT, mapped.gva, load).unwrap();
        assert_eq!(
            leaf(&t, PAGE, tables),
            expected,
            "{gva:#x} {guest:#x} {tables:?}"
        );
    }
}

#[test]
fn permissions_are_those_of_cpl_3() {
    for access in accesses() {
        let Access { write, fetch, .. } = access;
        assert!(!permits(0, access));
        assert!(!permits(U | W, access), "not present");
        assert!(!permits(P | W, access), "supervisor");
        assert!(permits(P | U | W, access));
        assert_eq!(permits(P | U, access), !write);
        assert_eq!(permits(P | U | W | NX, access), !fetch);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Once filled, the access that faulted goes through: a Guest cannot fault for ever on a page
    /// that its tables allow.
    #[test]
    fn a_fill_ends_the_fault(ram in any_tables(), gva in any_gva(), access in any_access()) {
        let Ok(t) = walk(&ram, ROOT, gva, access) else { return Ok(()) };
        let tables = if t.user { Half::User } else { Half::Kernel };
        let entry = leaf(&t, PAGE, tables);
        prop_assert!(entry.is_some_and(|entry| permits(entry, access)), "{entry:x?}");
    }

    /// The shadow never allows what the Guest's tables refuse at that moment. User mode sees user
    /// tables only; under the kernel root those have NX above them.
    #[test]
    fn the_shadow_never_allows_more(ram in any_tables(), gva in any_gva(), access in any_access()) {
        let Ok(t) = walk(&ram, ROOT, gva, access) else { return Ok(()) };
        for tables in [Half::User, Half::Kernel] {
            let Some(entry) = leaf(&t, PAGE, tables) else { continue };
            for other in accesses() {
                let reached = match (other.user, tables) {
                    (true, Half::User) => true,
                    (true, Half::Kernel) => false,
                    (false, Half::User) => !other.fetch,
                    (false, Half::Kernel) => true,
                };
                if reached && permits(entry, other) {
                    prop_assert!(walk_quiet(&ram, ROOT, gva, other).is_ok(), "{other:?} {entry:x}");
                }
            }
        }
    }

    /// A write to a clean page always faults once, so that D gets set.
    #[test]
    fn clean_pages_are_read_only(ram in any_tables(), gva in any_gva(), access in any_access()) {
        let Ok(t) = walk(&ram, ROOT, gva, access) else { return Ok(()) };
        for entry in [Half::User, Half::Kernel].into_iter().filter_map(|h| leaf(&t, PAGE, h)) {
            let guest_d = ram.get(t.pte_at.get()) & D != 0;
            prop_assert!(entry & W == 0 || guest_d);
        }
    }

    /// Whatever the Guest's entries hold, no bit of theirs but rights gets into the shadow.
    #[test]
    fn entries_have_nothing_else(
        ram in any_tables(),
        gva in any_gva(),
        access in any_access(),
        hpa: u64,
    ) {
        let Ok(t) = walk(&ram, ROOT, gva, access) else { return Ok(()) };
        let hpa = Hpa::new(hpa & 0x000f_ffff_ffff_ffff);
        for entry in [Half::User, Half::Kernel].into_iter().filter_map(|h| leaf(&t, hpa, h)) {
            prop_assert_eq!(entry & !(W | NX), hpa.page().get() | P | U | A | D);
            prop_assert_eq!(entry & (G | PS | PWT | PCD), 0);
        }
    }
}
