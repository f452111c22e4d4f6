// SPDX-License-Identifier: GPL-2.0

use xen_core::descriptor::{effect, limit, Effect};
use xen_core::instruction::{
    msr, msr_value, port_access, table_store, Msr, PortAccess, Table, TableStore,
};

#[test]
fn entries_of_the_gdt() {
    assert_eq!(effect(12, 0), Effect::Tls(0));
    assert_eq!(effect(14, 1), Effect::Tls(2));
    assert_eq!(effect(15, 0x00cf_f300_0000_1234), Effect::CpuNode(0xf_1234));
    for index in [0, 11, 16, 511] {
        assert_eq!(effect(index, !0), Effect::None);
    }
    assert_eq!(limit(0x00cf_f300_0000_ffff), 0xf_ffff);
}

#[test]
fn accesses_to_msrs() {
    assert_eq!(msr([0x0f, 0x32]), Some(Msr::Read));
    assert_eq!(msr([0x0f, 0x30]), Some(Msr::Write));
    assert_eq!(msr([0x0f, 0x31]), None);
}

#[test]
fn intels_cpus_can_be_asked_early_for_what_they_have() {
    const FAST_STRINGS: u64 = 1;
    const LIMIT_CPUID: u64 = 1 << 22;
    let enabled = msr_value(0x1a0).unwrap();
    assert_eq!(enabled & (FAST_STRINGS | LIMIT_CPUID), FAST_STRINGS);
}

#[test]
fn the_pat_has_all_of_linuxs_types() {
    let pat = msr_value(0x277).unwrap().to_le_bytes();
    // Write-back, write-combining, uncached, write-through and write-protected.
    for kind in [6, 1, 7, 0, 4, 5] {
        assert!(pat.contains(&kind), "{kind}");
    }
    assert_eq!(msr_value(0xc000_0080), None, "EFER is lg's");
}

#[test]
fn accesses_to_ports() {
    let access = |code: &[u8], long| {
        port_access(code, 0x3f8, long).map(
            |PortAccess {
                 port,
                 width,
                 input,
                 length,
             }| (port, width, input, length),
        )
    };
    for (code, expected) in [
        (&[0xe4, 0x80][..], (0x80, 1, true, 2)),
        (&[0xe5, 0x80], (0x80, 4, true, 2)),
        (&[0xe6, 0xff], (0xff, 1, false, 2)),
        (&[0x66, 0xe7, 0x80], (0x80, 2, false, 3)),
        (&[0xec, 0x90], (0x3f8, 1, true, 1)),
        (&[0xf3, 0x66, 0xed], (0x3f8, 2, true, 3)),
        (&[0x2e, 0x67, 0xee], (0x3f8, 1, false, 3)),
        (&[0xef], (0x3f8, 4, false, 1)),
    ] {
        assert_eq!(access(code, true), Some(expected), "{code:x?}");
        assert_eq!(access(code, false), Some(expected), "{code:x?}");
    }
    // REX is a prefix of 64-bit code alone, and is one only right before the instruction.
    assert_eq!(
        access(&[0x66, 0x48, 0xef], true),
        Some((0x3f8, 4, false, 3))
    );
    assert_eq!(
        access(&[0x48, 0x66, 0xef], true),
        Some((0x3f8, 2, false, 3))
    );
    assert_eq!(access(&[0x48, 0xef], false), None);
    // A string, LOCK, half an instruction, none, and one that is too long.
    for code in [&[0x6e][..], &[0xf0, 0xee], &[0xe4], &[], &[0x66; 16]] {
        assert_eq!(access(code, true), None, "{code:x?}");
    }
}

#[test]
fn a_port_is_granted_by_all_its_bits() {
    let at = |port, width| PortAccess {
        port,
        width,
        input: true,
        length: 1,
    };
    assert!(at(0x80, 1).is_granted(!1));
    assert!(!at(0x80, 1).is_granted(1));
    assert!(at(0x87, 2).is_granted(!(3 << 7)));
    assert!(!at(0x87, 2).is_granted(1 << 8));
    assert!(at(0x87, 4).is_granted(0x7f | (1 << 11)));
    assert!(!at(0x87, 4).is_granted(1 << 10));
    assert_eq!(at(0, 1).rax(0x1234_5678_9abc_de00), 0x1234_5678_9abc_deff);
    assert_eq!(at(0, 2).rax(0x1234_5678_9abc_0000), 0x1234_5678_9abc_ffff);
    assert_eq!(at(0, 4).rax(u64::MAX), 0xffff_ffff);
    assert_eq!(
        PortAccess {
            input: false,
            ..at(0, 4)
        }
        .rax(7),
        7
    );
}

#[test]
fn stores_of_tables() {
    // Each register holds its own number, a million times.
    let at = |code: &[u8]| {
        table_store(code, 0x10, |number| u64::from(number) * 1_000_000).map(
            |TableStore { table, to, length }| {
                // What is behind an instruction does not matter.
                let longer = [code, &[0x90; 4]].concat();
                let again = table_store(&longer, 0x10, |number| u64::from(number) * 1_000_000);
                assert_eq!(again, Some(TableStore { table, to, length }), "{code:x?}");
                assert_eq!(length, code.len() as u64, "{code:x?}");
                (table, to)
            },
        )
    };
    for (code, expected) in [
        // sgdt (%rax), (%r8), 6(%rsp), -2(%rbp), 0x100(%r13), sidt (%rdi), sldt (%rdx)
        (&[0x0f, 0x01, 0x00][..], (Table::Gdt, 0)),
        (&[0x41, 0x0f, 0x01, 0x00], (Table::Gdt, 8_000_000)),
        (&[0x0f, 0x01, 0x44, 0x24, 6], (Table::Gdt, 4_000_006)),
        (&[0x0f, 0x01, 0x45, 0xfe], (Table::Gdt, 4_999_998)),
        (
            &[0x41, 0x0f, 0x01, 0x85, 0, 1, 0, 0],
            (Table::Gdt, 13_000_256),
        ),
        (&[0x0f, 0x01, 0x0f], (Table::Idt, 7_000_000)),
        (&[0x0f, 0x00, 0x02], (Table::Ldt, 2_000_000)),
        // sgdt (%rcx,%rdx,4), (%r12), (%rax,%r12), 8(,%rbx,8)
        (&[0x0f, 0x01, 0x04, 0x91], (Table::Gdt, 9_000_000)),
        (&[0x41, 0x0f, 0x01, 0x04, 0x24], (Table::Gdt, 12_000_000)),
        (&[0x42, 0x0f, 0x01, 0x04, 0x20], (Table::Gdt, 12_000_000)),
        (
            &[0x0f, 0x01, 0x04, 0xdd, 8, 0, 0, 0],
            (Table::Gdt, 24_000_008),
        ),
        // sgdt -1(%rip): behind the instruction is where that begins.
        (
            &[0x0f, 0x01, 0x05, 0xff, 0xff, 0xff, 0xff],
            (Table::Gdt, 0x16),
        ),
    ] {
        assert_eq!(at(code), Some(expected), "{code:x?}");
    }
    // vmcall, lgdt, str, smsw, another map, half an instruction, a prefix, none.
    for code in [
        &[0x0f, 0x01, 0xc1][..],
        &[0x0f, 0x01, 0x10],
        &[0x0f, 0x00, 0x08],
        &[0x0f, 0x01, 0x20],
        &[0x0f, 0x02, 0x00],
        &[0x0f, 0x01, 0x04],
        &[0x0f, 0x01, 0x44, 0x24],
        &[0x0f, 0x01, 0x05, 0, 0, 0],
        &[0x67, 0x0f, 0x01, 0x00],
        &[0x41],
        &[],
    ] {
        assert_eq!(at(code), None, "{code:x?}");
    }
}
