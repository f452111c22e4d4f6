// SPDX-License-Identifier: GPL-2.0

//! The way of a virtual interrupt, as far as the vCPU: anybody raises a vector here; the vCPU's
//! thread is kicked, finds it pending before it enters the guest again, and delivers it
//! (`Vcpu::deliver_interrupts`).

use crate::{
    abi::*,
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

/// Virtual interrupts of one vCPU.
pub(crate) struct Interrupts {
    pub(crate) pending: Pending,
    pub(crate) runner: Runner,
}

impl Interrupts {
    /// Them and the one-shot timer of the vCPU, which raises [`LGUEST_VECTOR_TIMER`].
    pub(crate) fn with_timer() -> impl PinInit<Timer<Self>> {
        Timer::new(Self {
            pending: Pending::new(),
            runner: Runner::new(),
        })
    }

    /// Any context.
    pub(crate) fn raise(&self, vector: u8) {
        if self.pending.set(vector) {
            self.runner.kick();
        }
    }
}

impl Expired for Interrupts {
    fn expired(&self) {
        self.raise(LGUEST_VECTOR_TIMER as u8);
    }
}
