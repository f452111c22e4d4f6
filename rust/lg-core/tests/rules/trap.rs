// SPDX-License-Identifier: GPL-2.0

use lg_core::trap::{has_error_code, route, Event, Route, GP, INT80};

/// SDM, "Exception and Interrupt Vectors", and AMD's manual, volume 2, for 28 to 30.
#[test]
fn error_codes_are_where_the_processor_pushes_them() {
    let with: Vec<u8> = (0..=u8::MAX).filter(|&v| has_error_code(v)).collect();
    assert_eq!(with, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
}

#[test]
fn every_vector_has_an_owner() {
    for vector in 0..=u8::MAX {
        let owner = match vector {
            2 | 18 => Route::HostException,
            13 => Route::Protection,
            14 => Route::PageFault,
            0x80 => Route::Guest,
            0..=7 | 10..=12 | 16 | 17 | 19 | 21 => Route::Guest,
            8 | 9 | 15 | 20 | 22..=31 => Route::Fatal,
            32.. => Route::HostInterrupt,
        };
        assert_eq!(route(vector, false), owner, "vector {vector}");
        // Where the Host has no 32-bit programs, a device may have their vector.
        let owner = if vector == 0x80 {
            Route::HostInterrupt
        } else {
            owner
        };
        assert_eq!(route(vector, true), owner, "vector {vector}");
    }
}

/// Nothing of the Host's must ever be given to the Guest, nor a page fault unlooked at.
#[test]
fn the_guest_gets_only_its_own() {
    let guests: Vec<u8> = (0..=u8::MAX)
        .filter(|&v| route(v, false) == Route::Guest)
        .collect();
    assert!(guests.iter().all(|&v| v < 32 || v == INT80), "{guests:?}");
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
