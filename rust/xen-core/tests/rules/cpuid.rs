// SPDX-License-Identifier: GPL-2.0

use xen_core::cpuid::{answer, Host, Registers};

/// A CPU that has everything, and whose states are 256 bytes each, one after the other.
fn all(leaf: u32, subleaf: u32) -> Registers {
    match (leaf, subleaf) {
        (0xd, 2..) => Registers {
            eax: 256,
            ebx: 576 + (subleaf - 2) * 256,
            ecx: 0,
            edx: 0,
        },
        _ => Registers {
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
        },
    }
}

fn nothing(_: u32, _: u32) -> Registers {
    Registers::default()
}

const HOST: Host = Host {
    xcr0: 0b111,
    clears_buffers: false,
    tsc_stable: true,
};

const fn bit(word: u32, number: u32) -> bool {
    word & (1 << number) != 0
}

#[test]
fn a_kernel_knows_that_this_is_xens_abi() {
    let first = answer(0x4000_0000, 0, &HOST, nothing);
    assert!(first.eax >= 0x4000_0005);
    let name = [first.ebx, first.ecx, first.edx].map(u32::to_le_bytes);
    assert_eq!(name.as_flattened(), b"XenVMMXenVMM");
    assert!(bit(answer(1, 0, &HOST, nothing).ecx, 31), "a hypervisor");
    assert_eq!(answer(0x4000_0003, 0, &HOST, nothing).ebx, 2);
    assert!(answer(0x4000_0005, 0, &HOST, nothing).ebx <= 44);
}

#[test]
fn what_cannot_work_is_hidden() {
    let one = answer(1, 0, &HOST, all);
    for (name, number) in [("MONITOR", 3), ("VMX", 5), ("PCID", 17), ("X2APIC", 21)] {
        assert!(!bit(one.ecx, number), "{name}");
    }
    assert!(!bit(one.ecx, 24), "TSC_DEADLINE");
    for (name, number) in [
        ("VME", 1),
        ("PSE", 3),
        ("MCE", 7),
        ("MTRR", 12),
        ("PGE", 13),
    ] {
        assert!(!bit(one.edx, number), "{name}");
    }
    assert!(!bit(one.edx, 17), "PSE36");
    let seven = answer(7, 0, &HOST, all);
    for (name, number) in [("FSGSBASE", 0), ("SMEP", 7), ("INVPCID", 10), ("SMAP", 20)] {
        assert!(!bit(seven.ebx, number), "{name}");
    }
    for (name, number) in [("PKU", 3), ("OSPKE", 4), ("SHSTK", 7), ("LA57", 16)] {
        assert!(!bit(seven.ecx, number), "{name}");
    }
    assert!(!bit(seven.ecx, 22), "RDPID");
    let extended = answer(0x8000_0001, 0, &HOST, all);
    for (name, number) in [("GBPAGES", 26), ("RDTSCP", 27)] {
        assert!(!bit(extended.edx, number), "{name}");
    }
    assert!(!bit(extended.ecx, 2), "SVM");
    assert_eq!(answer(0xb, 0, &HOST, all), Registers::default());
    assert_eq!(answer(0xa, 0, &HOST, all), Registers::default());
}

#[test]
fn what_programs_use_is_there() {
    let one = answer(1, 0, &HOST, all);
    for (name, number) in [("SSE3", 0), ("XSAVE", 26), ("OSXSAVE", 27), ("AVX", 28)] {
        assert!(bit(one.ecx, number), "{name}");
    }
    for (name, number) in [("FPU", 0), ("PAE", 6), ("SSE2", 26), ("CMOV", 15)] {
        assert!(bit(one.edx, number), "{name}");
    }
    // Where the Host has it on, the kernel has to do what it forbids programs.
    assert!(bit(answer(7, 0, &HOST, all).ecx, 2), "UMIP");
    assert!(bit(answer(0x8000_0001, 0, &HOST, all).edx, 11), "SYSCALL");
    assert!(bit(answer(0x8000_0001, 0, &HOST, all).edx, 20), "NX");
}

#[test]
fn nothing_is_made_up() {
    for leaf in [7, 0x8000_0001, 0x8000_0007] {
        assert_eq!(answer(leaf, 0, &HOST, nothing), Registers::default());
    }
}

#[test]
fn without_xsave_none_of_what_needs_it() {
    let old = |leaf, subleaf| match leaf {
        1 => Registers {
            ecx: !(1 << 27),
            ..all(leaf, subleaf)
        },
        _ => all(leaf, subleaf),
    };
    let one = answer(1, 0, &HOST, old);
    for number in [12, 26, 27, 28, 29] {
        assert!(!bit(one.ecx, number), "{number}");
    }
}

#[test]
fn only_the_states_that_lg_saves() {
    let host = Host {
        xcr0: !0,
        ..Host::default()
    };
    let states = answer(0xd, 0, &host, all);
    assert_eq!(states.eax, 0b1110_0111);
    assert_eq!(states.edx, 0);
    assert_eq!(states.ebx, 576 + 6 * 256, "up to the last of them");
    assert_eq!(answer(0xd, 0, &HOST, all).ebx, 576 + 256);
    assert_eq!(answer(0xd, 1, &HOST, all).eax, 0b111, "no XSAVES");
    assert_eq!(answer(0xd, 9, &host, all), Registers::default(), "PKRU");
    assert_eq!(answer(0xd, 2, &HOST, all).eax, 256);
    assert_eq!(answer(0xd, 5, &HOST, all), Registers::default());
}

#[test]
fn the_buffers_are_the_hosts_business() {
    let clears = Host {
        clears_buffers: true,
        ..HOST
    };
    assert!(!bit(answer(7, 0, &HOST, all).edx, 10));
    assert!(bit(answer(7, 0, &clears, all).edx, 10));
    assert!(bit(answer(0x8000_0021, 0, &clears, nothing).eax, 5));
}

#[test]
fn four_levels_of_page_tables() {
    assert_eq!(answer(0x8000_0008, 0, &HOST, all).eax, (48 << 8) | 0xff);
}

#[test]
fn an_invariant_tsc_is_one_that_the_host_trusts() {
    let distrusts = Host {
        tsc_stable: false,
        ..HOST
    };
    assert!(bit(answer(0x8000_0007, 0, &HOST, all).edx, 8));
    assert_eq!(answer(0x8000_0007, 0, &distrusts, all).edx, 0);
}
