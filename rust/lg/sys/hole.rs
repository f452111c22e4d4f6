// SPDX-License-Identifier: GPL-2.0

//! The switcher's slot in the Launcher's address space.
//!
//! Linux leaves the top-level entries 256 to 271 of every address space empty (the "guard hole" of
//! Documentation/arch/x86/x86_64/mm.rst). lg puts the tables of its switcher at the last of them,
//! in the one `mm` that runs the VM. The kernel neither copies the entry on fork nor walks it on
//! exit.

use super::cpu;
use crate::lg_core::addr::Hpa;
use core::sync::atomic::{
    AtomicUsize,
    Ordering, //
};
use kernel::{
    mm::Mm,
    prelude::*,
    sync::aref::ARef, //
};

/// The top-level entry.
pub(crate) const SLOT: usize = 271;

/// The first address of the slot.
pub(crate) fn base() -> u64 {
    let shift = if cpu::paging_levels() == 5 { 48 } else { 39 };
    // Sign extension from the top of the entry's index.
    ((SLOT as u64) << shift) | (!0 << (shift + 9))
}

/// The slot of one address space, filled.
///
/// # Invariants
///
/// Entry [`SLOT`] of the `mm`'s top-level table is ours, until this object is dropped.
pub(crate) struct Hole {
    mm: ARef<Mm>,
}

fn entry(mm: &Mm) -> &AtomicUsize {
    // SAFETY: A top-level table lives as long as its `mm` (we hold a reference), has 512 entries of
    // one word each, and this entry is one which the kernel never touches.
    unsafe {
        let pgd = (*mm.as_raw()).__bindgen_anon_1.pgd;
        &*pgd.add(SLOT).cast::<AtomicUsize>()
    }
}

impl Hole {
    /// Links the tables at `hpa` into the caller's address space; they stay there until the object
    /// is dropped.
    ///
    /// `EBUSY` when there is a switcher in it already: one VM per process.
    ///
    /// # Safety
    ///
    /// Every page that can be reached through `hpa` outlives the object.
    pub(crate) unsafe fn fill(mm: ARef<Mm>, hpa: Hpa) -> Result<Self> {
        const TABLE: u64 = 0x63; // P, W, A, D: supervisor only.
        entry(&mm)
            .compare_exchange(
                0,
                (hpa.get() | TABLE) as usize,
                Ordering::SeqCst,
                Ordering::SeqCst,
            )
            .map_err(|_| EBUSY)?;
        // INVARIANT: It was empty, so nobody else's, and it is filled now.
        Ok(Self { mm })
    }

    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        entry(&self.mm).store(0, Ordering::SeqCst);
        // The pages behind it are about to be freed: no CPU may still know the way.
        cpu::flush_tlb_everywhere();
    }
}
