// SPDX-License-Identifier: GPL-2.0

//! What the vCPUs of a VM share: its RAM, the shadow, and where its virtqueues' kicks go.
//!
//! There is such an object from the first vCPU on. VM and vCPUs hold it, and neither needs the other for
//! what is in it.
//!
//! # Locks
//!
//! In this order:
//!
//! 1. a vCPU's (`Vm`), by the thread that runs it, as long as it runs: ioctls only try it.
//! 2. the VM's memory (`Vm`), while regions are added and when the first vCPU is made.
//! 3. the shadow's, and that of [`Notify`]: nobody holds both.
//!
//! All of them sleep. In a run section, IRQs off, the last two are tried, and else it is
//! [`Stop::Later`]. RAM has no lock: it does not change any more. Interrupts touch an `Inbox` only, which
//! has none.

use crate::{
    abi::lguest_stats,
    blame::Stop,
    mmu::Mmu,
    notify::Notify,
    sys::{
        page::Wait,
        ram::GuestRam, //
    },
};
use core::convert::Infallible;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        lock::mutex::MutexGuard,
        Arc,
        Mutex, //
    },
};

#[pin_data]
pub(crate) struct Shared {
    #[pin]
    shadow: Mutex<Mmu>,
    pub(crate) notify: Arc<Notify>,
    // Last: the shadow points into it.
    pub(crate) ram: GuestRam,
}

impl Shared {
    pub(crate) fn new(
        shadow: Mmu,
        notify: Arc<Notify>,
        ram: GuestRam,
    ) -> impl PinInit<Self, Infallible> {
        pin_init!(Self {
            shadow <- new_mutex!(shadow, "lg::shadow"),
            notify,
            ram,
        })
    }

    /// The shadow, locked.
    pub(crate) fn shadow(&self, wait: Wait) -> Result<MutexGuard<'_, Mmu>, Stop> {
        match wait {
            Wait::Allowed => Ok(self.shadow.lock()),
            Wait::Forbidden => self.shadow.try_lock().ok_or(Stop::Later),
        }
    }

    /// Frees some of what the shadow has dropped; says whether there is more. May sleep.
    pub(crate) fn free_dropped(&self) -> bool {
        self.shadow.lock().free_dropped()
    }

    pub(crate) fn add_stats(&self, stats: &mut lguest_stats) {
        self.shadow.lock().add_stats(stats);
        stats.pinned_pages = self.ram.pinned();
    }
}
