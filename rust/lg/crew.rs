// SPDX-License-Identifier: GPL-2.0

//! The vCPUs of a VM as they know each other.
//!
//! There is no lock here. What one vCPU needs of another is in that one's [`Inbox`], and works whether it runs,
//! halts, is off, or is over.
//!
//! # Waiting
//!
//! Who takes something away from others waits for those who are in the Guest ([`Crew::visits`], [`Crew::wait`]). He
//! does that out of it, with IRQs on and without a lock: in a section the CPU's interrupts are off, and then he would
//! not see another's kick; and the others, who need no lock to get out of the Guest, may need one for what they do
//! then. So nobody waits for somebody who waits.

use crate::{
    abi::LGUEST_MAX_VCPUS,
    blame::Errno,
    inbox::{
        Inbox,
        START_WORDS, //
    },
    lg_core::{
        irq::Call,
        power::Life,
        presence::Visit, //
    },
    sys::{
        nospec,
        task, //
    },
};
use core::sync::atomic::{
    AtomicBool,
    AtomicU32,
    Ordering, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    },
};

const MAX: usize = LGUEST_MAX_VCPUS as usize;

/// The vCPUs of a VM. That of number 0 is there from the beginning.
pub(crate) struct Crew {
    inboxes: [SetOnce<Arc<Inbox>>; MAX],
    /// Those that were made: all below this number.
    count: AtomicU32,
    /// Those that are on.
    on: AtomicU32,
    /// Somebody turns all others off.
    stopping: AtomicBool,
    over: AtomicBool,
}

/// Stays of vCPUs in the Guest.
#[derive(Clone)]
pub(crate) struct Visits([Visit; MAX]);

impl Visits {
    pub(crate) const NONE: Self = Self([Visit::NONE; MAX]);
}

impl Crew {
    /// May sleep.
    pub(crate) fn new() -> Result<Self> {
        let this = Self {
            inboxes: [const { SetOnce::new() }; MAX],
            count: AtomicU32::new(0),
            on: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        this.make_inbox(0)?;
        Ok(this)
    }

    fn make_inbox(&self, id: usize) -> Result {
        let inbox = Arc::pin_init(Inbox::new(), GFP_KERNEL_ACCOUNT)?;
        nospec::get(&self.inboxes, id)
            .ok_or(EINVAL)?
            .populate(inbox);
        Ok(())
    }

    /// The inbox of the next vCPU, whose number that is; who makes vCPUs has a lock. May sleep.
    pub(crate) fn inbox_of_next(&self, id: usize) -> Result<Arc<Inbox>> {
        if self.inbox(id).is_none() {
            self.make_inbox(id)?;
        }
        Ok(self.inbox(id).ok_or(EINVAL)?.clone())
    }

    /// The next vCPU is there.
    pub(crate) fn enlist(&self) {
        let id = self.count.fetch_add(1, Ordering::SeqCst) as usize;
        // Either this sees that all is over, or `end` sees the vCPU.
        if self.over.load(Ordering::SeqCst) {
            if let Some(inbox) = self.inbox(id) {
                inbox.power.end();
            }
        }
    }

    /// The number of vCPUs.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst) as usize
    }

    /// The inbox of this number, whether the vCPU is there or not.
    fn inbox(&self, id: usize) -> Option<&Arc<Inbox>> {
        nospec::get(&self.inboxes, id)?.as_ref()
    }

    /// The inbox of a vCPU that is there.
    pub(crate) fn get(&self, id: u64) -> Option<&Inbox> {
        let id = usize::try_from(id).ok()?;
        (id < self.count())
            .then(|| self.inbox(id))?
            .map(|inbox| &**inbox)
    }

    /// The inbox of vCPU 0, which is there before the vCPU is.
    pub(crate) fn first(&self) -> Option<&Inbox> {
        self.inbox(0).map(|inbox| &**inbox)
    }

    /// All that are there, with their numbers.
    fn all(&self) -> impl Iterator<Item = (usize, &Inbox)> {
        let inboxes = self.inboxes.iter().take(self.count());
        let inboxes = inboxes.filter_map(SetOnce::as_ref);
        inboxes.enumerate().map(|(id, inbox)| (id, &**inbox))
    }

    /// Are all vCPUs of the set there?
    pub(crate) fn has(&self, set: u64) -> bool {
        const { assert!(MAX < 64) };
        set >> self.count() == 0
    }

    /// Those of the set that are there.
    fn of(&self, set: u64) -> impl Iterator<Item = (usize, &Inbox)> {
        self.all().filter(move |(id, _)| set >> id & 1 != 0)
    }

    /// Raises a vector for those of the set that are on. Any context.
    pub(crate) fn raise(&self, set: u64, vector: u8) {
        for (_, inbox) in self.of(set) {
            if inbox.power.life().is_some() {
                inbox.raise(vector);
            }
        }
    }

    /// Calls those of the set that are on. Any context.
    pub(crate) fn call(&self, set: u64, call: Call) {
        for (_, inbox) in self.of(set) {
            if inbox.power.life().is_some() {
                inbox.call(call);
            }
        }
    }

    /// The roots that those of the set are on.
    pub(crate) fn roots(&self, set: u64) -> impl Iterator<Item = u64> + '_ {
        self.of(set).map(|(_, inbox)| inbox.presence.root())
    }

    /// The visits of those of the set which may not know of what the caller has done before. `None` if there are
    /// none.
    pub(crate) fn visits(&self, set: u64) -> Option<Visits> {
        let mut visits = Visits::NONE;
        let mut any = false;
        for (id, inbox) in self.of(set) {
            let visit = inbox.presence.fence_and_visit();
            any |= visit != Visit::NONE;
            if let Some(place) = visits.0.get_mut(id) {
                *place = visit;
            }
        }
        any.then_some(visits)
    }

    /// Is the vCPU off, and nothing of it runs any more?
    pub(crate) fn is_off(&self, id: u64) -> Option<bool> {
        let inbox = self.get(id)?;
        Some(inbox.power.is_off() && inbox.presence.fence_and_visit() == Visit::NONE)
    }

    /// Are they over?
    pub(crate) fn are_over(&self, visits: &Visits) -> bool {
        let mut each = self.all().zip(&visits.0);
        each.all(|((_, inbox), visit)| inbox.presence.is_over(*visit))
    }

    /// Makes those who are on these visits leave, and waits for it: until they are out, wherever they are then. Out
    /// of the Guest, IRQs on, no lock held.
    pub(crate) fn wait(&self, visits: &Visits) {
        let left = |visit: &Visit| *visit != Visit::NONE;
        for ((_, inbox), visit) in self.all().zip(&visits.0) {
            if left(visit) && !inbox.presence.is_over(*visit) {
                inbox.kick();
            }
        }
        for ((_, inbox), visit) in self.all().zip(&visits.0) {
            while !inbox.presence.is_over(*visit) {
                // It is on a CPU with IRQs on as soon as the Guest runs, and so hears the kick. It may be that its
                // CPU is one of another hypervisor's, which has better things to do.
                core::hint::spin_loop();
                task::reschedule_if_asked();
            }
        }
    }

    /// Waits until nobody looks at RAM any more who may have begun before the caller has forgotten pages, wherever the
    /// vCPUs are then. Out of a look; does not sleep: to end one takes no lock, and no memory.
    pub(crate) fn await_looks(&self) {
        let mut looks = Visits::NONE;
        for ((_, inbox), look) in self.all().zip(&mut looks.0) {
            *look = inbox.looker.fence_and_look();
            if *look != Visit::NONE {
                inbox.kick();
            }
        }
        for ((_, inbox), look) in self.all().zip(&looks.0) {
            while !inbox.looker.is_over(*look) {
                core::hint::spin_loop();
            }
        }
    }

    /// Turns vCPU 0 on, which begins by itself.
    pub(crate) fn start_first(&self) -> Life {
        let started = |inbox: &Inbox| inbox.power.start(&[0; START_WORDS], || true);
        if self.first().is_some_and(started) {
            self.on.fetch_add(1, Ordering::SeqCst);
        }
        let life = self.first().and_then(|inbox| inbox.power.life());
        life.unwrap_or(Life::NONE)
    }

    /// Turns vCPU `id` on, to begin as `start` says, in that life of the caller's; unless it is not off. IRQs on.
    pub(crate) fn start(
        &self,
        (me, life): (&Inbox, Life),
        id: u64,
        start: &[u64; START_WORDS],
    ) -> Result<(), Errno> {
        let inbox = self.get(id).ok_or(Errno::Invalid)?;
        // Before it can turn itself off.
        self.on.fetch_add(1, Ordering::SeqCst);
        let before = || {
            inbox.clear();
            me.power.is(life)
        };
        if !inbox.power.start(start, before) {
            self.on.fetch_sub(1, Ordering::SeqCst);
            return Err(Errno::Busy);
        }
        inbox.kick();
        Ok(())
    }

    /// Turns the caller's vCPU off, unless all others are.
    pub(crate) fn stop(&self, inbox: &Inbox) -> Result<(), Errno> {
        let one_less = |on: u32| on.checked_sub(1).filter(|left| *left > 0);
        let order = Ordering::SeqCst;
        if self.on.fetch_update(order, order, one_less).is_err() {
            return Err(Errno::Busy);
        }
        if !inbox.power.stop() {
            // Somebody else was faster, and has counted it.
            self.on.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Turns all vCPUs off but the caller's, and waits until nothing of them runs; unless that life of the caller's is
    /// over itself. IRQs on, no lock held.
    pub(crate) fn stop_others(&self, (me, life): (&Inbox, Life)) {
        // Two at a time would turn each other off.
        while self.stopping.swap(true, Ordering::SeqCst) {
            task::reschedule_if_asked();
        }
        if me.power.is(life) {
            self.stop_all_but(me);
        }
        self.stopping.store(false, Ordering::SeqCst);
    }

    fn stop_all_but(&self, me: &Inbox) {
        // One of them may be about to start another.
        while !self.is_alone(me) && !me.power.is_over() {
            for (_, inbox) in self.all() {
                if !core::ptr::eq(inbox, me) && inbox.power.stop() {
                    self.on.fetch_sub(1, Ordering::SeqCst);
                    inbox.kick();
                }
            }
            task::reschedule_if_asked();
        }
        if let Some(visits) = self.visits(!0) {
            self.wait(&visits);
        }
    }

    /// Are all off but the caller's?
    pub(crate) fn is_alone(&self, me: &Inbox) -> bool {
        let mut others = self.all().filter(|(_, inbox)| !core::ptr::eq(*inbox, me));
        others.all(|(_, inbox)| inbox.power.is_off())
    }

    /// It is the end: none will ever run again.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        for (_, inbox) in self.all() {
            inbox.power.end();
            inbox.kick();
        }
    }
}
