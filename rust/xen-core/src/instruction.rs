// SPDX-License-Identifier: GPL-2.0
//! Instructions of the kernel that fault and are done for it.

/// UD2, "xen", CPUID: by these bytes a kernel asks for Xen's answer to CPUID.
pub const FORCED_CPUID: [u8; 7] = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];

/// Bytes of RDMSR and WRMSR.
pub const MSR_LENGTH: u64 = 2;

/// An access to an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// The access to an MSR that `bytes` are, if they are one.
pub const fn msr(bytes: [u8; 2]) -> Option<Msr> {
    match bytes {
        [0x0f, 0x32] => Some(Msr::Read),
        [0x0f, 0x30] => Some(Msr::Write),
        _ => None,
    }
}

const MSR_PLATFORM_ID: u32 = 0x17;
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_UCODE_REV: u32 = 0x8b;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_PAT: u32 = 0x277;

/// What an MSR reads as that lg itself does not know; `None`: it is not there.
pub const fn msr_value(msr: u32) -> Option<u64> {
    match msr {
        // Read early, and without a look at whether they are there.
        MSR_PLATFORM_ID | MSR_UCODE_REV => Some(0),
        // Where it always is, on, of the boot CPU.
        MSR_APIC_BASE => Some(0xfee0_0900),
        // Fast strings, no BTS, no PEBS. On Intel's CPUs Linux clears another bit of it before it remembers that it runs by Xen's
        // ABI, and then takes even an access that may fault for its end.
        MSR_MISC_ENABLE => Some(1 | 1 << 11 | 1 << 12),
        // The order of the types of memory that Linux itself would write there. All memory is write-back anyway.
        MSR_PAT => Some(0x0407_0506_0007_0106),
        _ => None,
    }
}
