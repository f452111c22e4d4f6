// SPDX-License-Identifier: GPL-2.0

use lg_core::event::{has_error_code, Event, GP, INT80, INT80_REFUSED};
use lg_core::exit::{Exit, Raw, INTERRUPTED, SWITCHER_FAULT, SYSCALL, SYSCALL32};

/// SDM, "Exception and Interrupt Vectors", and AMD's manual, volume 2, for 28 to 30.
#[test]
fn error_codes_are_where_the_processor_pushes_them() {
    let with: Vec<u8> = (0..=u8::MAX).filter(|&v| has_error_code(v)).collect();
    assert_eq!(with, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
}

fn exit(vector: u64, error: u64, user_mode: bool, int80_is_a_device: bool) -> Exit {
    Exit::decode(&Raw {
        vector,
        error,
        user_mode,
        int80_is_a_device,
        monitored: false,
        cr2: 0x1234,
    })
}

#[test]
fn every_vector_has_an_owner() {
    for (vector, closed) in (0..=u8::MAX).flat_map(|v| [(v, false), (v, true)]) {
        let got = exit(vector.into(), 4, true, closed);
        let event = Event::new(vector, 4);
        let owner = match vector {
            2 => Exit::Nmi,
            18 => Exit::MachineCheck,
            13 => Exit::Protection(event),
            14 => {
                assert!(matches!(got, Exit::PageFault { gva, access }
                    if gva.get() == 0x1234 && access.user && !access.write && !access.fetch));
                continue;
            }
            // Where the Host has no 32-bit programs, a device may have their vector.
            0x80 if closed => Exit::HostInterrupt(0x80),
            0x80 => Exit::Exception(event),
            0..=7 | 10..=12 | 16 | 17 | 19 | 21 => Exit::Exception(event),
            8 | 9 | 15 | 20 | 22..=31 => Exit::Impossible(event),
            32.. => Exit::HostInterrupt(vector),
        };
        assert_eq!(got, owner, "vector {vector}");
        // The section ends for what the Host's handlers must be called for, and for nothing of the Guest's.
        let hosts = vector >= 32 && (vector != 0x80 || closed);
        assert_eq!(got.is_hosts(), hosts, "vector {vector}");
    }
}

/// Nothing of the Host's must ever be given to the Guest, nor a page fault unlooked at.
#[test]
fn the_guest_gets_only_its_own() {
    for vector in 0..=u8::MAX {
        if let Exit::Exception(event) = exit(vector.into(), 0, false, false) {
            assert!(event.vector < 32 || event.vector == INT80, "{event:?}");
            assert!(![2, 14, 18].contains(&event.vector), "{event:?}");
        }
    }
}

/// SYSCALL is a system call or a hypercall by the mode, which the Guest cannot write.
#[test]
fn the_mode_decides_what_a_syscall_is() {
    assert_eq!(exit(SYSCALL, 0, false, false), Exit::Hypercall);
    assert_eq!(exit(SYSCALL, 0, true, false), Exit::Syscall);
    for user_mode in [false, true] {
        let got = exit(SYSCALL32, 0, user_mode, false);
        assert_eq!(got, Exit::Syscall32 { user_mode });
    }
}

#[test]
fn what_the_switcher_met_is_told_apart_from_what_the_guest_did() {
    let interrupted = exit(INTERRUPTED, 0, false, false);
    assert_eq!(interrupted, Exit::Interrupted);
    assert!(interrupted.is_hosts());
    for vector in 0..32u8 {
        let got = exit(SWITCHER_FAULT | u64::from(vector), 7, true, false);
        assert_eq!(got, Exit::SwitcherFault(vector));
    }
}

/// A closed gate of `int 0x80` is no #GP of the Guest's making; the same error code is one where the gate is open.
#[test]
fn a_closed_gate_is_known() {
    let event = Event::new(GP, INT80_REFUSED);
    let got = |closed| exit(GP.into(), INT80_REFUSED.into(), true, closed);
    assert_eq!(got(true), Exit::Int80Refused(event));
    assert_eq!(got(false), Exit::Protection(event));
}

#[test]
fn events_carry_an_error_code_only_if_the_exception_has_one() {
    for vector in 0..=u8::MAX {
        let code = has_error_code(vector).then_some(0x18);
        assert_eq!(Event::new(vector, 0x18).error_code, code);
        assert_eq!(Event::interrupt(vector).error_code, None);
    }
    assert_eq!(
        Event::GENERAL_PROTECTION,
        Event {
            vector: GP,
            error_code: Some(0)
        }
    );
}
