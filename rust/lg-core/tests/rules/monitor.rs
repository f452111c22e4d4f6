// SPDX-License-Identifier: GPL-2.0

use lg_core::addr::{Gpa, Gva};
use lg_core::monitor::{covers, is_hypercall, root_of, Monitor};

const FIRST: u64 = 0xffff_8000_0000_0000;
const CODE: u64 = 0xffff_8700_0000_0000;
const BEHIND: u64 = 0xffff_8780_0000_0000;

#[test]
fn its_slots_are_those_of_the_contract() {
    for (gva, its) in [
        (FIRST, true),
        (CODE, true),
        (BEHIND - 1, true),
        (BEHIND, false),
        (FIRST - 1, false),
        (u64::MAX, false),
        (0, false),
        // The same index, but not canonical, or of the lower half.
        (FIRST & ((1 << 48) - 1), false),
        (FIRST ^ (1 << 63), false),
    ] {
        assert_eq!(covers(Gva::new(gva)), its, "{gva:#x}");
    }
}

#[test]
fn a_monitor_is_entered_in_its_slots_and_has_an_aligned_root() {
    let new = |entry, root| Monitor::new(Gva::new(entry), Gpa::new(root));
    let monitor = new(CODE, 0x1000).unwrap();
    assert_eq!(
        (monitor.entry().get(), monitor.root().get()),
        (CODE, 0x1000)
    );
    assert!(new(FIRST, 0).is_some());
    for (entry, root) in [(CODE, 0x1001), (CODE, 8), (BEHIND, 0x1000), (0, 0x1000)] {
        assert!(new(entry, root).is_none(), "{entry:#x}, {root:#x}");
    }
}

#[test]
fn hypercalls_come_from_the_slot_of_its_code() {
    for (rip, its) in [
        (CODE, true),
        (CODE + 2, true),
        (BEHIND - 1, true),
        (BEHIND, false),
        (CODE - 1, false),
        (FIRST, false),
        (CODE & ((1 << 48) - 1), false),
        (0xffff_ffff_8100_0000, false),
        (0, false),
    ] {
        assert_eq!(is_hypercall(rip), its, "{rip:#x}");
    }
}

#[test]
fn its_root_is_for_kernel_mode_and_its_slots() {
    let monitor = Monitor::new(Gva::new(CODE), Gpa::new(0x5000)).unwrap();
    let root = |monitor, gva, user| root_of(monitor, Gpa::new(0x1000), Gva::new(gva), user).get();
    assert_eq!(root(Some(&monitor), FIRST, false), 0x5000);
    assert_eq!(root(Some(&monitor), FIRST, true), 0x1000);
    assert_eq!(root(Some(&monitor), BEHIND, false), 0x1000);
    assert_eq!(root(None, FIRST, false), 0x1000);
}
