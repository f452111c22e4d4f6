// SPDX-License-Identifier: GPL-2.0

//! The frame that the ERET hypercall resumes.
//!
//! The switcher does this in assembly, without entering the Host; here is the same rule in Rust,
//! for frames the Host resumes itself. `tests/eret` holds the two equal over random frames.

use super::addr::Gva;
use super::flags;

// The numbers are `LGUEST_CS_*` and `LGUEST_SS_*` of the contract; the module compares them.

/// The CS that stands for Guest kernel mode in a frame.
pub const CS_KERNEL: u64 = 0x10;
/// The CS of 64-bit user mode.
pub const CS_USER64: u64 = 0x33;
/// The CS of 32-bit user mode.
pub const CS_USER32: u64 = 0x23;
/// The SS that stands for Guest kernel mode in a frame.
pub const SS_KERNEL: u64 = 0x18;
/// The SS of user mode.
pub const SS_USER: u64 = 0x2b;

/// The mode that the Guest runs in after an ERET.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Guest kernel mode, always 64-bit.
    Kernel,
    /// Guest user mode, 64-bit.
    User64,
    /// Guest user mode, 32-bit.
    User32,
}

/// A frame that may be resumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resume {
    /// The mode to resume.
    pub mode: Mode,
    /// RFLAGS for the processor.
    pub rflags: u64,
    /// The virtual interrupt flag.
    pub virtual_if: bool,
}

/// The reasons for which a frame is refused. The Guest gets #GP(0) at its SYSCALL instruction for
/// each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// CS is none of the three.
    Selector,
    /// IRET would fault on RIP: not canonical, or past 4 GiB for 32-bit code (SDM, "IRET").
    InstructionPointer,
}

/// Judges a frame. RSP needs no rule, since IRET loads any number there; SS follows from CS.
pub fn check(cs: u64, rip: u64, rflags: u64) -> Result<Resume, Refusal> {
    let mode = match cs {
        CS_KERNEL => Mode::Kernel,
        CS_USER64 => Mode::User64,
        CS_USER32 => Mode::User32,
        _ => return Err(Refusal::Selector),
    };
    let reachable = match mode {
        Mode::User32 => u32::try_from(rip).is_ok(),
        Mode::Kernel | Mode::User64 => Gva::new(rip).is_canonical(),
    };
    if !reachable {
        return Err(Refusal::InstructionPointer);
    }
    Ok(match mode {
        Mode::Kernel => Resume {
            mode,
            rflags: flags::sanitize_kernel(rflags),
            virtual_if: rflags & flags::IF != 0,
        },
        // A program that could turn interrupts off could keep its vCPU for ever.
        Mode::User64 | Mode::User32 => Resume {
            mode,
            rflags: flags::sanitize_user(rflags),
            virtual_if: true,
        },
    })
}
