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
//! 1. a vCPU's (`Vm`), by the thread that runs it, as long as it runs: ioctls only try it, so it does not matter how
//!    many of them somebody has.
//! 2. the VM's memory (`Vm`), while regions are added and when a vCPU is made.
//! 3. the shadow's, and that of [`Notify`]: nobody holds both.
//!
//! All of them sleep. In a run section, IRQs off, the last two are tried, and else it is
//! [`Stop::Later`]. RAM has no lock: it does not change any more. Interrupts touch an `Inbox` only, which
//! has none. Nor has `Crew`, which waits for vCPUs to leave the Guest: never with 3, and never in a section.

use crate::{
    abi::lguest_stats,
    blame::Stop,
    crew::Crew,
    inbox::Inbox,
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
        ram::GuestRam,
        slots::Lease, //
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
    pub(crate) crew: Arc<Crew>,
    pub(crate) notify: Arc<Notify>,
    pub(crate) lease: Arc<Lease>,
    // Last: the shadow points into it.
    pub(crate) ram: GuestRam,
}

impl Shared {
    pub(crate) fn new(
        shadow: Mmu,
        (crew, notify): (Arc<Crew>, Arc<Notify>),
        lease: Arc<Lease>,
        ram: GuestRam,
    ) -> impl PinInit<Self, Infallible> {
        pin_init!(Self {
            shadow <- new_mutex!(shadow, "lg::shadow"),
            crew,
            notify,
            lease,
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

    /// The root of a vCPU that begins. May sleep.
    ///
    /// The Host's failure is `ENOMEM`.
    pub(crate) fn enter(&self, inbox: &Inbox, root: Gpa) -> Result<Root, Stop> {
        loop {
            let mut shadow = self.shadow.lock();
            let result = shadow.enter(root);
            if result.is_ok() {
                inbox.presence.set_root(root.get());
            }
            drop(shadow);
            match result {
                Ok(root) => return Ok(root),
                Err(need) => self.provide(need, Wait::Allowed)?,
            }
        }
    }

    /// Takes the vCPU at `at`, whose inbox that is, to `root`, as CR3 bit 63 says: with what is cached of its lower
    /// half, or without.
    ///
    /// The Host's failure is `ENOMEM`.
    pub(crate) fn load(
        &self,
        at: &mut Root,
        inbox: &Inbox,
        root: Gpa,
        keep: bool,
        wait: Wait,
    ) -> Result<(), Stop> {
        loop {
            let mut shadow = self.shadow(wait)?;
            let result = shadow.load(&self.ram, at, root, keep);
            inbox.presence.set_root(at.gpa().get());
            drop(shadow);
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

    /// Forgets what is flushed on those of the `set` of vCPUs, and waits until none of them uses it any more. It is
    /// the vCPU at `at` that does that.
    pub(crate) fn flush_vcpus(
        &self,
        at: &Root,
        set: u64,
        what: Flush,
        wait: Wait,
    ) -> Result<(), Stop> {
        if wait == Wait::Forbidden && self.crew.visits(set).is_some() {
            return Err(Stop::Later);
        }
        self.shadow(wait)?
            .flush_vcpus(&self.ram, at, &self.crew, set, what);
        match self.crew.visits(set) {
            None => {}
            // Somebody came in meanwhile. To do it again does no harm.
            Some(_) if wait == Wait::Forbidden => return Err(Stop::Later),
            Some(visits) => self.crew.wait(&visits),
        }
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
            Need::Room => loop {
                let visits = self.shadow(wait)?.make_room(&self.crew);
                match visits {
                    Some(visits) => self.crew.wait(&visits),
                    None => break,
                }
            },
        }
        Ok(())
    }

    /// The shadow's way to `gva` from one of the roots of `at`, without addresses. May sleep.
    pub(crate) fn way(&self, at: &Root, user: bool, gva: Gva) -> [u64; 5] {
        self.shadow.lock().way(at, user, gva)
    }

    /// Does some of what the shadow has put off; says whether there is more. Whoever has the lock will do it as well.
    /// May sleep.
    pub(crate) fn tidy(&self) -> bool {
        let shadow = self.shadow.try_lock();
        shadow.is_some_and(|mut shadow| shadow.tidy(&self.crew))
    }

    pub(crate) fn add_stats(&self, stats: &mut lguest_stats) {
        self.shadow.lock().add_stats(stats);
        stats.pinned_pages = self.ram.pinned();
    }
}
