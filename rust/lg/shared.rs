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
//! 4. those of the Host's memory management, when memory is asked for; under them the Host takes pages of RAM.
//! 5. RAM's, for some instructions.
//!
//! The first three sleep. In a run section, IRQs off, the last two of these are tried, and else it is
//! [`Stop::Later`]. What there is of RAM is known without a lock. Interrupts touch an `Inbox` only, which
//! has none. Nor has `Crew`, which waits for vCPUs to leave the Guest: never with 3, and never in a section; and with 4
//! for looks at RAM to end, which nobody has who waits for anything.

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
    memory::Memory,
    mmu::{
        Fault,
        Generations,
        Mmu,
        Need,
        Unresolved, //
    },
    notify::Notify,
    sys::{
        notifier::Notifier,
        page::Wait,
        ram::{
            GuestRam,
            Look, //
        },
        slots::Lease, //
    },
};
use core::{
    convert::Infallible,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    }, //
};
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
    /// What of it is gone. Moves under its lock.
    pub(crate) generations: Arc<Generations>,
    /// The epoch of RAM that the shadow is of. Changes under its lock.
    followed: AtomicU64,
    pub(crate) crew: Arc<Crew>,
    pub(crate) notify: Arc<Notify>,
    pub(crate) lease: Arc<Lease>,
    memory: Arc<Notifier<Memory>>,
}

impl Shared {
    pub(crate) fn new(
        (shadow, generations): (impl Init<Mmu>, Arc<Generations>),
        (crew, notify): (Arc<Crew>, Arc<Notify>),
        lease: Arc<Lease>,
        memory: Arc<Notifier<Memory>>,
    ) -> impl PinInit<Self, Infallible> {
        pin_init!(Self {
            shadow <- new_mutex!(shadow, "lg::shadow"),
            generations,
            // Before there can be anything in the shadow.
            followed: AtomicU64::new(0),
            crew,
            notify,
            lease,
            memory,
        })
    }

    pub(crate) fn ram(&self) -> &GuestRam {
        &self.memory.owner().ram
    }

    /// Is the shadow of RAM as it is? Says so for as long as the caller's look, in which it is asked, is there: whoever
    /// takes pages after that waits for its end.
    pub(crate) fn follows(&self) -> bool {
        self.followed.load(Ordering::Acquire) == self.ram().epoch()
    }

    /// Forgets everything that the shadow has if the Host has taken some of it. May sleep.
    pub(crate) fn follow(&self, at: &Root, inbox: &Inbox) {
        if self.follows() {
            return;
        }
        let mut shadow = self.shadow.lock();
        // Before the flush: what is taken later has to be forgotten later.
        let epoch = self.ram().epoch();
        inbox.looker.look(self.ram(), |look| {
            shadow.flush(look, at, Flush::All);
        });
        self.followed.store(epoch, Ordering::Release);
    }

    /// The shadow, locked.
    pub(crate) fn shadow(&self, wait: Wait) -> Result<MutexGuard<'_, Mmu>, Stop> {
        match wait {
            Wait::Allowed => Ok(self.shadow.lock()),
            Wait::Forbidden => self.shadow.try_lock().ok_or(Stop::Later),
        }
    }

    /// Deals with a page fault at `gva` on the vCPU at `at`, whose inbox that is, and which keeps in `walked` what is
    /// worth to be kept when it is told to do that later.
    ///
    /// The Host's failure is `ENOMEM`, or why the Launcher's memory could not be had.
    pub(crate) fn fault(
        &self,
        (at, inbox): (&Root, &Inbox),
        walked: &mut Option<Resolved>,
        gva: Gva,
        access: Access,
        wait: Wait,
    ) -> Result<Fault, Stop> {
        loop {
            let mut shadow = self.shadow(wait)?;
            let look = |look: &Look<'_>| shadow.fault(look, at, walked, gva, access);
            let result = inbox.looker.look(self.ram(), look);
            drop(shadow);
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
            let look = |look: &Look<'_>| shadow.load(look, at, root, keep);
            let result = inbox.looker.look(self.ram(), look);
            inbox.presence.set_root(at.gpa().get());
            drop(shadow);
            match result {
                Ok(()) => return Ok(()),
                Err(need) => self.provide(need, wait)?,
            }
        }
    }

    /// Forgets what the Guest flushes on the vCPU at `at`, whose inbox that is.
    pub(crate) fn flush(
        &self,
        (at, inbox): (&Root, &Inbox),
        what: Flush,
        wait: Wait,
    ) -> Result<(), Stop> {
        let mut shadow = self.shadow(wait)?;
        inbox
            .looker
            .look(self.ram(), |look| shadow.flush(look, at, what));
        Ok(())
    }

    /// Forgets what is flushed on those of the `set` of vCPUs, and waits until none of them uses it any more. It is
    /// the vCPU at `at`, whose inbox that is, that does that.
    pub(crate) fn flush_vcpus(
        &self,
        (at, inbox): (&Root, &Inbox),
        set: u64,
        what: Flush,
        wait: Wait,
    ) -> Result<(), Stop> {
        if wait == Wait::Forbidden && self.crew.visits(set).is_some() {
            return Err(Stop::Later);
        }
        let mut shadow = self.shadow(wait)?;
        let look = |look: &Look<'_>| shadow.flush_vcpus(look, at, &self.crew, set, what);
        inbox.looker.look(self.ram(), look);
        drop(shadow);
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
            Need::Page(gpa) => self.ram().learn(gpa)?,
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
        stats.known_pages = self.ram().known();
    }
}
