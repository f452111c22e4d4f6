// SPDX-License-Identifier: GPL-2.0

//! The inbox of one vCPU: what others tell it, and what they know of it.
//!
//! Whoever raises a vector marks it pending here and kicks the vCPU's thread. That finds it before it
//! enters the Guest again, and delivers it (`guest::lguest::event`). There is no lock: all of it is atomic,
//! and works in hard interrupt context.

use crate::{
    abi::LGUEST_VECTOR_TIMER,
    lg_core::{
        irq::{
            Call,
            Pending, //
        },
        power::{
            Life,
            Power, //
        },
        presence::Presence,
    },
    sys::{
        ram::Looker,
        task::Runner,
        timer::{
            Expired,
            Timer, //
        }, //
    },
};
use kernel::prelude::*;

/// Words that say where a vCPU begins: `guest::Start`.
pub(crate) const START_WORDS: usize = 10;

/// The object that the timer adds to when it fires.
struct Arrivals {
    pending: Pending,
    runner: Runner,
}

impl Arrivals {
    fn raise(&self, vector: u8) {
        if self.pending.set(vector) {
            self.runner.kick();
        }
    }
}

impl Expired for Arrivals {
    fn expired(&self) {
        self.raise(LGUEST_VECTOR_TIMER as u8);
    }
}

/// The inbox of one vCPU. It is there before the vCPU is.
#[pin_data]
pub(crate) struct Inbox {
    #[pin]
    timer: Timer<Arrivals>,
    /// Whether it is in the Guest. Only the vCPU's thread changes that.
    pub(crate) presence: Presence,
    /// Whether it looks at RAM. Only the vCPU's thread changes that.
    pub(crate) looker: Looker,
    /// Whether it is on.
    pub(crate) power: Power<START_WORDS>,
}

impl Inbox {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            timer <- Timer::new(Arrivals {
                pending: Pending::new(),
                runner: Runner::new(),
            }),
            presence: Presence::new(),
            looker: Looker::new(),
            power: Power::new(),
        })
    }

    fn pending(&self) -> &Pending {
        &self.timer.owner().pending
    }

    /// Any context.
    pub(crate) fn raise(&self, vector: u8) {
        self.timer.owner().raise(vector);
    }

    /// Calls the vCPU. Any context.
    pub(crate) fn call(&self, call: Call) {
        if self.pending().call(call) {
            self.kick();
        }
    }

    /// Makes the vCPU look at its work, out of the Guest or out of its sleep. Any context.
    pub(crate) fn kick(&self) {
        self.timer.owner().runner.kick();
    }

    /// Raises [`LGUEST_VECTOR_TIMER`] in `ns` nanoseconds, and not when it was armed for before.
    pub(crate) fn arm(&self, ns: i64) {
        self.timer.arm(ns);
    }

    /// The timer will not fire any more. Waits for one that does right now; IRQs on.
    pub(crate) fn disarm(&self) {
        self.timer.disarm();
    }

    /// For a vCPU that begins: what was for the life before goes. IRQs on.
    pub(crate) fn clear(&self) {
        self.disarm();
        self.pending().clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending().is_empty()
    }

    /// Takes the vector to deliver next. Only the vCPU's thread does.
    pub(crate) fn take(&self) -> Option<u8> {
        self.pending().take_highest()
    }

    pub(crate) fn is_called(&self, call: Call) -> bool {
        self.pending().is_called(call)
    }

    /// The vCPU has heard that. Only its thread does.
    pub(crate) fn answer(&self, call: Call) {
        self.pending().answer(call);
    }

    /// Is there something for the Guest that ends a halt?
    pub(crate) fn wakes(&self) -> bool {
        !self.is_empty() || self.is_called(Call::Nmi)
    }

    /// Is there something that ends a wait for a lock? Virtual interrupts do only for a Guest that would take them: else
    /// they stay pending, and the next wait would not be one.
    pub(crate) fn ends_wait(&self, interrupts: bool) -> bool {
        self.is_called(Call::Kick) || self.is_called(Call::Nmi) || interrupts && !self.is_empty()
    }

    /// Runs `f` with the calling thread as the one to kick.
    pub(crate) fn while_running<R>(&self, f: impl FnOnce() -> R) -> R {
        self.timer.owner().runner.while_running(f)
    }

    /// Sleeps until `ready` says so, until that life is over, or until there is a signal. Only the vCPU's thread
    /// does.
    pub(crate) fn sleep(&self, life: Life, ready: impl Fn(&Self) -> bool) {
        let runner = &self.timer.owner().runner;
        runner.sleep_until(|| ready(self) || !self.power.is(life));
    }

    /// Sleeps until the vCPU is on, or all is over, or until there is a signal. Only the vCPU's thread does.
    pub(crate) fn sleep_while_off(&self) {
        let runner = &self.timer.owner().runner;
        runner.sleep_until(|| self.power.life().is_some() || self.power.is_over());
    }
}
