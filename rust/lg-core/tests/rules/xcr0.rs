// SPDX-License-Identifier: GPL-2.0

//! The values that XSETBV takes.

use lg_core::xcr0::{accepts, offered};

#[test]
fn a_guest_is_offered_the_vector_registers_and_nothing_else() {
    assert_eq!(offered(0b111), 0b111);
    assert_eq!(offered(0x2e7), 0xe7, "PKRU");
    assert_eq!(offered(0x6_02e7), 0xe7, "AMX");
    assert_eq!(offered(0xe_02e7), 0xe7, "APX");
    assert_eq!(offered(!0), 0xe7);
    assert_eq!(offered(0b11), 0b11, "a Host without AVX");
}

#[test]
fn every_value_is_judged_as_the_processor_does() {
    for value in 0..0x200u64 {
        let avx512 = value & 0xe0;
        let expected = value & !0xe7 == 0
            && value & 1 != 0
            && !matches!(value & 6, 4)
            && matches!(avx512, 0 | 0xe0)
            && (avx512 == 0 || value & 6 == 6);
        assert_eq!(accepts(value, 0xe7), expected, "{value:#x}");
    }
}

#[test]
fn what_the_host_lacks_is_refused() {
    assert!(accepts(0b111, 0b111));
    assert!(!accepts(0xe7, 0b111), "AVX-512");
    assert!(!accepts(0b111, 0b11), "AVX");
    for bit in 8..64 {
        assert!(!accepts(0b111 | (1 << bit), 0xe7), "bit {bit}");
    }
}
