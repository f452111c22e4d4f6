// SPDX-License-Identifier: GPL-2.0

//! XCR0: the components of the processor's state that instructions may use and XSAVE saves (SDM,
//! "Enabling the XSAVE Feature Set and XSAVE-Enabled Features").

/// x87. It cannot be off.
pub const X87: u64 = 1 << 0;
/// XMM registers and MXCSR.
pub const SSE: u64 = 1 << 1;
/// Upper halves of YMM registers.
pub const AVX: u64 = 1 << 2;
/// Opmask registers, upper halves of ZMM0 to ZMM15, and ZMM16 to ZMM31: all or none.
pub const AVX512: u64 = 7 << 5;
/// PKRU. It has no say in whether the register can be used, CR4.PKE has.
pub const PKRU: u64 = 1 << 9;

/// What a Guest may have. The rest stays the Host's: PKRU governs the Host's own accesses to user
/// memory, too; AMX takes an MSR and 8 KiB; APX would be registers that no Guest kernel saves.
const GUEST: u64 = X87 | SSE | AVX | AVX512;

/// The largest XCR0 that a Guest may have on a Host that has `host`.
pub const fn offered(host: u64) -> u64 {
    host & GUEST
}

/// Would the processor take `value` if it had only what `offered` says?
pub const fn accepts(value: u64, offered: u64) -> bool {
    value & !offered == 0
        && value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && (value & AVX512 == 0 || value & AVX512 == AVX512 && value & AVX != 0)
}
