// SPDX-License-Identifier: GPL-2.0

//! This module makes of a translation of the Guest's an entry of level 1.

use super::super::addr::{Gva, Hpa};
use super::super::paging::{Access, Translation, A, ADDR, D, NX, P, U, W};

/// The halves of the address space, and the tables named after them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// Under both roots.
    User,
    /// Under the kernel root only.
    Kernel,
}

/// The half `gva` lies in, by bit 47; tells nothing about an address that is not canonical.
pub const fn half(gva: Gva) -> Half {
    if gva.canonicalize().is_upper() {
        Half::Kernel
    } else {
        Half::User
    }
}

/// The entry of level 1 that maps `t` to the Host's page at `hpa` in a table of `half`.
///
/// `None` for a page that the Guest maps for its kernel alone, in a table that user mode would
/// reach.
///
/// * Writable only when dirty: the first write has to come by to set the Guest's D bit.
/// * A and D are set, since nobody looks at them and the processor need not write them then.
/// * Never global: a global entry outlives the switch to the Host's CR3, where a program of the
///   Host would read the Guest's memory through it.
/// * Write-back whatever the Guest's PWT, PCD and PAT bits say. No device of the Guest bypasses the
///   caches, and the same page under two memory types is undefined (SDM, "Programming the PAT").
pub const fn leaf(t: &Translation, hpa: Hpa, half: Half) -> Option<u64> {
    let executable = match half {
        Half::User if !t.user => return None,
        Half::User => t.executable,
        // SMEP, for a page both of the Guest's modes may use in a table of the kernel's.
        Half::Kernel => t.executable && !t.user,
    };
    let mut entry = (hpa.get() & ADDR) | P | U | A | D;
    if t.writable && t.dirty {
        entry |= W;
    }
    if !executable {
        entry |= NX;
    }
    Some(entry)
}

/// Whether the entry `leaf` of level 1 already permits `access`. If it does although the processor
/// faulted, and the walk of the Guest's tables succeeded, the fault was spurious: a stale entry of
/// the TLB, which an INVLPG in the switcher removes.
pub const fn permits(leaf: u64, access: Access) -> bool {
    leaf & (P | U) == P | U && (leaf & W != 0 || !access.write) && (leaf & NX == 0 || !access.fetch)
}
