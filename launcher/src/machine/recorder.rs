// SPDX-License-Identifier: GPL-2.0
//! `lg run --trace`: takes lg.ko's record out of its ring, into a file.

#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock};

use crate::machine::module::{Ring, Vm};
use crate::report::messages::say;
use crate::report::Error;
use crate::trace::event::{self, Event};
use crate::trace::file::{Header, Trace, Writer};

/// Pages of the ring: 32 records each. With 1 MiB, the Guest has to wait for a file once in some thousand exits.
const PAGES: u32 = 256;

/// The records of the end that are kept in memory, too: for an account of a death.
const LAST: u64 = 20;

/// The last records of a vCPU, once it is over.
pub type Tail = Arc<OnceLock<Trace>>;

/// The record of a vCPU on its way to a file.
pub struct Recorder {
    ring: Ring,
    writer: Writer,
    /// Up to here it is in the file.
    taken: u64,
    header: Header,
    tail: Tail,
}

impl Recorder {
    /// Begins the record of the only vCPU of `vm`, whose kernel has this build ID.
    ///
    /// # Errors
    ///
    /// The module refuses, or the file takes no more.
    pub fn begin(
        vm: &Arc<Vm>,
        mut writer: Writer,
        build_id: Option<Vec<u8>>,
    ) -> Result<Self, Error> {
        let header = Header {
            tsc_khz: vm.tsc_khz(),
            build_id: build_id.unwrap_or_default(),
        };
        writer.begin(&header)?;
        let ring = vm.record(PAGES)?;
        Ok(Self {
            ring,
            writer,
            taken: 0,
            header,
            tail: Tail::default(),
        })
    }

    /// Takes what is new: after `LGUEST_EXIT_TRACE`, and at the end. The vCPU does not run meanwhile.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn take(&mut self) -> Result<(), Error> {
        let written = self.ring.written();
        let mut bytes = Vec::with_capacity((written - self.taken) as usize * event::SIZE);
        for number in self.taken..written {
            bytes.extend(self.ring.record(number));
        }
        self.taken = written;
        self.writer.write(&bytes)
    }

    /// Where the last records will be.
    pub fn tail(&self) -> Tail {
        self.tail.clone()
    }

    /// Takes the rest, and tells if something is lost.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn end(&mut self) -> Result<(), Error> {
        self.take()?;
        // None of these is overwritten: the ring stops when it is full.
        let last = self.taken.saturating_sub(LAST)..self.taken;
        let events = last.filter_map(|number| Event::parse(&self.ring.record(number)).ok());
        let _ = self.tail.set(Trace {
            header: self.header.clone(),
            events: events.collect(),
            cut_off: false,
        });
        match self.ring.lost() {
            0 => {}
            lost => say(&format!("{lost} records of the trace are lost")),
        }
        Ok(())
    }
}
