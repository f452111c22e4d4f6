// SPDX-License-Identifier: GPL-2.0
//! The CPU as the kernel shall see it: what CPUID says natively, less everything that needs CPL0, or an MSR, or that lg does
//! not offer, or that Xen's ABI has no way to use; and the leaves by which a kernel knows that it runs by that ABI.

/// What CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What the answers depend on beside the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host {
    /// XCR0, or 0 where XSAVE is off.
    pub xcr0: u64,
    /// It empties the CPU's buffers before user mode runs.
    pub clears_buffers: bool,
    /// It trusts its TSC.
    pub tsc_stable: bool,
}

/// Leaf 0xd: the state that XSAVE saves.
const XSTATE: u32 = 0xd;
/// States of XCR0 that lg saves: x87, SSE, AVX, AVX-512.
const XFEATURES: u64 = 0b1110_0111;
/// The first leaf of the hypervisor, and the last.
const XEN_FIRST: u32 = 0x4000_0000;
const XEN_LAST: u32 = 0x4000_0005;
/// The version of Xen whose ABI this is: 4.17.
pub const XEN_VERSION: u32 = (4 << 16) | 17;
/// Bits of a machine address with which grants need no second version.
const MACHINE_ADDRESS_BITS: u32 = 44;

const fn bits(numbers: &[u32]) -> u32 {
    let (mut mask, mut i) = (0, 0);
    while i < numbers.len() {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}

const MD_CLEAR: u32 = 1 << 10;
const VERW_CLEAR: u32 = 1 << 5;
const APIC: u32 = 1 << 9;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
const INVARIANT_TSC: u32 = 1 << 8;
/// XSAVE, AVX, FMA, F16C.
const WANTS_XSAVE: u32 = bits(&[26, 28, 12, 29]);

/// Leaves with feature bits, and the bits which are passed on.
const FEATURES: [(u32, u32, Registers); 7] = [
    (
        1,
        0,
        Registers {
            eax: !0,
            ebx: 0xff00, // the size of a cache line
            // SSE3, PCLMULQDQ, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND
            ecx: bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 27, 28, 29, 30]),
            // FPU, DE, TSC, MSR, PAE, CX8, SEP, CMOV, CLFLUSH, MMX, FXSR, SSE, SSE2, SELFSNOOP; no large or global pages
            edx: bits(&[0, 2, 4, 5, 6, 8, 11, 15, 19, 23, 24, 25, 26, 27]),
        },
    ),
    (
        7,
        0,
        Registers {
            eax: !0,
            // BMI1, AVX2, FDP_EXCPTN_ONLY, BMI2, ERMS, ZERO_FCS_FDS, AVX512F, AVX512DQ, RDSEED, ADX, AVX512IFMA, CLFLUSHOPT,
            // CLWB, AVX512PF, AVX512ER, AVX512CD, SHA_NI, AVX512BW, AVX512VL. Not FSGSBASE: with it Linux reads the GS base of
            // user mode by an MSR at each switch, which faults.
            ebx: bits(&[
                3, 5, 6, 8, 9, 13, 16, 17, 18, 19, 21, 23, 24, 26, 27, 28, 29, 30, 31,
            ]),
            // AVX512VBMI, UMIP, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI, AVX512_BITALG, AVX512_VPOPCNTDQ, CLDEMOTE,
            // MOVDIRI, MOVDIR64B
            ecx: bits(&[1, 2, 6, 8, 9, 10, 11, 12, 14, 25, 27, 28]),
            // AVX512_4VNNIW, AVX512_4FMAPS, FSRM, AVX512_VP2INTERSECT, MD_CLEAR, SERIALIZE, AVX512_FP16
            edx: bits(&[2, 3, 4, 8, 10, 14, 23]),
        },
    ),
    (
        7,
        1,
        Registers {
            // SHA512, SM3, SM4, AVX_VNNI, AVX512_BF16, CMPCCXADD, FZRM, FSRS, FSRC, AVX_IFMA, MOVRS
            eax: bits(&[0, 1, 2, 4, 5, 7, 10, 11, 12, 23, 31]),
            ebx: 0,
            ecx: 0,
            edx: 0,
        },
    ),
    (
        0x8000_0001,
        0,
        Registers {
            eax: 0,
            ebx: 0,
            // LAHF_LM, ABM, SSE4A, MISALIGNSSE, 3DNOWPREFETCH, XOP, FMA4, TBM
            ecx: bits(&[0, 5, 6, 7, 8, 11, 16, 21]),
            // SYSCALL, NX, MMXEXT, FXSR_OPT, LM, 3DNOWEXT, 3DNOW; not RDTSCP, for nobody loads TSC_AUX
            edx: bits(&[11, 20, 22, 25, 29, 30, 31]),
        },
    ),
    (
        0x8000_0007,
        0,
        Registers {
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: INVARIANT_TSC,
        },
    ),
    (
        0x8000_0008,
        0,
        Registers {
            eax: 0xff, // bits of a physical address
            // CLZERO, XSAVEERPTR
            ebx: bits(&[0, 2]),
            ecx: 0,
            edx: 0,
        },
    ),
    (
        0x8000_0021,
        0,
        Registers {
            // NO_NESTED_DATA_BP, LFENCE_RDTSC, NULL_SEL_CLR_BASE
            eax: bits(&[0, 2, 6]),
            ebx: 0,
            // TSA_SQ_NO, TSA_L1_NO, and that other transient attacks have no way
            ecx: bits(&[1, 2, 7]),
            edx: 0,
        },
    ),
];

/// What the kernel is told when it asks for `leaf` and `subleaf`; `native` is the CPU's own CPUID.
pub fn answer(
    leaf: u32,
    subleaf: u32,
    host: &Host,
    native: impl Fn(u32, u32) -> Registers,
) -> Registers {
    match leaf {
        // Vendor and number of leaves, caches and TLBs, crystal, frequencies, extended leaves, name, caches and TLBs.
        0 | 2 | 0x15 | 0x16 | 0x8000_0000 | 0x8000_0002..=0x8000_0006 => native(leaf, subleaf),
        // Caches, without who shares them.
        4 => {
            let caches = native(leaf, subleaf);
            Registers {
                eax: caches.eax & 0x3fff,
                ..caches
            }
        }
        XSTATE => xstate(subleaf, host, native),
        XEN_FIRST..=XEN_LAST => hypervisor(leaf, subleaf),
        _ => features(leaf, subleaf, host, native(leaf, subleaf)),
    }
}

fn features(leaf: u32, subleaf: u32, host: &Host, native: Registers) -> Registers {
    let known = FEATURES
        .iter()
        .find(|known| (known.0, known.1) == (leaf, subleaf));
    let Some((.., passed)) = known else {
        return Registers::default();
    };
    let mut out = Registers {
        eax: native.eax & passed.eax,
        ebx: native.ebx & passed.ebx,
        ecx: native.ecx & passed.ecx,
        edx: native.edx & passed.edx,
    };
    match (leaf, subleaf) {
        (1, _) => {
            // The Host's kernel decides whether XSAVE can be used.
            if out.ecx & OSXSAVE == 0 {
                out.ecx &= !WANTS_XSAVE;
            }
            out.ecx |= HYPERVISOR;
            // As Xen has it: the kernel's driver of it knows what to do.
            out.edx |= APIC;
        }
        // VERW is the Host's to do, behind the return to user mode.
        (7, 0) if !host.clears_buffers => out.edx &= !MD_CLEAR,
        // With it Linux takes its time from the TSC, whatever the clock says.
        (0x8000_0007, _) if !host.tsc_stable => out.edx &= !INVARIANT_TSC,
        // Four levels of page tables, whatever the Host has.
        (0x8000_0008, _) => out.eax |= 48 << 8,
        (0x8000_0021, _) if host.clears_buffers => out.eax |= VERW_CLEAR,
        _ => {}
    }
    out
}

/// Leaf 0xd counts the sizes of XSAVE areas with all states of XCR0: leave out those which the kernel cannot use.
fn xstate(subleaf: u32, host: &Host, native: impl Fn(u32, u32) -> Registers) -> Registers {
    // FXSAVE's area and the header.
    let (mut standard, mut compacted) = (512 + 64, 512 + 64);
    let states = host.xcr0 & XFEATURES;
    for i in (2..63).filter(|&i| (states >> i) & 1 != 0) {
        let state = native(XSTATE, i);
        let (size, offset, flags) = (state.eax, state.ebx, state.ecx);
        standard = standard.max(offset.saturating_add(size));
        if flags & 2 != 0 {
            compacted = (compacted + 63) & !63;
        }
        compacted += size;
    }
    match subleaf {
        0 => Registers {
            eax: states as u32,
            ebx: standard,
            ecx: standard,
            edx: (states >> 32) as u32,
        },
        1 => Registers {
            // XSAVEOPT, XSAVEC, XGETBV with ECX 1
            eax: native(XSTATE, 1).eax & bits(&[0, 1, 2]),
            ebx: compacted,
            ..Registers::default()
        },
        2..=62 if (states >> subleaf) & 1 != 0 => native(XSTATE, subleaf),
        _ => Registers::default(),
    }
}

/// The leaves of Xen.
fn hypervisor(leaf: u32, subleaf: u32) -> Registers {
    match (leaf, subleaf) {
        // "XenVMMXenVMM"
        (XEN_FIRST, _) => Registers {
            eax: XEN_LAST,
            ebx: u32::from_le_bytes(*b"XenV"),
            ecx: u32::from_le_bytes(*b"MMXe"),
            edx: u32::from_le_bytes(*b"nVMM"),
        },
        (0x4000_0001, _) => Registers {
            eax: XEN_VERSION,
            ..Registers::default()
        },
        // The TSC is never emulated.
        (0x4000_0003, 0) => Registers {
            ebx: 2,
            ..Registers::default()
        },
        (XEN_LAST, 0) => Registers {
            ebx: MACHINE_ADDRESS_BITS,
            ..Registers::default()
        },
        _ => Registers::default(),
    }
}
