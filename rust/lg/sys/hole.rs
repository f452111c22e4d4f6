// SPDX-License-Identifier: GPL-2.0

//! The switcher's slot in the Launcher's address space.
//!
//! Linux leaves the top-level entries 256 to 271 of every address space empty (the "guard hole" of
//! Documentation/arch/x86/x86_64/mm.rst). lg puts the tables of its switcher at the last of them,
//! in the one `mm` that runs the VM. The kernel neither copies the entry on fork nor walks it on
//! exit. They stay there until the address space is over: see [`slots`](super::slots).

use super::cpu;
use crate::lg_core::addr::Hpa;
use core::sync::atomic::{
    AtomicI32,
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

/// The slot's size in bytes of addresses on a Host of four levels; with five it is larger.
pub(crate) const MIN_SIZE: u64 = 1 << 39;

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

// Without it a kernel thread that borrows an address space holds no reference, and `nobody_is_in` would not see it.
const _: () = assert!(cfg!(CONFIG_MMU_LAZY_TLB_REFCOUNT));

impl Hole {
    /// Links the tables at `hpa` into an address space; they stay there until the object is dropped.
    ///
    /// `EBUSY` when somebody else has something there.
    ///
    /// # Safety
    ///
    /// Every page that can be reached through `hpa` outlives the object; and the object is dropped only when
    /// [`nobody_is_in`](Self::nobody_is_in) says so, or what was behind a [`closed`](Self::close) hole has been
    /// flushed from every TLB.
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

    pub(crate) fn mm(&self) -> &ARef<Mm> {
        &self.mm
    }

    /// Is the address space over, for programs as for the kernel?
    ///
    /// Then the reference we hold is the last one. Who could make another has one himself: a thread
    /// (they hold one together), or a CPU that has the tables loaded still while a kernel thread runs on
    /// it (`mmgrab_lazy_tlb`). What CPUs may remember under the address space's PCIDs nobody uses again:
    /// Linux gives them to another with a flush (`choose_new_asid` in arch/x86/mm/tlb.c).
    pub(crate) fn nobody_is_in(&self) -> bool {
        // SAFETY: The `mm` is there, for we hold a reference; others change the count, atomically, and
        // `AtomicI32` has the layout of the C counter.
        let count = unsafe {
            let count = &raw mut (*self.mm.as_raw())
                .__bindgen_anon_1
                .__bindgen_anon_1
                .mm_count;
            &*count.cast::<AtomicI32>()
        };
        // Acquire: whatever the others did under their references is done.
        count.load(Ordering::Acquire) == 1
    }

    /// Takes the entry away; CPUs may know it still.
    pub(crate) fn close(&self) {
        entry(&self.mm).store(0, Ordering::SeqCst);
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        self.close();
    }
}
