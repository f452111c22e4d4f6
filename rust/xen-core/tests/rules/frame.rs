// SPDX-License-Identifier: GPL-2.0

use xen_core::frame::{masks_events, rflags, shown, target, BadFrame, Target, IF, RFLAGS, TF};

const SS: u64 = 0x2b;

#[test]
fn selectors() {
    let rip = 0x1000;
    for kernel in [0, 0x10, 0xe030, 0x31, 0x32] {
        assert_eq!(target(kernel, rip, SS), Ok(Target::Kernel), "{kernel:#x}");
    }
    for (cs, user) in [(0x33, 0x33), (0xe033, 0x33), (0x23, 0x23), (0xe023, 0x23)] {
        assert_eq!(target(cs, rip, SS), Ok(Target::User(user)), "{cs:#x}");
    }
    for cs in [3, 0x13, 0x2b, 0x63, 0xffff] {
        assert_eq!(target(cs, rip, SS), Err(BadFrame), "{cs:#x}");
    }
}

#[test]
fn a_program_has_a_stack() {
    for cs in [0x23, 0x33] {
        for ss in [0x2b, 0xe02b, 0x63, 0x6b, 0x73, 0xffff_0000_002b] {
            assert_eq!(
                target(cs, 0x1000, ss),
                Ok(Target::User(cs as u16)),
                "{ss:#x}"
            );
        }
        // Null, the code's own, of an LDT, the CPU's number, the kernel's.
        for ss in [0, 3, 0x23, 0x33, 0x2f, 0x7b, 0x18, 0x28, 0xffff] {
            assert_eq!(target(cs, 0x1000, ss), Err(BadFrame), "{ss:#x}");
        }
    }
    assert_eq!(target(0x10, 0x1000, 0), Ok(Target::Kernel));
}

#[test]
fn the_old_mask_beside_the_selector_does_not_matter() {
    assert_eq!(target(0x01_0000_0033, 0x1000, SS), Ok(Target::User(0x33)));
    assert_eq!(target(0xff_0000_e030, 0x1000, SS), Ok(Target::Kernel));
}

#[test]
fn addresses() {
    let edge = 1 << 47;
    assert_eq!(target(0x33, edge - 1, SS), Ok(Target::User(0x33)));
    for (cs, rip) in [
        (0x33, edge),
        (0x10, edge),
        (0x10, !edge),
        (0x23, 1 << 32),
        (0x23, u64::MAX),
    ] {
        assert_eq!(target(cs, rip, SS), Err(BadFrame), "{cs:#x} {rip:#x}");
    }
    assert_eq!(target(0x10, 0xffff_ffff_8100_0000, SS), Ok(Target::Kernel));
    assert_eq!(target(0x23, 0xffff_ffff, SS), Ok(Target::User(0x23)));
}

#[test]
fn flags_that_are_not_the_kernels() {
    const IOPL: u64 = 3 << 12;
    const NT: u64 = 1 << 14;
    const VM: u64 = 1 << 17;
    assert_eq!(rflags(u64::MAX) & (IOPL | VM), 0);
    assert_eq!(shown(u64::MAX, true) & (IOPL | VM), 0);
    assert_eq!(rflags(NT) & shown(NT, true), NT | 2, "a program's");
    assert_eq!(RFLAGS & NT, 0, "kernel mode's");
    assert_eq!(rflags(0), IF | 2);
    assert_ne!(rflags(TF) & TF, 0);
    assert_eq!(rflags(u64::MAX) >> 22, 0);
}

#[test]
fn the_interrupt_flag_is_the_mask() {
    assert!(masks_events(0));
    assert!(!masks_events(IF));
    assert_eq!(shown(IF, true) & IF, 0);
    assert_eq!(shown(0, false) & IF, IF);
}
