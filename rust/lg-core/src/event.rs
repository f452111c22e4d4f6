// SPDX-License-Identifier: GPL-2.0

//! Vectors, and the events that the Guest is given (SDM, "Exception and Interrupt Vectors").

/// Divide error.
pub const DE: u8 = 0;
/// Debug.
pub const DB: u8 = 1;
/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// Breakpoint, INT3.
pub const BP: u8 = 3;
/// Overflow, INTO.
pub const OF: u8 = 4;
/// BOUND range exceeded.
pub const BR: u8 = 5;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Device not available.
pub const NM: u8 = 7;
/// Double fault.
pub const DF: u8 = 8;
/// Invalid TSS.
pub const TS: u8 = 10;
/// Segment not present.
pub const NP: u8 = 11;
/// Stack segment fault.
pub const SS: u8 = 12;
/// General protection.
pub const GP: u8 = 13;
/// Page fault.
pub const PF: u8 = 14;
/// x87 floating-point error.
pub const MF: u8 = 16;
/// Alignment check.
pub const AC: u8 = 17;
/// Machine check.
pub const MC: u8 = 18;
/// SIMD floating-point error.
pub const XM: u8 = 19;
/// Virtualization exception.
pub const VE: u8 = 20;
/// Control protection.
pub const CP: u8 = 21;
/// Hypervisor injection, AMD.
pub const HV: u8 = 28;
/// VMM communication, AMD.
pub const VC: u8 = 29;
/// Security exception, AMD.
pub const SX: u8 = 30;
/// The first vector that interrupts may have.
pub const FIRST_INTERRUPT: u8 = 32;
/// `int 0x80`, the system call of 32-bit programs. Linux gives this vector to no device unless it runs
/// without 32-bit emulation.
pub const INT80: u8 = 0x80;
/// The error code of the #GP for an `int 0x80` which the gate does not let through (SDM 3A, "Error
/// Code"): the vector, and that it is one.
pub const INT80_REFUSED: u32 = ((INT80 as u32) << 3) | 2;

/// Says whether the processor pushes an error code for this exception.
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, DF | TS | NP | SS | GP | PF | AC | CP | VC | SX)
}

/// An exception or interrupt on its way to the Guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The vector, which need not be one of this file's constants.
    pub vector: u8,
    /// The error code, for those exceptions that have one.
    pub error_code: Option<u32>,
}

impl Event {
    /// An event the processor reported. `error_code` is dropped when `vector` has none.
    pub const fn new(vector: u8, error_code: u32) -> Self {
        let error_code = if has_error_code(vector) {
            Some(error_code)
        } else {
            None
        };
        Self { vector, error_code }
    }

    /// An interrupt. Vectors below [`FIRST_INTERRUPT`] carry no error code either.
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
        }
    }

    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::new(GP, 0);
}
