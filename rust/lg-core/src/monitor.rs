// SPDX-License-Identifier: GPL-2.0

//! The monitor: code of the Guest's own below its kernel, in kernel mode like that, which takes the kernel's
//! SYSCALLs. So a kernel that speaks another ABI is served by the Guest itself.

use super::addr::{Gpa, Gva};

// The numbers are `LGUEST_MONITOR_*` of the contract; the module compares them.

/// The first top-level slot of its memory.
pub const FIRST: usize = 256;
/// The last one, which has its code.
pub const CODE: usize = 270;

/// Bits of an address below the index of its top-level slot.
pub const SLOT_SHIFT: u32 = 39;
/// What is above them in every address of slot [`CODE`], sign extension included.
pub const CODE_PREFIX: u64 = ((!0 << (48 - SLOT_SHIFT)) | CODE as u64) & (!0 >> SLOT_SHIFT);

/// What is known of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Monitor {
    entry: Gva,
    root: Gpa,
}

impl Monitor {
    /// `None` if the entry point is outside of its slots, or the root not aligned.
    pub fn new(entry: Gva, root: Gpa) -> Option<Self> {
        (covers(entry) && root.offset() == 0).then_some(Self { entry, root })
    }

    /// Where SYSCALLs of the kernel go. It is canonical.
    pub fn entry(&self) -> Gva {
        self.entry
    }

    /// The tables that translate its slots.
    pub fn root(&self) -> Gpa {
        self.root
    }
}

/// Says whether `gva` is in a slot of the monitor's.
pub const fn covers(gva: Gva) -> bool {
    let slot = gva.index(4);
    gva.is_canonical() && FIRST <= slot && slot <= CODE
}

/// Says whether a SYSCALL in Guest kernel mode is for the Host where there is a monitor. `rip` is that of the next
/// instruction. The switcher has the same rule in assembly.
pub const fn is_hypercall(rip: u64) -> bool {
    rip >> SLOT_SHIFT == CODE_PREFIX
}

/// The root from which `gva` is to be translated where CR3 is `cr3`.
pub fn root_of(monitor: Option<&Monitor>, cr3: Gpa, gva: Gva, user: bool) -> Gpa {
    match monitor {
        Some(monitor) if !user && covers(gva) => monitor.root,
        _ => cr3,
    }
}
