// SPDX-License-Identifier: GPL-2.0

//! The vCPUs of a VM share this: its RAM, the shadow, and where its virtqueues' kicks go.
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
    lg_core::{
        addr::{
            Gpa,
            Gva, //
        },
        paging::Access,
        shadow::{
            Flush,
            Resolved,
            Root, //
        },
    },
    mmu::{
        Fault,
        Mmu,
        Need,
        Unresolved, //
    },
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

    /// Deals with a page fault at `gva` on the vCPU at `at`, which keeps in `walked` what is worth to be kept
    /// when it is told to do that later.
    ///
    /// The Host's failure is `ENOMEM`, or why the Launcher's memory could not be had.
    pub(crate) fn fault(
        &self,
        at: &Root,
        walked: &mut Option<Resolved>,
        gva: Gva,
        access: Access,
        wait: Wait,
    ) -> Result<Fault, Stop> {
        loop {
            let result = self.shadow(wait)?.fault(&self.ram, at, walked, gva, access);
            match result {
                Ok(fault) | Err(Unresolved::Settled(fault)) => return Ok(fault),
                Err(Unresolved::Need(need)) => self.provide(need, wait)?,
                Err(Unresolved::Death(death)) => return Err(death.into()),
            }
        }
    }

    /// Takes the vCPU at `at` to `root`, as CR3 bit 63 says: with what is cached of its lower half, or without.
    ///
    /// The Host's failure is `ENOMEM`.
    pub(crate) fn load(
        &self,
        at: &mut Root,
        root: Gpa,
        keep: bool,
        wait: Wait,
    ) -> Result<(), Stop> {
        loop {
            let result = self.shadow(wait)?.load(&self.ram, at, root, keep);
            match result {
                Ok(()) => return Ok(()),
                Err(need) => self.provide(need, wait)?,
            }
        }
    }

    /// Forgets what the Guest flushes on the vCPU at `at`.
    pub(crate) fn flush(&self, at: &Root, what: Flush, wait: Wait) -> Result<(), Stop> {
        self.shadow(wait)?.flush(&self.ram, at, what);
        Ok(())
    }

    /// Gets what was missing: [`Stop::Later`] when waiting is forbidden.
    fn provide(&self, need: Need, wait: Wait) -> Result<(), Stop> {
        if wait == Wait::Forbidden {
            return Err(Stop::Later);
        }
        match need {
            // Without a lock: that may take long.
            Need::Page(gpa) => {
                self.ram.page(gpa)?;
            }
            Need::Stock => self.shadow(wait)?.stock_up()?,
            Need::Room => self.shadow(wait)?.make_room(),
        }
        Ok(())
    }

    /// The shadow's way to `gva` from one of the roots of `at`, without addresses. May sleep.
    pub(crate) fn way(&self, at: &Root, user: bool, gva: Gva) -> [u64; 5] {
        self.shadow.lock().way(at, user, gva)
    }

    /// Does some of what the shadow has put off; says whether there is more. May sleep.
    pub(crate) fn tidy(&self) -> bool {
        self.shadow.lock().tidy()
    }

    pub(crate) fn add_stats(&self, stats: &mut lguest_stats) {
        self.shadow.lock().add_stats(stats);
        stats.pinned_pages = self.ram.pinned();
    }
}
