// SPDX-License-Identifier: GPL-2.0

//! This module does what a debugger behind the Launcher asks for: steps and breakpoints.

use crate::{
    abi::*,
    blame::Stop,
    guest::{
        lguest,
        Cpu,
        Next, //
    },
    lg_core::event::{
        self,
        Event, //
    },
};
use kernel::prelude::*;

/// The wishes of LGUEST_SET_DEBUG, except stepping, which the switcher keeps.
#[derive(Default)]
pub(crate) struct Debug {
    /// #BP is the Launcher's.
    breakpoints: bool,
    /// The Guest is to have a #BP now.
    inject_breakpoint: bool,
    /// The Launcher has seen an exit in the middle of a step, and not yet its end.
    step_ended: bool,
}

impl Debug {
    /// LGUEST_SET_DEBUG. `EINVAL` for flags that there are not.
    pub(crate) fn set(&mut self, cpu: &mut Cpu, flags: u32) -> Result {
        const KNOWN: u32 = LGUEST_DEBUG_STEP | LGUEST_DEBUG_BREAKPOINTS | LGUEST_DEBUG_INJECT_BP;
        if flags & !KNOWN != 0 {
            return Err(EINVAL);
        }
        let step = flags & LGUEST_DEBUG_STEP != 0;
        cpu.switcher.set_stepping(step);
        *self = Self {
            breakpoints: flags & LGUEST_DEBUG_BREAKPOINTS != 0,
            inject_breakpoint: flags & LGUEST_DEBUG_INJECT_BP != 0,
            step_ended: step && self.step_ended,
        };
        Ok(())
    }

    /// Does what a debugger has left to be done since the last run.
    pub(crate) fn resume(&mut self, cpu: &mut Cpu, run: &mut lguest_run) -> Result<Next, Stop> {
        let next = if core::mem::take(&mut self.inject_breakpoint) {
            lguest::event::inject_exception(cpu, Event::new(event::BP, 0))?
        } else {
            Next::Again
        };
        Ok(self.end_step(cpu, run, next))
    }

    /// While the Guest is stepped, whatever ends an instruction goes to the Launcher.
    pub(crate) fn end_step(&mut self, cpu: &Cpu, run: &mut lguest_run, next: Next) -> Next {
        if !cpu.switcher.stepping() {
            return next;
        }
        match next {
            Next::Resume => self.exit(run, event::DB),
            Next::Again if self.step_ended => self.exit(run, event::DB),
            // The Launcher does the rest of the instruction.
            Next::Launcher(exit) if exit != LGUEST_EXIT_DEBUG => {
                self.step_ended = true;
                next
            }
            next => next,
        }
    }

    /// Leaves for the Launcher if this exception is what it debugs with.
    pub(crate) fn exception(
        &mut self,
        cpu: &mut Cpu,
        run: &mut lguest_run,
        vector: u8,
    ) -> Option<Next> {
        let asked = match vector {
            event::BP => self.breakpoints,
            event::DB => cpu.switcher.stepped(),
            _ => false,
        };
        asked.then(|| self.exit(run, vector))
    }

    fn exit(&mut self, run: &mut lguest_run, vector: u8) -> Next {
        self.step_ended = false;
        let debug = run.debug();
        debug.vector = vector.into();
        debug.pad = 0;
        Next::Launcher(LGUEST_EXIT_DEBUG)
    }
}
