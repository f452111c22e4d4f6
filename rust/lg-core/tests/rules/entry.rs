// SPDX-License-Identifier: GPL-2.0

//! Flags and frames: what Guest code is entered with.

use lg_core::eret::{check, Mode, Refusal};
use lg_core::flags;
use proptest::prelude::*;

/// SDM, "EFLAGS Register": bits 1, 3, 5 and 15 and those above 21 are fixed.
const DEFINED: u64 = 0x003f_7fd7;

#[test]
fn the_named_flags_are_where_the_manual_has_them() {
    let bits = [
        (flags::FIXED, 1),
        (flags::TF, 8),
        (flags::IF, 9),
        (flags::DF, 10),
        (flags::NT, 14),
        (flags::RF, 16),
        (flags::VM, 17),
        (flags::AC, 18),
        (flags::VIF, 19),
        (flags::VIP, 20),
        (flags::ID, 21),
    ];
    for (flag, bit) in bits {
        assert_eq!(flag, 1 << bit);
    }
    assert_eq!(flags::IOPL, 0x3000);
}

/// Bit by bit: what each mode may have of what it asks for.
#[test]
fn each_flag_is_granted_forced_or_refused() {
    for bit in 0..64 {
        let asked = 1u64 << bit;
        let forced = flags::IF | flags::FIXED;
        let (user, kernel) = match bit {
            0 | 2 | 4 | 6 | 7 | 8 | 10 | 11 | 16 | 21 => (asked, asked),
            14 | 18 => (asked, 0),
            _ => (0, 0),
        };
        assert_eq!(flags::sanitize_user(asked), user | forced, "bit {bit}");
        assert_eq!(flags::sanitize_kernel(asked), kernel | forced, "bit {bit}");
    }
}

#[test]
fn events_start_with_everything_off_but_interrupts() {
    assert_eq!(flags::AT_EVENT_ENTRY, 0x202);
}

proptest! {
    #[test]
    fn hardware_flags_are_always_safe(asked: u64) {
        let both = [(flags::sanitize_user(asked), 0), (flags::sanitize_kernel(asked), flags::NT)];
        for (flags, own) in both {
            prop_assert_eq!(flags & !DEFINED, 0);
            let banned = flags::IOPL | flags::VM | flags::VIF | flags::VIP | own;
            prop_assert_eq!(flags & banned, 0);
            prop_assert_eq!(flags & (flags::IF | flags::FIXED), flags::IF | flags::FIXED);
        }
    }

    /// A frame that the Guest returns to unchanged gives back the flags that were interrupted.
    #[test]
    fn frames_keep_what_the_guest_had(asked: u64, virtual_if: bool) {
        let hardware = flags::sanitize_user(asked);
        let seen = flags::guest_view(hardware, virtual_if);
        prop_assert_eq!(seen & flags::IF != 0, virtual_if);
        prop_assert_eq!(flags::sanitize_user(seen), hardware);
    }

    /// The real IF and IOPL stay the Host's secret; NT, which POPF sets at any CPL, does not.
    #[test]
    fn frames_do_not_show_the_hosts_flags(hardware: u64) {
        let seen = flags::guest_view(hardware, false);
        prop_assert_eq!(seen & (flags::IF | flags::IOPL | flags::VIF | flags::VIP | flags::VM), 0);
        prop_assert_eq!(seen & flags::NT, hardware & flags::NT);
        prop_assert_eq!(seen & flags::FIXED, flags::FIXED);
    }

    #[test]
    fn only_three_selectors_resume(cs: u64, rip in 0u64..1 << 32, rflags: u64) {
        let known = matches!(cs, 0x10 | 0x23 | 0x33);
        prop_assert_eq!(check(cs, rip, rflags).is_ok(), known);
    }

    #[test]
    fn user_mode_always_runs_with_interrupts_on(rip in 0u64..1 << 32, rflags: u64) {
        for cs in [0x23, 0x33] {
            prop_assert!(check(cs, rip, rflags).unwrap().virtual_if);
        }
        let kernel = check(0x10, rip, rflags).unwrap();
        prop_assert_eq!(kernel.virtual_if, rflags & flags::IF != 0);
    }

    /// Whatever is accepted, IRET cannot fault on it.
    #[test]
    fn accepted_frames_satisfy_iret(
        cs in prop::sample::select(vec![0u64, 0x10, 0x13, 0x18, 0x23, 0x2b, 0x33, 0x63, 0xffff]),
        rip in prop_oneof![any::<u64>(), 0u64..1 << 33, (0u64..1 << 17).prop_map(|r| r << 47)],
        rflags: u64,
    ) {
        let Ok(resume) = check(cs, rip, rflags) else { return Ok(()) };
        match resume.mode {
            Mode::User32 => prop_assert!(rip <= u64::from(u32::MAX)),
            Mode::Kernel | Mode::User64 => {
                prop_assert!(rip >> 47 == 0 || rip >> 47 == 0x1_ffff);
            }
        }
        prop_assert_eq!(resume.rflags & (flags::VM | flags::IOPL), 0);
        prop_assert_ne!(resume.rflags & flags::IF, 0);
    }
}

/// The frames of `lguest.h`: CS is 0x10, 0x33 or 0x23 exactly.
#[test]
fn frames_are_refused_with_the_reason() {
    let mode = |cs, rip| check(cs, rip, 2).map(|resume| resume.mode);
    assert_eq!(mode(0x10, 0xffff_ffff_8100_0000), Ok(Mode::Kernel));
    assert_eq!(mode(0x33, 0x0000_7fff_ffff_f000), Ok(Mode::User64));
    assert_eq!(mode(0x23, 0xffff_ffff), Ok(Mode::User32));
    assert_eq!(mode(0x13, 0x1000), Err(Refusal::Selector));
    assert_eq!(mode(0x1_0000_0033, 0x1000), Err(Refusal::Selector));
    assert_eq!(mode(0x23, 1 << 32), Err(Refusal::InstructionPointer));
    assert_eq!(mode(0x33, 1 << 47), Err(Refusal::InstructionPointer));
    assert_eq!(mode(0x10, 1 << 56), Err(Refusal::InstructionPointer));
}

/// AC is the user's own affair; a Guest kernel with it would get #AC where no kernel does.
#[test]
fn alignment_checks_end_at_the_kernel() {
    assert_ne!(check(0x33, 0, flags::AC).unwrap().rflags & flags::AC, 0);
    assert_eq!(check(0x10, 0, flags::AC).unwrap().rflags & flags::AC, 0);
}
