// SPDX-License-Identifier: GPL-2.0

//! What a vCPU does is counted here, and nowhere else: entries, exits, faults, what the Guest is given.

use crate::{
    abi::lguest_stats,
    lg_core::exit::Exit,
    mmu::Fault,
    sys::{
        nospec,
        switcher::Alone, //
    },
};

/// The counts of one vCPU.
#[derive(Default)]
pub(crate) struct Counts(lguest_stats);

impl Counts {
    /// A run section begins.
    pub(crate) fn section(&mut self) {
        self.0.sections += 1;
    }

    /// A section writes that many MSRs, from begin to end.
    pub(crate) fn msr_writes(&mut self, writes: u64) {
        self.0.msr_writes += writes;
    }

    /// The Guest is entered; it will leave again.
    pub(crate) fn entry(&mut self) {
        self.0.entries += 1;
        self.0.cr3_loads += 2;
    }

    /// The Guest left. `rax` is its register, the number of a hypercall.
    pub(crate) fn exit(&mut self, exit: &Exit, rax: u64) {
        match exit {
            Exit::Hypercall => {
                if let Some(count) = nospec::get_mut(&mut self.0.hypercalls, rax as usize) {
                    *count += 1;
                }
            }
            // What interrupts the switcher are NMIs, but for machine checks.
            Exit::Interrupted | Exit::Nmi | Exit::MachineCheck => self.0.nmis += 1,
            Exit::HostInterrupt(_) => self.0.interrupts += 1,
            Exit::PageFault { .. } => self.0.page_faults += 1,
            _ => {}
        }
    }

    /// A page fault was looked at.
    pub(crate) fn fault(&mut self, fault: &Fault) {
        match fault {
            Fault::Filled => self.0.pf_filled += 1,
            Fault::Spurious => self.0.pf_spurious += 1,
            Fault::Inject(_) => self.0.pf_injected += 1,
            Fault::Mmio(_) => self.0.pf_mmio += 1,
            Fault::GeneralProtection => {}
        }
    }

    /// An exception other than a page fault is given to the Guest.
    pub(crate) fn exception(&mut self) {
        self.0.exceptions += 1;
    }

    /// An interrupt is given to the Guest.
    pub(crate) fn interrupt(&mut self) {
        self.0.irqs += 1;
    }

    /// A privileged instruction was done.
    pub(crate) fn emulated(&mut self) {
        self.0.emulated += 1;
    }

    /// The Guest halts.
    pub(crate) fn halt(&mut self) {
        self.0.halts += 1;
    }

    /// The Guest's CR3 was loaded.
    pub(crate) fn root(&mut self) {
        self.0.cr3_loads += 1;
    }

    /// All of it, with what the switcher has counted.
    pub(crate) fn with(&self, alone: &Alone) -> lguest_stats {
        let mut stats = self.0;
        stats.direct_syscalls = alone.syscalls;
        stats.direct_erets = alone.erets;
        stats.hypercalls[Alone::ERET] += alone.erets;
        stats.pf_spurious += alone.spurious;
        // A direct switch loads CR3 once, a return to kernel mode not at all: an upper bound.
        stats.cr3_loads += alone.syscalls + alone.erets;
        stats
    }
}
