// SPDX-License-Identifier: GPL-2.0

use lg_core::segment::{
    cpunode_descriptor, data_selector_ok, interrupt_gate, loads_as_data, tls_descriptor,
    tss_descriptor, KERNEL_CODE, KERNEL_DATA, USER_CODE32, USER_CODE64, USER_DATA,
};
use proptest::prelude::*;

/// A descriptor taken apart by the field numbers of SDM, "Segment Descriptors", figure "Segment
/// Descriptor".
#[derive(Debug, PartialEq)]
struct Fields {
    base: u64,
    limit: u64,
    kind: u64,
    not_system: bool,
    dpl: u64,
    present: bool,
    long: bool,
    big: bool,
    pages: bool,
}

fn fields(word: u64) -> Fields {
    let bits = |from: u32, to: u32| (word >> from) & ((1 << (to - from + 1)) - 1);
    Fields {
        base: bits(16, 39) + (bits(56, 63) << 24),
        limit: bits(0, 15) + (bits(48, 51) << 16),
        kind: bits(40, 43),
        not_system: bits(44, 44) == 1,
        dpl: bits(45, 46),
        present: bits(47, 47) == 1,
        long: bits(53, 53) == 1,
        big: bits(54, 54) == 1,
        pages: bits(55, 55) == 1,
    }
}

/// The GDT of Linux, as `gdt_page` of arch/x86/kernel/cpu/common.c encodes it.
#[test]
fn flat_segments_are_linuxs() {
    assert_eq!(KERNEL_CODE, 0x00af_9b00_0000_ffff);
    assert_eq!(KERNEL_DATA, 0x00cf_9300_0000_ffff);
    assert_eq!(USER_CODE32, 0x00cf_fb00_0000_ffff);
    assert_eq!(USER_DATA, 0x00cf_f300_0000_ffff);
    assert_eq!(USER_CODE64, 0x00af_fb00_0000_ffff);
}

/// Type 5 is read-only, accessed data that grows down: no offset below the limit is valid.
#[test]
fn the_cpunode_segment_holds_twenty_bits_in_its_limit() {
    for limit in [0, 1, 0xfff, 0x1_2345, 0xf_ffff] {
        let f = fields(cpunode_descriptor(limit));
        assert_eq!((f.limit, f.base), (u64::from(limit), 0));
        assert_eq!((f.kind, f.not_system, f.dpl, f.present), (5, true, 3, true));
        // LSL shifts a limit in pages: the Guest would read another number.
        assert!(!f.pages && !f.long);
    }
}

proptest! {
    /// SDM, "TSS Descriptor in 64-bit mode": type 9, base 63:32 in the second word.
    #[test]
    fn tss_descriptors_hold_base_and_limit(base: u64, limit in 0u32..1 << 20) {
        let [low, high] = tss_descriptor(base, limit);
        let f = fields(low);
        prop_assert_eq!(f.base + (high << 32), base);
        prop_assert_eq!(high >> 32, 0);
        prop_assert_eq!(f.limit, u64::from(limit));
        prop_assert_eq!((f.kind, f.not_system, f.dpl), (9, false, 0));
        prop_assert!(f.present && !f.pages);
    }

    /// A limit that does not fit must not spill into other fields.
    #[test]
    fn excess_bits_of_a_limit_are_dropped(base: u64, limit: u32) {
        prop_assert_eq!(tss_descriptor(base, limit), tss_descriptor(base, limit & 0xf_ffff));
        prop_assert_eq!(cpunode_descriptor(limit), cpunode_descriptor(limit & 0xf_ffff));
    }

    /// SDM, "64-Bit Mode IDT", figure "64-Bit IDT Gate Descriptors".
    #[test]
    fn gates_hold_their_fields(selector: u16, offset: u64, ist in 0u8..8, dpl in 0u8..4) {
        let [low, high] = interrupt_gate(selector, offset, ist, dpl);
        let bits = |from: u32, to: u32| (low >> from) & ((1 << (to - from + 1)) - 1);
        prop_assert_eq!(bits(0, 15) | (bits(48, 63) << 16) | (high << 32), offset);
        prop_assert_eq!(high >> 32, 0);
        prop_assert_eq!(bits(16, 31), u64::from(selector));
        prop_assert_eq!(bits(32, 34), u64::from(ist));
        prop_assert_eq!(bits(35, 39), 0);
        prop_assert_eq!(bits(40, 44), 14);
        prop_assert_eq!(bits(45, 46), u64::from(dpl));
        prop_assert_eq!(bits(47, 47), 1);
    }

    /// Whatever the Guest asks for, the GDT gets nothing but 0 or a segment it may have.
    #[test]
    fn tls_descriptors_are_harmless(wanted: u64) {
        let Some(granted) = tls_descriptor(wanted) else { return Ok(()) };
        prop_assert_eq!(granted & !(1 << 40), wanted & !(1 << 40));
        if granted == 0 {
            return Ok(());
        }
        let f = fields(granted);
        prop_assert!(f.not_system && f.present && f.dpl == 3 && !f.long);
        // Accessed, or the processor would write to a read-only page.
        prop_assert_eq!(f.kind & 1, 1);
        prop_assert_eq!(f.kind & 8, 0, "code");
    }
}

/// Bit by bit around what glibc asks for: a 32-bit, writable, page-granular data segment.
/// Bits 8 to 15 of what LAR says are type, S, DPL and P.
#[test]
fn what_a_data_segment_register_takes() {
    const DATA: u32 = 0xf300;
    const CODE: u32 = 0xfb00;
    const EXECUTE_ONLY: u32 = 0xf900;
    const ABSENT: u32 = 0x7300;
    const LDT: u32 = 0x8200;
    const TSS: u32 = 0x8b00;
    for rights in [DATA, DATA | 0x00c0_0000, DATA & !(1 << 9), CODE] {
        assert!(loads_as_data(rights), "{rights:#x}");
    }
    for rights in [EXECUTE_ONLY, ABSENT, LDT, TSS, 0] {
        assert!(!loads_as_data(rights), "{rights:#x}");
    }
}

#[test]
fn each_rule_for_tls_descriptors_refuses() {
    let good = 0xf7df_f3f0_1234_ffff;
    assert_eq!(tls_descriptor(good), Some(good));
    assert_eq!(tls_descriptor(0), Some(0));
    for (bit, name) in [(44, "system"), (45, "DPL"), (46, "DPL"), (47, "present")] {
        assert_eq!(tls_descriptor(good & !(1 << bit)), None, "{name}");
    }
    assert_eq!(tls_descriptor(good | (1 << 53)), None, "long");
    assert_eq!(
        tls_descriptor(good & !(1 << 40)),
        Some(good),
        "accessed is added"
    );
    assert_eq!(tls_descriptor(good | (1 << 43)), None, "code");
}

/// All 65,536 selectors against the rule of MOV to a segment register (SDM, "MOV") at CPL 0, on
/// a GDT that has every kind of segment: nothing that would fault is let through, and nothing
/// that belongs to CPL 0.
#[test]
fn selectors_that_load_are_exactly_those_of_the_guest() {
    let read_only = USER_DATA & !(1 << 41);
    for tls in [
        [0, 0, 0],
        [USER_DATA, 0, read_only],
        [read_only, USER_DATA, 0],
    ] {
        let mut gdt = [0u64; 16];
        gdt[1] = USER_CODE32 & !DPL3; // Linux's __KERNEL32_CS
        gdt[2] = KERNEL_CODE;
        gdt[3] = KERNEL_DATA;
        gdt[4] = USER_CODE32;
        gdt[5] = USER_DATA;
        gdt[6] = USER_CODE64;
        [gdt[8], gdt[9]] = tss_descriptor(0xffff_8780_0000_0000, 0x67);
        gdt[12..15].copy_from_slice(&tls);
        gdt[15] = cpunode_descriptor(0);
        for selector in 0..=u16::MAX {
            let loads = selector < 4
                || selector & 4 == 0
                    && gdt.get(usize::from(selector >> 3)).is_some_and(|&word| {
                        let f = fields(word);
                        let readable = f.kind & 8 == 0 || f.kind & 2 != 0;
                        f.present && f.not_system && f.dpl == 3 && readable
                    });
            assert_eq!(
                data_selector_ok(selector, &tls),
                loads,
                "{selector:#x} with {tls:x?}"
            );
        }
    }
}

const DPL3: u64 = 3 << 45;
