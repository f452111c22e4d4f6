// SPDX-License-Identifier: GPL-2.0

//! The inbox of one vCPU: virtual interrupts, from its timer and from anybody else.
//!
//! Whoever raises a vector marks it pending here and kicks the vCPU's thread. That finds it before it
//! enters the Guest again, and delivers it (`guest::lguest::event`). There is no lock: all of it is atomic,
//! and works in hard interrupt context.

use crate::{
    abi::LGUEST_VECTOR_TIMER,
    lg_core::irq::Pending,
    sys::{
        task::Runner,
        timer::{
            Expired,
            Timer, //
        }, //
    },
};
use kernel::prelude::*;

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
}

impl Inbox {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            timer <- Timer::new(Arrivals {
                pending: Pending::new(),
                runner: Runner::new(),
            }),
        })
    }

    /// Any context.
    pub(crate) fn raise(&self, vector: u8) {
        self.timer.owner().raise(vector);
    }

    /// Raises [`LGUEST_VECTOR_TIMER`] in `ns` nanoseconds, and not when it was armed for before.
    pub(crate) fn arm(&self, ns: i64) {
        self.timer.arm(ns);
    }

    /// The timer will not fire any more. Waits for one that does right now; IRQs on.
    pub(crate) fn disarm(&self) {
        self.timer.disarm();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.timer.owner().pending.is_empty()
    }

    /// Takes the vector to deliver next. Only the vCPU's thread does.
    pub(crate) fn take(&self) -> Option<u8> {
        self.timer.owner().pending.take_highest()
    }

    /// Runs `f` with the calling thread as the one to kick.
    pub(crate) fn while_running<R>(&self, f: impl FnOnce() -> R) -> R {
        self.timer.owner().runner.while_running(f)
    }

    /// Sleeps until something is in here, or until there is a signal. Only the vCPU's thread does.
    pub(crate) fn sleep(&self) {
        self.timer.owner().runner.sleep_until(|| !self.is_empty());
    }
}
