// SPDX-License-Identifier: GPL-2.0

//! The record: every entry of the Guest, the exit that ended it and what came of that, for the Launcher that
//! asked for it (LGUEST_SET_TRACE).
//!
//! Without a ring, nothing here is called when the Guest enters and leaves (`Cpu::watched`). What came of an exit is noted where
//! it is counted, by [`Counts`](crate::counts::Counts), so that record and counters agree.

use crate::{
    abi::*,
    lg_core::{
        exit::Exit,
        foresight::Note,
        shadow::Root, //
    },
    sys::{
        cpu::rdtsc,
        ring::Ring,
        switcher::{
            Alone,
            Left,
            Switcher, //
        },
    },
};
use kernel::{
    mm::virt::VmaNew,
    prelude::*, //
};

/// What came of an exit so far, in the words of the record.
#[derive(Clone, Copy, Default)]
pub(crate) struct Noted {
    /// `LGUEST_TRACE_FILLED` and the like.
    pub(crate) did: u16,
    /// The event that the Guest was given.
    pub(crate) given: u8,
}

/// There has to be room for what is written between the moment when the ring is full and the one when the
/// Launcher hears of it.
const MARGIN: u64 = 8;

/// The record of one vCPU.
#[derive(Default)]
pub(crate) struct Record {
    on: Option<KBox<On>>,
    /// The Launcher has to read first.
    full: bool,
}

struct On {
    ring: Ring,
    overwrite: bool,
    /// Ours: what is in the ring is written and never read.
    written: u64,
    lost: u64,
    /// Up to here the Launcher has read.
    taken: u64,
    /// The one that is not complete yet.
    pending: lguest_trace_record,
    /// The switcher's counts when it was begun.
    alone: Alone,
}

impl Record {
    /// LGUEST_SET_TRACE. May sleep.
    pub(crate) fn set(
        &mut self,
        trace: &lguest_trace,
        noted: &mut Noted,
        switcher: &mut Switcher,
    ) -> Result {
        if trace.flags & !(LGUEST_TRACE_OVERWRITE | LGUEST_TRACE_CALLS) != 0 || trace.pad != 0 {
            return Err(EINVAL);
        }
        let on = match trace.pages {
            0 => None,
            pages => Some(KBox::new(
                On {
                    ring: Ring::new(pages)?,
                    overwrite: trace.flags & LGUEST_TRACE_OVERWRITE != 0,
                    written: 0,
                    lost: 0,
                    taken: 0,
                    pending: not_in(rdtsc()),
                    alone: switcher.alone(),
                },
                GFP_KERNEL_ACCOUNT,
            )?),
        };
        switcher.set_all_calls(on.is_some() && trace.flags & LGUEST_TRACE_CALLS != 0);
        *self = Self { on, full: false };
        *noted = Noted::default();
        // What the switcher does alone has no record of its own.
        *switcher.note() = Note::default();
        Ok(())
    }

    /// Is there a ring?
    pub(crate) fn on(&self) -> bool {
        self.on.is_some()
    }

    /// mmap(2) of the ring; `ENXIO` if there is none.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        self.on.as_ref().ok_or(ENXIO)?.ring.map(vma)
    }

    /// Has the Launcher to read before the Guest goes on?
    pub(crate) fn full(&self) -> bool {
        self.full
    }

    /// The Guest is about to be entered. `false` if the Launcher has to read first.
    #[cold]
    #[inline(never)]
    pub(crate) fn entry(&mut self, noted: &mut Noted, switcher: &mut Switcher) -> bool {
        if self.full {
            return false;
        }
        // That may fill it, but for what the entry leads to.
        self.complete(noted, switcher, None);
        true
    }

    /// The Guest has left.
    #[cold]
    #[inline(never)]
    pub(crate) fn exit(&mut self, exit: &Exit, switcher: &mut Switcher, root: &Root) {
        if let Some(on) = &mut self.on {
            on.left(exit, switcher, root);
        }
    }

    /// LGUEST_RUN comes back, with this `LGUEST_EXIT_*`, or 0 if it fails.
    pub(crate) fn back(&mut self, exit: u32, noted: &mut Noted, switcher: &mut Switcher) {
        if self.on.is_some() {
            self.complete(noted, switcher, Some(exit));
        }
    }

    /// Writes the record that is pending, and begins the next one.
    fn complete(&mut self, noted: &mut Noted, switcher: &mut Switcher, back: Option<u32>) {
        let Some(on) = &mut self.on else {
            return;
        };
        let now = rdtsc();
        let mut record = on.pending;
        let noted = core::mem::take(noted);
        (record.did, record.given, record.done) = (noted.did, noted.given, now);
        if u32::from(record.reason) == LGUEST_TRACE_HYPERCALL {
            record.result = switcher.regs().rax;
        }
        if let Some(exit) = back {
            record.did |= LGUEST_TRACE_RETURNED as u16;
            record.exit = exit as u8;
        }
        on.write(record);
        on.pending = not_in(rdtsc());
        if back == Some(LGUEST_EXIT_TRACE) {
            on.taken = on.written;
        }
        self.full = !on.overwrite && on.room() < MARGIN;
    }
}

/// An exit of which no more is known than the switcher keeps of the last ones.
pub(crate) fn brief(left: &Left) -> lguest_trace_record {
    let (reason, vector, error) = reason(&left.exit);
    let (address, rax) = match left.exit {
        Exit::PageFault { gva, .. } => (gva.get(), 0),
        Exit::Hypercall => (0, left.rax),
        _ => (0, 0),
    };
    lguest_trace_record {
        reason: reason as u16,
        vector,
        error,
        address,
        rax,
        rip: left.rip,
        user_mode: left.user_mode.into(),
        ..Default::default()
    }
}

/// What is pending while the Guest is not in.
fn not_in(now: u64) -> lguest_trace_record {
    lguest_trace_record {
        entered: now,
        left: now,
        reason: LGUEST_TRACE_LAUNCHER as u16,
        ..Default::default()
    }
}

impl On {
    /// Slots whose records the Launcher has read, or never will.
    fn room(&self) -> u64 {
        self.ring.len() - (self.written - self.taken).min(self.ring.len())
    }

    fn write(&mut self, mut record: lguest_trace_record) {
        if self.overwrite || self.room() > 0 {
            record.number = self.written;
            self.ring.put(self.written, &record);
            self.written += 1;
        } else {
            self.lost += 1;
        }
        self.ring.set_counts(self.written, self.lost);
    }

    #[cold]
    #[inline(never)]
    fn left(&mut self, exit: &Exit, switcher: &mut Switcher, root: &Root) {
        let pending = &mut self.pending;
        pending.left = rdtsc();
        let (reason, vector, error) = reason(exit);
        pending.reason = reason as u16;
        (pending.vector, pending.error) = (vector, error);
        if let Exit::PageFault { gva, .. } = exit {
            pending.address = gva.get();
        }
        pending.user_mode = switcher.user_mode().into();
        pending.root = root.gpa().get();
        let regs = switcher.regs();
        (pending.rip, pending.rsp) = (regs.rip, regs.rsp);
        if matches!(exit, Exit::Hypercall | Exit::Syscall | Exit::Monitored) {
            pending.rax = regs.rax;
            pending.arguments = [regs.rdi, regs.rsi, regs.rdx];
        }
        let alone = switcher.alone();
        let since = |now: u64, then: u64| now.wrapping_sub(then) as u32;
        pending.direct_syscalls = since(alone.syscalls, self.alone.syscalls);
        pending.direct_erets = since(alone.erets, self.alone.erets);
        pending.spurious = since(alone.spurious, self.alone.spurious);
        self.alone = alone;
    }
}

/// An exit as the record has it: `LGUEST_TRACE_*`, vector, error code. Of what is the Host's, it has no more
/// than that.
fn reason(exit: &Exit) -> (u32, u8, u32) {
    let of = |reason, event: &crate::lg_core::event::Event| {
        (reason, event.vector, event.error_code.unwrap_or(0))
    };
    match exit {
        Exit::Hypercall => (LGUEST_TRACE_HYPERCALL, 0, 0),
        Exit::Syscall | Exit::Monitored => (LGUEST_TRACE_SYSCALL, 0, 0),
        Exit::Syscall32 { .. } => (LGUEST_TRACE_SYSCALL32, 0, 0),
        Exit::Interrupted => (LGUEST_TRACE_INTERRUPTED, 0, 0),
        Exit::HostInterrupt(_) => (LGUEST_TRACE_INTERRUPT, 0, 0),
        Exit::Nmi => (LGUEST_TRACE_NMI, 0, 0),
        Exit::MachineCheck => (LGUEST_TRACE_MACHINE_CHECK, 0, 0),
        Exit::PageFault { access, .. } => (
            LGUEST_TRACE_PAGE_FAULT,
            crate::lg_core::event::PF,
            access.error_code(),
        ),
        Exit::Int80Refused(event) => of(LGUEST_TRACE_INT80, event),
        Exit::Protection(event) => of(LGUEST_TRACE_PROTECTION, event),
        Exit::Exception(event) => of(LGUEST_TRACE_EXCEPTION, event),
        Exit::Impossible(event) => of(LGUEST_TRACE_IMPOSSIBLE, event),
        Exit::SwitcherFault(vector) => (LGUEST_TRACE_SWITCHER, *vector, 0),
    }
}
