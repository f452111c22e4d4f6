// SPDX-License-Identifier: GPL-2.0
//! `lg run --trace`: takes lg.ko's record out of its ring, into a file.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::machine::module::{Ring, Vm};
use crate::report::messages::say;
use crate::report::Error;
use crate::trace::event;
use crate::trace::file::{Header, Writer};

/// Pages of the ring: 32 records each. With 1 MiB, the Guest has to wait for a file once in some thousand exits.
const PAGES: u32 = 256;

/// The record of a vCPU on its way to a file.
pub struct Recorder {
    ring: Ring,
    writer: Writer,
    /// Up to here it is in the file.
    taken: u64,
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

    /// Takes the rest, and tells if something is lost.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn end(&mut self) -> Result<(), Error> {
        self.take()?;
        match self.ring.lost() {
            0 => {}
            lost => say(&format!("{lost} records of the trace are lost")),
        }
        Ok(())
    }
}
