// SPDX-License-Identifier: GPL-2.0

//! The slots of all address spaces that have had a VM.
//!
//! A slot lives as long as its address space, and the VMs of that have it one after the other. What
//! it maps never changes while a CPU may use it, though a VM of more vCPUs may add to it: translations that a CPU has cached stay true, with
//! whichever VM it comes back. Nothing has to be flushed when a VM ends, on no CPU; and there is no
//! moment at which a page has been given back and some CPU still knows the way to it.
//!
//! The pages come back when the address space is over ([`Hole::nobody_is_in`]). Nobody tells us of that
//! moment, so whoever takes or returns a slot looks for others that are over. What is left when the
//! last VM is gone is a handful of pages for each process that ended about then; it waits for the next
//! VM, or for the module's end.

use super::{
    hole::Hole,
    host,
    switcher::Slot,
    task, //
};
use core::ops::Deref;
use kernel::{
    mm::Mm,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

struct Entry {
    // Dropped first: the way in.
    hole: Hole,
    slot: Arc<Slot>,
    leased: bool,
}

kernel::sync::global_lock! {
    // SAFETY: `Slots::new` initializes it, before there is a device and so a VM.
    unsafe(uninit) static SLOTS: Mutex<KVec<Entry>> = KVec::new();
}

/// Gives back the slots of address spaces that are over.
fn sweep(entries: &mut KVec<Entry>) {
    entries.retain(|entry| entry.leased || !entry.hole.nobody_is_in());
}

fn is(entry: &Entry, mm: &Mm) -> bool {
    entry.hole.mm().as_raw() == mm.as_raw()
}

/// All slots: there is one object, from before the device is there until it is gone.
pub(crate) struct Slots(());

impl Slots {
    /// For the module's `init`.
    pub(crate) fn new() -> Self {
        // SAFETY: The module is initialized once.
        unsafe { SLOTS.init() };
        Self(())
    }
}

impl Drop for Slots {
    /// Processes that have had a VM go on, but nobody can have one any more.
    fn drop(&mut self) {
        // Nobody else would free the list itself.
        let entries = core::mem::replace(&mut *SLOTS.lock(), KVec::new());
        if entries.is_empty() {
            return;
        }
        entries.iter().for_each(|entry| entry.hole.close());
        // The pages are about to be freed: no CPU may still know the way.
        host::flush_tlb_everywhere();
        drop(entries);
    }
}

/// The slot of an address space in the hands of one VM.
pub(crate) struct Lease {
    slot: Arc<Slot>,
    mm: ARef<Mm>,
}

impl Lease {
    /// Of the caller's address space. `EBUSY` while another VM has it. May sleep.
    pub(crate) fn new() -> Result<Self> {
        let mm = task::current_mm().ok_or(EINVAL)?;
        if let Some(lease) = Self::of_known(&mut SLOTS.lock(), &mm)? {
            return Ok(lease);
        }
        // Not under the lock, which all processes share: this may wait for memory of the caller's cgroup.
        let slot = Arc::pin_init(Slot::new()?, GFP_KERNEL_ACCOUNT)?;
        let mut entries = SLOTS.lock();
        // Another thread may have been faster.
        if let Some(lease) = Self::of_known(&mut entries, &mm)? {
            return Ok(lease);
        }
        entries.reserve(1, GFP_KERNEL)?;
        // SAFETY: `slot` is in the same entry, and dropped after the hole. Entries are dropped by `sweep`, and
        // by `Slots` after a flush; the `reserve` above sees to it that `push` cannot fail.
        let hole = unsafe { Hole::fill(mm.clone(), slot.hpa()) }?;
        entries.push(
            Entry {
                hole,
                slot: slot.clone(),
                leased: true,
            },
            GFP_KERNEL,
        )?;
        Ok(Self { slot, mm })
    }

    fn of_known(entries: &mut KVec<Entry>, mm: &ARef<Mm>) -> Result<Option<Self>> {
        sweep(entries);
        let Some(entry) = entries.iter_mut().find(|entry| is(entry, mm)) else {
            return Ok(None);
        };
        if core::mem::replace(&mut entry.leased, true) {
            return Err(EBUSY);
        }
        Ok(Some(Self {
            slot: entry.slot.clone(),
            mm: mm.clone(),
        }))
    }

    /// The address space in which the switcher can be entered.
    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }
}

impl Deref for Lease {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Nothing of this VM stays for the next one, its roots least of all.
        // SAFETY: Who drives a vCPU of the slot keeps the lease, so nobody does any more, and nobody can
        // before the lock is taken below.
        unsafe { self.slot.reset() };
        let mut entries = SLOTS.lock();
        if let Some(entry) = entries.iter_mut().find(|entry| is(entry, &self.mm)) {
            entry.leased = false;
        }
        sweep(&mut entries);
    }
}
