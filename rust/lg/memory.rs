// SPDX-License-Identifier: GPL-2.0

//! A VM's RAM, which the Host may take pages of: its vCPUs let go of them first.

use crate::{
    crew::Crew,
    sys::{
        notifier::Taking,
        ram::GuestRam, //
    },
};
use core::ops::Range;
use kernel::{
    prelude::*,
    sync::Arc, //
};

#[pin_data]
pub(crate) struct Memory {
    #[pin]
    pub(crate) ram: GuestRam,
    crew: Arc<Crew>,
}

impl Memory {
    pub(crate) fn new(crew: Arc<Crew>) -> impl PinInit<Self> {
        pin_init!(Self {
            ram <- GuestRam::new(),
            crew,
        })
    }
}

impl Taking for Memory {
    fn begin(&self, hvas: &Range<u64>) {
        if self.ram.begin_taking(hvas) {
            self.crew.await_looks();
        }
    }

    fn end(&self) {
        self.ram.end_taking();
    }
}
