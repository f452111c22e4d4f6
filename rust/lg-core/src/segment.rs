// SPDX-License-Identifier: GPL-2.0

//! Segment and gate descriptors (SDM, "Segment Descriptors", "64-Bit Mode IDT" and "TSS
//! Descriptor in 64-bit mode"), and the selectors a Guest may hold.
//!
//! The switcher's GDT keeps Linux's indices, so that STAR stays what the Host made it.

use super::eret::{CS_USER32, CS_USER64, SS_USER};

/// Accessed. Set in every descriptor here, because the GDT is read-only to the processor: setting
/// the bit itself, it would fault.
const ACCESSED: u64 = 1 << 40;
/// Of data: writable. Of code: readable.
const READ_WRITE: u64 = 1 << 41;
/// Of data: grows down.
const EXPAND_DOWN: u64 = 1 << 42;
/// Code, not data.
const CODE: u64 = 1 << 43;
/// Code or data, not a system segment.
const NOT_SYSTEM: u64 = 1 << 44;
/// Descriptor privilege level 3; its two bits.
const DPL3: u64 = 3 << 45;
/// Present.
const PRESENT: u64 = 1 << 47;
/// Code for 64-bit mode.
const LONG: u64 = 1 << 53;
/// 32-bit operands and addresses.
const BIG: u64 = 1 << 54;
/// The limit counts pages.
const PAGES: u64 = 1 << 55;
/// Base 0, all of 4 GiB.
const FLAT: u64 = 0x000f_0000_0000_ffff | PAGES | PRESENT | NOT_SYSTEM | ACCESSED | READ_WRITE;

/// 64-bit code for CPL 0.
pub const KERNEL_CODE: u64 = FLAT | CODE | LONG;
/// Data for CPL 0.
pub const KERNEL_DATA: u64 = FLAT | BIG;
/// 64-bit code for CPL 3.
pub const USER_CODE64: u64 = FLAT | CODE | LONG | DPL3;
/// 32-bit code for CPL 3.
pub const USER_CODE32: u64 = FLAT | CODE | BIG | DPL3;
/// Data for CPL 3.
pub const USER_DATA: u64 = FLAT | BIG | DPL3;

/// Available 64-bit TSS, as a type of system segment.
const TYPE_TSS: u64 = 9 << 40;
/// Interrupt gate: clears IF.
const TYPE_INTERRUPT_GATE: u64 = 14 << 40;

/// A 64-bit TSS at the linear address `base` whose last byte is at `limit`: the two words of its
/// descriptor. Only the low 20 bits of `limit` fit.
pub const fn tss_descriptor(base: u64, limit: u32) -> [u64; 2] {
    [
        spread_base(base) | spread_limit(limit) | PRESENT | TYPE_TSS,
        base >> 32,
    ]
}

/// An interrupt gate to `offset` in the code segment `selector`: the two words of the IDT entry.
/// `ist` is 1 to 7 for a stack of the TSS, or 0; `dpl` is the CPL up to which `int` may use it.
pub const fn interrupt_gate(selector: u16, offset: u64, ist: u8, dpl: u8) -> [u64; 2] {
    let low = (offset & 0xffff)
        | ((selector as u64) << 16)
        | ((ist as u64 & 7) << 32)
        | TYPE_INTERRUPT_GATE
        | ((dpl as u64 & 3) << 45)
        | PRESENT
        | ((offset & 0xffff_0000) << 32);
    [low, offset >> 32]
}

/// The descriptor from whose limit `lsl` reads CPU and node number, of which 20 bits fit. Grows
/// down from `limit` and so is no use for loads.
pub const fn cpunode_descriptor(limit: u32) -> u64 {
    spread_limit(limit) | PRESENT | NOT_SYSTEM | ACCESSED | EXPAND_DOWN | DPL3 | BIG
}

/// Whether a data segment register can be loaded with a selector of whose descriptor LAR said
/// `rights` (SDM, "LAR" and "MOV"): a present segment of data, or of code that may be read.
pub const fn loads_as_data(rights: u32) -> bool {
    const NEEDED: u64 = PRESENT | NOT_SYSTEM;
    let descriptor = (rights as u64) << 32;
    descriptor & NEEDED == NEEDED && descriptor & (CODE | READ_WRITE) != CODE
}

/// What to put into the GDT when the Guest asks for `wanted` as a TLS descriptor: 0, or a present
/// data segment of DPL 3, marked accessed. `None` if it is anything else. No code: the switcher
/// resumes the two code segments it knows, and Linux refuses others as well.
pub const fn tls_descriptor(wanted: u64) -> Option<u64> {
    if wanted == 0 {
        return Some(0);
    }
    let needed = PRESENT | NOT_SYSTEM | DPL3;
    if wanted & needed == needed && wanted & (CODE | LONG) == 0 {
        Some(wanted | ACCESSED)
    } else {
        None
    }
}

/// Whether the switcher can load `selector` into DS, ES, FS or GS without #GP, and may: null, or a
/// readable segment of DPL 3 of its GDT, whose TLS entries hold `tls`. The requested privilege
/// level does not matter to the Guest's processor and not here.
pub const fn data_selector_ok(selector: u16, tls: &[u64; 3]) -> bool {
    let [tls0, tls1, tls2] = *tls;
    const NULL: u16 = 0;
    const CODE32: u16 = CS_USER32 as u16 & !3;
    const CODE64: u16 = CS_USER64 as u16 & !3;
    const DATA: u16 = SS_USER as u16 & !3;
    // LGUEST_TLS_FIRST, and what is behind it; then the entry whose limit is the CPU and node number.
    const TLS0: u16 = 12 * 8;
    const TLS1: u16 = 13 * 8;
    const TLS2: u16 = 14 * 8;
    const CPU_NODE: u16 = 15 * 8;
    match selector & !3 {
        NULL | CODE32 | CODE64 | DATA | CPU_NODE => true,
        // All data that `tls_descriptor` let through.
        TLS0 => tls0 != 0,
        TLS1 => tls1 != 0,
        TLS2 => tls2 != 0,
        _ => false,
    }
}

const fn spread_base(base: u64) -> u64 {
    ((base & 0x00ff_ffff) << 16) | ((base & 0xff00_0000) << 32)
}

const fn spread_limit(limit: u32) -> u64 {
    let limit = limit as u64;
    (limit & 0xffff) | ((limit & 0xf_0000) << 32)
}
