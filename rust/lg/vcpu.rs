// SPDX-License-Identifier: GPL-2.0

//! The run loop of a vCPU: enter the Guest, see why it came out, have that done.

use crate::{
    abi::*,
    blame::{
        Death,
        Stop, //
    },
    counts::Counts,
    debug::Debug,
    exits,
    guest::{
        lguest,
        Cpu,
        Next,
        Start, //
    },
    inbox::Inbox,
    lg_core::{
        addr::{
            Gpa,
            Gva, //
        },
        exit::Exit,
        flags,
        power::Life,
        shadow::Root, //
    },
    record,
    shared::Shared,
    sys::{
        cpu::IrqsOff,
        page::Wait,
        section::{
            self,
            GuestFpu,
            Xcr0, //
        },
        slots::Lease,
        switcher::{
            Regs,
            Switcher, //
        },
        task::{
            self,
            GuestTime, //
        },
    },
};
use kernel::{
    mm::virt::VmaNew,
    prelude::*,
    sync::Arc, //
};

/// The things of the Host's that a vCPU needs before it can be made.
pub(crate) struct Parts {
    switcher: Switcher,
    fpu: GuestFpu,
    xcr0: Xcr0,
    lease: Arc<Lease>,
}

impl Parts {
    pub(crate) fn new(id: u32, lease: Arc<Lease>) -> Result<Self> {
        let (fpu, xcr0) = GuestFpu::new()?;
        lease.make_region(id as usize)?;
        Ok(Self {
            switcher: Switcher::new(&lease, id as usize)?,
            fpu,
            xcr0,
            lease,
        })
    }
}

/// One virtual CPU. Its lock is held by the thread that runs it.
pub(crate) struct Vcpu {
    cpu: Cpu,
    fpu: GuestFpu,
    debug: Debug,
    // Last: the switcher's pages.
    lease: Arc<Lease>,
}

impl Vcpu {
    /// Can a vCPU be made like that?
    pub(crate) fn accepts(init: &lguest_vcpu, is_ram: impl FnOnce(Gpa) -> bool) -> bool {
        let root = Gpa::new(init.cr3);
        let begins = match init.id {
            0 => Gva::new(init.rip).is_canonical(),
            _ => (init.rip, init.rsi) == (0, 0),
        };
        begins && init.pad == 0 && root.offset() == 0 && is_ram(root)
    }

    /// A vCPU as the contract describes it: number 0 at the entry point, and on; another one off. [`Vcpu::accepts`]
    /// said yes, and `root` is that of its CR3.
    pub(crate) fn new<'a>(
        init: &'a lguest_vcpu,
        parts: Parts,
        root: Root,
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
    ) -> impl Init<Self> + 'a {
        let cpu = init!(Cpu {
            id: init.id,
            switcher: parts.switcher,
            xcr0: parts.xcr0,
            root,
            walked: None,
            entries: None,
            nmi_entry: Gva::new(0),
            in_nmi: false,
            monitor: None,
            life: Life::NONE,
            watched: false,
            shared,
            inbox,
            counts: Counts::default(),
        });
        let vcpu = init!(Vcpu {
            cpu <- cpu,
            fpu: parts.fpu,
            debug: Debug::default(),
            lease: parts.lease,
        });
        vcpu.chain(|vcpu| {
            let cpu = &mut vcpu.cpu;
            let regs = cpu.switcher.regs();
            *regs = Regs::default();
            (regs.rip, regs.rsi) = (init.rip, init.rsi);
            regs.rflags = flags::AT_EVENT_ENTRY;
            if init.id == 0 {
                // Nothing is to be read from there: it is here.
                cpu.life = cpu.shared.crew.start_first();
            }
            cpu.enter_root();
            lguest::begin(cpu);
            Ok(())
        })
    }

    /// LGUEST_RUN: runs the Guest until there is something for the Launcher.
    pub(crate) fn run(&mut self, run: &mut lguest_run) -> Result {
        self.check_not_over()?;
        if !task::is_current_mm(self.lease.mm()) {
            // The switcher is mapped in one address space only; a forked child has the file, but
            // not that.
            return Err(EPERM);
        }
        if run.set_regs != 0 {
            self.load_regs(&run.regs)?;
            run.set_regs = 0;
        }
        let inbox = self.cpu.inbox.clone();
        let result = inbox.while_running(|| self.run_loop(run));
        let back = if result.is_ok() { run.exit } else { 0 };
        self.cpu.counts.back(back, &mut self.cpu.switcher);
        self.store_regs(&mut run.regs);
        result
    }

    /// `ENXIO` when the Guest has died or shut down.
    fn check_not_over(&self) -> Result {
        match self.cpu.inbox.power.is_over() {
            true => Err(ENXIO),
            false => Ok(()),
        }
    }

    /// Its life is over. Waits for the next one, and has it begin; `EINTR` when there is a signal, `ENXIO` when
    /// there will be no other.
    fn begin_next_life(&mut self) -> Result {
        let cpu = &mut self.cpu;
        loop {
            if cpu.inbox.power.is_over() {
                return Err(ENXIO);
            }
            let life = cpu.inbox.power.life();
            let begin = life.and_then(|life| Some((life, cpu.inbox.power.frame(life)?)));
            if let Some((life, words)) = begin {
                let start = Start::from_words(words);
                match cpu.write_cr3(start.root.get(), Wait::Allowed) {
                    Err(Stop::Host(error)) => return Err(error),
                    // The root is in RAM, as the one who started us has seen.
                    Err(_) => return Err(EINVAL),
                    Ok(()) => {}
                }
                lguest::begin_at(cpu, &start);
                self.fpu.restart();
                cpu.life = life;
                return Ok(());
            }
            if task::must_return_to_user() {
                return Err(EINTR);
            }
            cpu.inbox.sleep_while_off();
        }
    }

    fn run_loop(&mut self, run: &mut lguest_run) -> Result {
        let mut exit = Exit::Interrupted;
        let mut next = match self.cpu.is_alive() {
            true => self.debug.resume(&mut self.cpu, run),
            false => Ok(Next::Again),
        };
        loop {
            if !self.cpu.is_alive() {
                // Whatever it was at, nobody hears of it.
                self.begin_next_life()?;
                next = Ok(Next::Again);
            }
            next = match next {
                Ok(Next::Resume | Next::Again) => {
                    if self.cpu.counts.trace_is_full() {
                        run.exit = LGUEST_EXIT_TRACE;
                        return Ok(());
                    }
                    if task::must_return_to_user() {
                        return Err(EINTR);
                    }
                    task::reschedule_if_asked();
                    let cpu = &self.cpu;
                    cpu.shared.follow(&cpu.root, &cpu.inbox);
                    let next = self.run_section(run, &mut exit);
                    // All that the Guest has dropped, before it can drop more: it is not faster than we are.
                    while self.cpu.shared.tidy() {
                        task::reschedule_if_asked();
                    }
                    next
                }
                Ok(Next::Launcher(number)) => {
                    run.exit = number;
                    if number == LGUEST_EXIT_SHUTDOWN {
                        self.cpu.shared.crew.end();
                    }
                    return Ok(());
                }
                Err(Stop::Later) => {
                    exits::handle(&mut self.cpu, &mut self.debug, &exit, run, Wait::Allowed)
                }
                Err(Stop::Death(death)) => {
                    let mut reason = [0; LGUEST_REASON_MAX as usize];
                    death.write_to(&mut reason);
                    run.death().reason = reason;
                    run.exit = LGUEST_EXIT_DEATH;
                    self.cpu.shared.crew.end();
                    return Ok(());
                }
                Err(Stop::Host(error)) => {
                    exits::rewind(&mut self.cpu, &exit);
                    return Err(error);
                }
            }
        }
    }

    /// Lets the Guest run, with IRQs off as seen from the Host, until the Host has something else
    /// to do or an exit cannot be handled here: [`Stop::Later`] says that the last one, `exit`, is still to be
    /// handled, with waiting allowed.
    fn run_section(&mut self, run: &mut lguest_run, exit: &mut Exit) -> Result<Next, Stop> {
        *exit = Exit::Interrupted;
        let irqs = IrqsOff::new();
        if task::has_work() {
            return Ok(Next::Again);
        }
        let _time = GuestTime::begin();
        let (cpu, debug) = (&mut self.cpu, &mut self.debug);
        cpu.inbox.looker.begin(&irqs);
        if !cpu.shared.follows() {
            cpu.inbox.looker.end();
            return Ok(Next::Again);
        }
        cpu.counts.section();
        lguest::got_cpu(cpu);
        let (setup, xcr0) = (cpu.switcher.setup(&irqs), cpu.xcr0);
        let next = section::run(&irqs, &setup, &mut self.fpu, xcr0, |section| {
            cpu.counts.msr_writes(section.msr_writes());
            loop {
                let next = lguest::event::deliver(cpu)?;
                // One test for the debugger and the record.
                let next = match cpu.watched {
                    true => debug.end_step(cpu, run, next),
                    false => next,
                };
                if let Next::Launcher(_) = next {
                    return Ok(next);
                }
                if cpu.watched && !cpu.counts.entry(&mut cpu.switcher) {
                    return Ok(Next::Again);
                }
                // In, and only then a look whether it may be: `lg_core::presence`.
                cpu.inbox.presence.enter();
                if !cpu.is_alive() {
                    cpu.inbox.presence.leave();
                    return Ok(Next::Again);
                }
                if cpu.switcher.is_tagged() {
                    let generations = &*cpu.shared.generations;
                    let now = generations.now(cpu.root.seat());
                    cpu.switcher.clean_tags(section, generations, &now);
                }
                *exit = cpu.switcher.enter(section);
                cpu.inbox.presence.leave();
                if cpu.watched {
                    cpu.counts.record(exit, &mut cpu.switcher, &cpu.root);
                }
                cpu.counts.exit(exit, &mut cpu.switcher);
                let next = exits::handle(cpu, debug, exit, run, Wait::Forbidden);
                let go_on = matches!(next, Ok(Next::Resume | Next::Again));
                if !go_on || exit.is_hosts() || cpu.switcher.has_exceptions() || task::has_work() {
                    return next;
                }
            }
        });
        self.cpu.inbox.looker.end();
        if exit.is_hosts() || task::has_work() {
            lguest::may_lose_cpu(&mut self.cpu);
        }
        let intact = self.cpu.switcher.replay_exceptions(&irqs);
        // The CPU has acknowledged this interrupt: the Host's handler has to run before anything
        // else may.
        if let Exit::HostInterrupt(vector) = *exit {
            self.cpu.switcher.replay(vector);
        }
        if !intact {
            return Err(Death::MemoryError.into());
        }
        next
    }

    /// LGUEST_SET_DEBUG.
    pub(crate) fn set_debug(&mut self, flags: u32) -> Result {
        self.check_not_over()?;
        let result = self.debug.set(&mut self.cpu, flags);
        self.cpu.watch();
        result
    }

    /// The entries of the shadow by which the CPU gets to `gva` in one of the Guest's modes, without addresses.
    pub(crate) fn way(&self, user: bool, gva: Gva) -> [u64; 5] {
        self.cpu.shared.way(&self.cpu.root, user, gva)
    }

    /// LGUEST_GET_EXIT: the exit `back` exits before the last; `ENOENT` if it is not kept.
    pub(crate) fn exit(&self, back: u32) -> Result<lguest_trace_record> {
        let left = self.cpu.switcher.exit(back).ok_or(ENOENT)?;
        Ok(record::brief(left))
    }

    /// LGUEST_SET_TRACE.
    pub(crate) fn set_trace(&mut self, trace: &lguest_trace) -> Result {
        let cpu = &mut self.cpu;
        let result = cpu.counts.set_trace(trace, &mut cpu.switcher);
        cpu.watch();
        result
    }

    /// Maps the ring of the record.
    pub(crate) fn map_trace(&self, vma: &VmaNew) -> Result {
        self.cpu.counts.map_trace(vma)
    }

    /// Counters of this vCPU.
    pub(crate) fn stats(&mut self) -> lguest_stats {
        self.cpu.counts.with(&self.cpu.switcher.alone())
    }

    /// Takes the registers that the Launcher may change after an MMIO exit: no more than the Guest
    /// could by itself.
    fn load_regs(&mut self, from: &lguest_regs) -> Result {
        if !Gva::new(from.rip).is_canonical() {
            return Err(EINVAL);
        }
        self.cpu.switcher.regs().load(from);
        Ok(())
    }

    fn store_regs(&mut self, to: &mut lguest_regs) {
        let cpu = &mut self.cpu;
        *to = lguest_regs::default();
        cpu.switcher.regs().store(to);
        (to.fs_base, to.gs_base) = cpu.switcher.bases();
        to.cr2 = lguest::cr2(cpu);
        to.cr3 = cpu.root.gpa().get();
        to.user_mode = cpu.switcher.user_mode().into();
    }
}
