// SPDX-License-Identifier: GPL-2.0

//! What a vCPU does is counted here, and nowhere else: exits, faults, what the Guest is given; but for entries and what the
//! switcher does alone, which that counts ([`Alone`]). What is counted is also noted for the record, so that the two agree.

use crate::{
    abi::*,
    lg_core::{
        event::{
            self,
            Event, //
        },
        exit::Exit,
        shadow::Root, //
    },
    mmu::Fault,
    record::{
        Noted,
        Record, //
    },
    sys::{
        nospec,
        switcher::{
            Alone,
            Switcher, //
        },
    },
};
use kernel::{
    mm::virt::VmaNew,
    prelude::*, //
};

/// Adds what another vCPU has counted.
pub(crate) fn add(to: &mut lguest_stats, from: &lguest_stats) {
    macro_rules! add {
        ($($field:ident)*) => {{
            // All of them, or this does not compile.
            let lguest_stats { hypercalls, $($field),* } = from;
            $(to.$field += $field;)*
            for (to, from) in to.hypercalls.iter_mut().zip(hypercalls) {
                *to += from;
            }
        }};
    }
    add!(entries interrupts nmis page_faults pf_filled pf_injected pf_spurious pf_mmio prefilled
         exceptions emulated irqs halts direct_syscalls direct_erets direct_faults sections msr_writes cr3_loads tlb_flushes
         shadow_pages shadow_recycled known_pages);
}

/// Counts one more. 64 bits do not overflow while anybody lives, and to check that they don't would be three
/// instructions of each exit.
fn one(count: &mut u64) {
    *count = count.wrapping_add(1);
}

/// The counts of one vCPU, and its record.
#[derive(Default)]
pub(crate) struct Counts {
    stats: lguest_stats,
    /// What came of the last exit so far.
    noted: Noted,
    record: Record,
}

impl Counts {
    /// A run section begins.
    pub(crate) fn section(&mut self) {
        one(&mut self.stats.sections);
    }

    /// A section writes that many MSRs, from begin to end.
    pub(crate) fn msr_writes(&mut self, writes: u64) {
        self.stats.msr_writes += writes;
    }

    /// For the record, if there is one: the Guest is about to be entered. `false` if it may not be: the Launcher has to
    /// read first.
    pub(crate) fn entry(&mut self, switcher: &mut Switcher) -> bool {
        self.record.entry(&mut self.noted, switcher)
    }

    /// For the record: the Guest left, and its CR3 was `root`.
    pub(crate) fn record(&mut self, exit: &Exit, switcher: &mut Switcher, root: &Root) {
        self.record.exit(exit, switcher, root);
    }

    /// The Guest left.
    pub(crate) fn exit(&mut self, exit: &Exit, switcher: &mut Switcher) {
        match exit {
            Exit::Hypercall => {
                let rax = switcher.regs().rax;
                if let Some(count) = nospec::get_mut(&mut self.stats.hypercalls, rax as usize) {
                    one(count);
                }
            }
            // What interrupts the switcher are NMIs, but for machine checks.
            Exit::Interrupted | Exit::Nmi | Exit::MachineCheck => self.stats.nmis += 1,
            Exit::HostInterrupt(_) => self.stats.interrupts += 1,
            Exit::PageFault { .. } => self.stats.page_faults += 1,
            _ => {}
        }
    }

    /// A page fault was looked at.
    pub(crate) fn fault(&mut self, fault: &Fault) {
        match fault {
            Fault::Filled => {
                one(&mut self.stats.pf_filled);
                self.note(LGUEST_TRACE_FILLED);
            }
            Fault::Spurious => {
                one(&mut self.stats.pf_spurious);
                self.note(LGUEST_TRACE_SPURIOUS);
            }
            Fault::Inject(_) => {
                one(&mut self.stats.pf_injected);
                self.note(LGUEST_TRACE_INJECTED);
                self.noted.given = event::PF;
            }
            Fault::Mmio(_) => {
                one(&mut self.stats.pf_mmio);
                self.note(LGUEST_TRACE_MMIO);
            }
            Fault::GeneralProtection => {}
        }
    }

    /// An exception other than a page fault was given to the Guest.
    pub(crate) fn exception(&mut self, event: Event) {
        one(&mut self.stats.exceptions);
        self.note(LGUEST_TRACE_GAVE_EXCEPTION);
        self.noted.given = event.vector;
    }

    /// An interrupt was given to the Guest.
    pub(crate) fn interrupt(&mut self, vector: u8) {
        one(&mut self.stats.irqs);
        self.note(LGUEST_TRACE_GAVE_INTERRUPT);
        self.noted.given = vector;
    }

    /// A privileged instruction was done.
    pub(crate) fn emulated(&mut self) {
        one(&mut self.stats.emulated);
        self.note(LGUEST_TRACE_EMULATED);
    }

    /// The Guest halts.
    pub(crate) fn halt(&mut self) {
        one(&mut self.stats.halts);
        self.note(LGUEST_TRACE_HALTED);
    }

    /// For the record: this came of the exit, or of what the Guest was told before it went on.
    fn note(&mut self, what: u32) {
        self.noted.did |= what as u16;
    }

    /// LGUEST_SET_TRACE. May sleep.
    pub(crate) fn set_trace(&mut self, trace: &lguest_trace, switcher: &mut Switcher) -> Result {
        self.record.set(trace, &mut self.noted, switcher)
    }

    /// mmap(2) of the record's ring; `ENXIO` if there is none.
    pub(crate) fn map_trace(&self, vma: &VmaNew) -> Result {
        self.record.map(vma)
    }

    /// Is there a record? All page faults belong in it.
    pub(crate) fn recording(&self) -> bool {
        self.record.on()
    }

    /// Has the Launcher to read the record before the Guest goes on?
    pub(crate) fn trace_is_full(&self) -> bool {
        self.record.full()
    }

    /// LGUEST_RUN comes back, with this `LGUEST_EXIT_*`, or 0 if it fails.
    pub(crate) fn back(&mut self, exit: u32, switcher: &mut Switcher) {
        self.record.back(exit, &mut self.noted, switcher);
    }

    /// The Guest's CR3 was loaded.
    pub(crate) fn root(&mut self) {
        one(&mut self.stats.cr3_loads);
    }

    /// All of it, with what the switcher has counted.
    pub(crate) fn with(&self, alone: &Alone) -> lguest_stats {
        let mut stats = self.stats;
        stats.entries = alone.entries;
        stats.direct_syscalls = alone.syscalls;
        stats.direct_erets = alone.erets;
        stats.direct_faults = alone.faults;
        stats.hypercalls[Alone::ERET] += alone.erets;
        stats.pf_spurious += alone.spurious;
        // Into the Guest and out of it. A direct switch loads CR3 once, a return to kernel mode not at all: an upper
        // bound.
        stats.cr3_loads += 2 * stats.entries + alone.syscalls + alone.erets + alone.faults;
        stats.tlb_flushes = alone.flushes;
        stats
    }
}
