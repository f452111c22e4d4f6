// SPDX-License-Identifier: GPL-2.0
//! What an IRET frame resumes.

use crate::page_table::is_canonical;
use xen_abi::vcpu::selector::{FLAT_CS32, FLAT_CS64, FLAT_DS};

/// The interrupt flag, which is the event mask's opposite.
pub const IF: u64 = 1 << 9;
/// The trap flag.
pub const TF: u64 = 1 << 8;
/// What kernel mode may have of RFLAGS: CF, PF, AF, ZF, SF, TF, DF, OF, RF, AC and ID. IOPL and VM are not the kernel's, and
/// with NT our own IRETQ would fault.
pub const RFLAGS: u64 = 0x25_0dd5;
/// What a frame may say of them: a program can set NT, and keeps it.
const IN_FRAMES: u64 = RFLAGS | (1 << 14);
/// The bit of RFLAGS that is always set.
const ALWAYS: u64 = 2;

/// Code selectors of user mode, as Linux and lg have them.
pub const USER_CS64: u16 = 0x33;
#[allow(missing_docs)]
pub const USER_CS32: u16 = 0x23;
/// That of user mode's stack.
const USER_SS: u16 = 0x2b;

/// Where an IRET leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The kernel.
    Kernel,
    /// A program, by this selector of lg's.
    User(u16),
}

/// A frame's CS or SS that is none, or an RIP that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

/// Can this be a program's SS? The last three are the program's own segments (TLS), into which nobody looks: it gets lg's.
const fn is_stack(selector: u16) -> bool {
    matches!(selector, USER_SS | FLAT_DS | 0x63 | 0x6b | 0x73)
}

/// Judges a frame. Of CS only the low 16 bits count: above them is an old event mask.
pub const fn target(cs: u64, rip: u64, ss: u64) -> Result<Target, BadFrame> {
    let target = match cs as u16 {
        cs if cs & 3 != 3 => Target::Kernel,
        USER_CS64 | FLAT_CS64 => Target::User(USER_CS64),
        USER_CS32 | FLAT_CS32 => Target::User(USER_CS32),
        _ => return Err(BadFrame),
    };
    let reachable = match target {
        Target::Kernel => is_canonical(rip),
        Target::User(_) if !is_stack(ss as u16) => false,
        Target::User(USER_CS32) => rip >> 32 == 0,
        Target::User(_) => is_canonical(rip),
    };
    if reachable {
        Ok(target)
    } else {
        Err(BadFrame)
    }
}

/// RFLAGS to resume; the interrupt flag is on. For kernel mode, [`RFLAGS`] is the bound as well.
pub const fn rflags(wanted: u64) -> u64 {
    (wanted & IN_FRAMES) | IF | ALWAYS
}

/// Does the frame want events masked?
pub const fn masks_events(rflags: u64) -> bool {
    rflags & IF == 0
}

/// RFLAGS as an event's frame shows them: `cpu` is what the CPU had, `masked` whether events were.
pub const fn shown(cpu: u64, masked: bool) -> u64 {
    let flags = (cpu & IN_FRAMES) | ALWAYS;
    if masked {
        flags
    } else {
        flags | IF
    }
}

/// RF and AC: beside TF, what a handler of the kernel does not begin with.
pub const NOT_IN_HANDLERS: u64 = (1 << 16) | (1 << 18);
