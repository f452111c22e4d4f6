// SPDX-License-Identifier: GPL-2.0
//! Takes lg.ko's record out of its ring: into a file for `lg run --trace`, to a report for `lg run --report`.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::boot_report::exits::Exits;
use crate::machine::module::{Ring, Vm};
use crate::report::messages::say;
use crate::report::Error;
use crate::trace::event::{self, Event};
use crate::trace::file::{Header, Trace, Writer};

/// Pages of the ring: 32 records each. With 1 MiB, the Guest has to wait for a file once in some thousand exits.
const PAGES: u32 = 256;

/// So many of the last exits an account of a death has.
pub const LAST: u32 = 20;

/// The last records of a vCPU, once it is over.
pub type Tail = Arc<OnceLock<Trace>>;

/// Those who want the record.
#[derive(Default)]
pub struct Takers {
    /// A file.
    pub trace: Option<Writer>,
    /// A report.
    pub report: Option<Exits>,
    /// Each system call is to be in the record.
    pub calls: bool,
}

impl Takers {
    /// Is there anybody?
    pub fn any(&self) -> bool {
        self.trace.is_some() || self.report.is_some()
    }
}

/// The record of a vCPU on its way to them.
pub struct Recorder {
    vcpu: u8,
    ring: Ring,
    takers: Arc<Mutex<Takers>>,
    /// Up to here they have it.
    taken: u64,
    header: Header,
    tail: Tail,
}

impl Recorder {
    /// Begins the record of each of the `count` vCPUs of `vm`, whose kernel has this build ID.
    ///
    /// # Errors
    ///
    /// The module refuses, or the file takes no more.
    pub fn begin(
        vm: &Arc<Vm>,
        count: usize,
        mut takers: Takers,
        build_id: Option<Vec<u8>>,
    ) -> Result<Vec<Self>, Error> {
        let header = Header {
            tsc_khz: vm.tsc_khz(),
            build_id: build_id.unwrap_or_default(),
        };
        if let Some(writer) = &mut takers.trace {
            writer.begin(&header)?;
        }
        let rings = (0..count as u32).map(|vcpu| vm.record(vcpu, PAGES, takers.calls));
        let rings = rings.collect::<Result<Vec<_>, _>>()?;
        if let Some(exits) = &takers.report {
            exits.begin(header.tsc_khz);
        }
        let takers = Arc::new(Mutex::new(takers));
        let recorder = |(vcpu, ring)| Self {
            vcpu,
            ring,
            takers: takers.clone(),
            taken: 0,
            header: header.clone(),
            tail: Tail::default(),
        };
        Ok((0..).zip(rings).map(recorder).collect())
    }

    /// Takes what is new: after `LGUEST_EXIT_TRACE`, and at the end. The vCPU does not run meanwhile; others may wait.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn take(&mut self) -> Result<(), Error> {
        let written = self.ring.written();
        let mut bytes = Vec::with_capacity((written - self.taken) as usize * event::SIZE);
        for number in self.taken..written {
            let mut record = self.ring.record(number);
            event::set_vcpu(&mut record, self.vcpu);
            bytes.extend(record);
        }
        self.taken = written;
        let mut takers = self.takers();
        if let Some(exits) = &takers.report {
            exits.take(&bytes);
        }
        match &mut takers.trace {
            Some(writer) => writer.write(&bytes),
            None => Ok(()),
        }
    }

    fn takers(&self) -> MutexGuard<'_, Takers> {
        self.takers.lock().unwrap_or_else(PoisonError::into_inner)
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
        let last = self.taken.saturating_sub(LAST.into())..self.taken;
        let events = last.filter_map(|number| Event::parse(&self.ring.record(number)).ok());
        let _ = self.tail.set(Trace {
            header: self.header.clone(),
            events: events.collect(),
            several: false,
            cut_off: false,
        });
        match self.ring.lost() {
            0 => {}
            lost => {
                say(&format!("{lost} records of the trace are lost"));
                let takers = self.takers();
                takers.report.iter().for_each(|exits| exits.lost(lost));
            }
        }
        Ok(())
    }
}
