// SPDX-License-Identifier: GPL-2.0

use xen_core::descriptor::{effect, limit, Effect};
use xen_core::instruction::{msr, msr_value, Msr};

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
