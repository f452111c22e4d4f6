// SPDX-License-Identifier: GPL-2.0

//! The run loop of a vCPU: enter the guest, see why it came out, do what is asked.

use crate::{
    abi::*,
    blame::{
        Death,
        Errno,
        Protection,
        Refused,
        Stop, //
    },
    irq::Interrupts,
    lg_core::{
        addr::{
            Gpa,
            Gva, //
        },
        emulate, eret, flags,
        paging::{
            self,
            Access, //
        },
        segment,
        trap::{
            self,
            Event,
            Route, //
        },
    },
    mmu::{
        Fault,
        Roots, //
    },
    privileged,
    sys::{
        cpu::{
            self,
            IrqsOff, //
        },
        page::Wait,
        ram::GuestRam,
        slots::Lease,
        switcher::{
            with_section,
            Regs,
            Switcher,
            EXIT_HYPERCALL,
            EXIT_INTERRUPTED,
            EXIT_SWITCHER_FAULT,
            EXIT_SYSCALL32, //
        },
        task::{
            self,
            GuestTime, //
        },
        timer::Timer,
    },
    vm::Vm,
};
use core::mem::offset_of;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Offset of a field of the shared page.
macro_rules! sh {
    ($field:ident) => {
        offset_of!(lguest_shared, $field)
    };
}

const SYSCALL_LENGTH: u64 = 2;
/// How long a guest has to wait that locks the whole bus, on a Host that minds: as a process has to for
/// a split lock (arch/x86/kernel/cpu/bus_lock.c).
const BUS_LOCK_PAUSE_MS: u32 = 10;

/// Where to go on after an exit was handled.
pub(crate) enum Next {
    /// Back into the guest: its instruction is done, or an event was given to it.
    Resume,
    /// Back into the guest, to the same instruction: nothing has happened that it could know of.
    Again,
    /// To the Launcher, with this `LGUEST_EXIT_*`; `run` is filled in.
    Launcher(u32),
}

/// Where the guest wants its events. (Of its system calls the switcher knows.)
#[derive(Clone, Copy)]
struct Entries {
    event_user: Gva,
    event_kernel: Gva,
}

/// What LGUEST_SET_DEBUG asked for, except stepping, which the switcher keeps.
#[derive(Default)]
struct Debug {
    /// #BP is the Launcher's.
    breakpoints: bool,
    /// The guest is to have a #BP now.
    inject_breakpoint: bool,
    /// The Launcher has seen an exit in the middle of a step, and not yet its end.
    step_ended: bool,
}

/// One virtual CPU. Its lock is held by the thread that runs it.
pub(crate) struct Vcpu {
    id: u32,
    pub(crate) switcher: Switcher,
    /// CR3: the guest's current root.
    pub(crate) root: Gpa,
    entries: Option<Entries>,
    pub(crate) interrupts: Arc<Timer<Interrupts>>,
    /// It died or shut down: nothing of it runs again.
    over: bool,
    debug: Debug,
    pub(crate) stats: lguest_stats,
    // Last: the switcher's pages.
    slot: Arc<Lease>,
}

impl Vcpu {
    /// Can a vCPU start like that?
    pub(crate) fn accepts(init: &lguest_vcpu, ram: &GuestRam) -> bool {
        let root = Gpa::new(init.cr3);
        Gva::new(init.rip).is_canonical() && root.offset() == 0 && ram.contains(root)
    }

    /// A vCPU at the entry point that the contract describes. [`Vcpu::accepts`] said yes.
    pub(crate) fn new(
        init: &lguest_vcpu,
        slot: Arc<Lease>,
        roots: &Roots,
        interrupts: Arc<Timer<Interrupts>>,
    ) -> Result<Self> {
        let root = Gpa::new(init.cr3);
        let mut vcpu = Self {
            id: init.id,
            switcher: slot.vcpu(init.id as usize)?,
            root,
            entries: None,
            interrupts,
            over: false,
            debug: Debug::default(),
            stats: lguest_stats::default(),
            slot,
        };
        *vcpu.switcher.regs() = Regs {
            rip: init.rip,
            rsi: init.rsi,
            rflags: flags::AT_EVENT_ENTRY,
            ..Regs::default()
        };
        vcpu.set_roots(roots);
        let (now, tsc) = (cpu::wall_ns(), cpu::rdtsc());
        let words = [
            (
                sh!(abi_version),
                u64::from(LGUEST_ABI_VERSION) | u64::from(init.id) << 32,
            ),
            (sh!(tsc_khz), u64::from(cpu::tsc_khz())),
            (sh!(wall_ns), now),
            (sh!(wall_tsc), tsc),
            (sh!(host_features), vcpu.switcher.features()),
        ];
        for (offset, value) in words {
            vcpu.switcher.set_shared(offset, value);
        }
        Ok(vcpu)
    }

    fn set_roots(&mut self, roots: &Roots) {
        self.switcher.set_roots(roots.kernel, roots.user);
        self.stats.cr3_loads += 1;
    }

    /// LGUEST_RUN: runs the guest until there is something for the Launcher.
    pub(crate) fn run(&mut self, vm: &Vm, run: &mut lguest_run) -> Result {
        if self.over {
            return Err(ENXIO);
        }
        if !task::is_current_mm(self.slot.mm()) {
            // The switcher is mapped in one address space only; a forked child has the file, but
            // not that.
            return Err(EPERM);
        }
        if run.set_regs != 0 {
            self.load_regs(&run.regs)?;
            run.set_regs = 0;
        }
        let interrupts = self.interrupts.clone();
        let result = interrupts
            .owner()
            .runner
            .while_running(|| self.run_loop(vm, run));
        self.store_regs(&mut run.regs);
        result
    }

    fn run_loop(&mut self, vm: &Vm, run: &mut lguest_run) -> Result {
        let mut next = self.resume_debugged(run);
        loop {
            next = match next {
                Ok(Next::Resume | Next::Again) => {
                    if task::must_return_to_user() {
                        return Err(EINTR);
                    }
                    task::reschedule_if_asked();
                    let next = self.run_section(vm, run);
                    // All that the guest has dropped, before it can drop more: it is not faster than we are.
                    while vm.free_dropped()? {
                        task::reschedule_if_asked();
                    }
                    next
                }
                Ok(Next::Launcher(exit)) => {
                    run.exit = exit;
                    self.over = exit == LGUEST_EXIT_SHUTDOWN;
                    return Ok(());
                }
                Err(Stop::Later) => self.handle_exit(vm, run, Wait::Allowed),
                Err(Stop::Death(death)) => {
                    let mut reason = [0; LGUEST_REASON_MAX as usize];
                    death.write_to(&mut reason);
                    run.death().reason = reason;
                    run.exit = LGUEST_EXIT_DEATH;
                    self.over = true;
                    return Ok(());
                }
                Err(Stop::Host(error)) => {
                    self.rewind();
                    return Err(error);
                }
            }
        }
    }

    /// LGUEST_SET_DEBUG.
    pub(crate) fn set_debug(&mut self, flags: u32) -> Result {
        const KNOWN: u32 = LGUEST_DEBUG_STEP | LGUEST_DEBUG_BREAKPOINTS | LGUEST_DEBUG_INJECT_BP;
        if flags & !KNOWN != 0 {
            return Err(EINVAL);
        }
        if self.over {
            return Err(ENXIO);
        }
        let step = flags & LGUEST_DEBUG_STEP != 0;
        self.switcher.set_stepping(step);
        self.debug = Debug {
            breakpoints: flags & LGUEST_DEBUG_BREAKPOINTS != 0,
            inject_breakpoint: flags & LGUEST_DEBUG_INJECT_BP != 0,
            step_ended: step && self.debug.step_ended,
        };
        Ok(())
    }

    /// Does what a debugger has left to be done since the last run.
    fn resume_debugged(&mut self, run: &mut lguest_run) -> Result<Next, Stop> {
        let next = if core::mem::take(&mut self.debug.inject_breakpoint) {
            self.inject_exception(Event::new(trap::BP, 0))?
        } else {
            Next::Again
        };
        Ok(self.end_step(run, next))
    }

    /// While the guest is stepped, whatever ends an instruction goes to the Launcher.
    fn end_step(&mut self, run: &mut lguest_run, next: Next) -> Next {
        if !self.switcher.stepping() {
            return next;
        }
        match next {
            Next::Resume => self.debug_exit(run, trap::DB),
            Next::Again if self.debug.step_ended => self.debug_exit(run, trap::DB),
            // The Launcher does the rest of the instruction.
            Next::Launcher(exit) if exit != LGUEST_EXIT_DEBUG => {
                self.debug.step_ended = true;
                next
            }
            next => next,
        }
    }

    fn debug_exit(&mut self, run: &mut lguest_run, vector: u8) -> Next {
        self.debug.step_ended = false;
        let debug = run.debug();
        debug.vector = vector.into();
        debug.pad = 0;
        Next::Launcher(LGUEST_EXIT_DEBUG)
    }

    /// Lets the guest run, with IRQs off as seen from the Host, until the Host has something else
    /// to do or an exit cannot be handled here: [`Stop::Later`] says that it is still to be handled, with
    /// waiting allowed.
    fn run_section(&mut self, vm: &Vm, run: &mut lguest_run) -> Result<Next, Stop> {
        let irqs = IrqsOff::new();
        if task::has_work() {
            return Ok(Next::Again);
        }
        let _time = GuestTime::begin();
        self.stats.sections += 1;
        let (next, msr_writes) = with_section(
            &irqs,
            self,
            |vcpu| &mut vcpu.switcher,
            |vcpu, section| loop {
                let next = vcpu.deliver_events()?;
                match vcpu.end_step(run, next) {
                    Next::Resume | Next::Again => {}
                    next => return Ok(next),
                }
                vcpu.stats.entries += 1;
                vcpu.stats.cr3_loads += 2;
                vcpu.switcher.enter(section);
                vcpu.count_exit();
                match vcpu.handle_exit(vm, run, Wait::Forbidden) {
                    Ok(Next::Resume | Next::Again) if !vcpu.host_waits() && !task::has_work() => {}
                    next => return next,
                }
            },
        );
        self.stats.msr_writes += msr_writes;
        let intact = self.switcher.replay_exceptions(&irqs);
        // The CPU has acknowledged this interrupt: the Host's handler has to run before anything
        // else may.
        if let Some(vector) = self.host_interrupt() {
            self.switcher.regs().vector = 0;
            self.switcher.replay(vector);
        }
        if !intact {
            return Err(Death::MemoryError.into());
        }
        next
    }

    /// After an error of the Host's, which the Launcher may mend: makes the guest do the hypercall
    /// again. A page fault comes again by itself.
    fn rewind(&mut self) {
        let regs = self.switcher.regs();
        if regs.vector == EXIT_HYPERCALL {
            regs.rip = regs.rip.wrapping_sub(SYSCALL_LENGTH);
        }
    }

    /// What the guest has to hear of before it goes on: that its RIP leads nowhere, and interrupts.
    fn deliver_events(&mut self) -> Result<Next, Stop> {
        let regs = self.switcher.regs();
        let limit_32 = regs.cs == eret::CS_USER32 && u32::try_from(regs.rip).is_err();
        if limit_32 || !Gva::new(regs.rip).is_canonical() {
            // An instruction ended at the end of the lower half. IRET would fault at CPL0.
            let next = self.inject_exception(Event::new(trap::GP, 0))?;
            if self.switcher.stepping() {
                return Ok(next);
            }
        }
        self.deliver_interrupts()
    }

    /// The interrupt of the Host's that ended the guest's turn, if one did.
    fn host_interrupt(&mut self) -> Option<u8> {
        let vector = u8::try_from(self.switcher.regs().vector).ok()?;
        (self.route(vector) == Route::HostInterrupt).then_some(vector)
    }

    /// Is the section over, for something has come that the Host's handlers have to hear of, or have
    /// dealt with in the middle of it?
    fn host_waits(&mut self) -> bool {
        self.switcher.regs().vector == EXIT_INTERRUPTED
            || self.host_interrupt().is_some()
            || self.switcher.has_exceptions()
    }

    fn route(&self, vector: u8) -> Route {
        trap::route(vector, self.switcher.int80_is_a_device())
    }

    fn count_exit(&mut self) {
        let regs = self.switcher.regs();
        let (vector, rax) = (regs.vector, regs.rax);
        let Ok(vector) = u8::try_from(vector) else {
            if vector == EXIT_HYPERCALL && !self.switcher.user_mode() {
                if let Some(count) = self.stats.hypercalls.get_mut(rax as usize) {
                    *count += 1;
                }
            }
            // What interrupts the switcher are NMIs, but for machine checks.
            self.stats.nmis += u64::from(vector == EXIT_INTERRUPTED);
            return;
        };
        match self.route(vector) {
            Route::HostInterrupt => self.stats.interrupts += 1,
            Route::HostException => self.stats.nmis += 1,
            Route::PageFault => self.stats.page_faults += 1,
            Route::Protection | Route::Guest | Route::Fatal => {}
        }
    }

    /// Delivers the next pending interrupt if the guest takes one now; else sees to it that the
    /// guest, or the switcher on its behalf, calls as soon as it does.
    fn deliver_interrupts(&mut self) -> Result<Next, Stop> {
        let interrupts = self.interrupts.clone();
        let pending = &interrupts.owner().pending;
        let mut waiting = !pending.is_empty();
        if waiting && !self.switcher.stepping() && self.takes_interrupts() {
            if let Some(vector) = pending.take_highest() {
                self.stats.irqs += 1;
                self.inject(Event::interrupt(vector))?;
            }
            waiting = !pending.is_empty();
        }
        self.switcher.set_irq_waiting(waiting);
        self.switcher.set_shared(sh!(irq_pending), waiting.into());
        Ok(Next::Again)
    }

    fn takes_interrupts(&mut self) -> bool {
        self.switcher.user_mode() || self.switcher.shared(sh!(irq_enabled)) & flags::IF != 0
    }

    /// Does what the exit asks for.
    fn handle_exit(&mut self, vm: &Vm, run: &mut lguest_run, wait: Wait) -> Result<Next, Stop> {
        let next = self.dispatch_exit(vm, run, wait)?;
        Ok(self.end_step(run, next))
    }

    fn dispatch_exit(&mut self, vm: &Vm, run: &mut lguest_run, wait: Wait) -> Result<Next, Stop> {
        let (exit, error) = (self.switcher.regs().vector, self.switcher.regs().error);
        let Ok(vector) = u8::try_from(exit) else {
            return match exit {
                // The switcher does them alone unless the guest is stepped.
                EXIT_HYPERCALL if self.switcher.user_mode() => {
                    self.switcher.do_syscall();
                    Ok(Next::Resume)
                }
                EXIT_HYPERCALL => self.hypercall(vm, run, wait),
                EXIT_SYSCALL32 if self.switcher.user_mode() => {
                    self.inject_exception(Event::new(trap::GP, LGUEST_ERROR_SYSCALL32))
                }
                EXIT_SYSCALL32 => {
                    let regs = self.switcher.regs();
                    regs.rip = regs.rip.wrapping_sub(SYSCALL_LENGTH);
                    self.inject_exception(Event::new(trap::UD, 0))
                }
                EXIT_INTERRUPTED => Ok(Next::Again),
                _ => Err(Death::SwitcherFault {
                    vector: exit as u8,
                    error,
                    rip: self.switcher.fault_rip(),
                    cr2: self.switcher.cr2(),
                }
                .into()),
            };
        };
        const { assert!(EXIT_SWITCHER_FAULT > 0xff) };
        let event = Event::new(vector, error as u32);
        match self.route(vector) {
            Route::HostInterrupt | Route::HostException => Ok(Next::Again),
            Route::PageFault => self.page_fault(vm, run, error as u32, wait),
            Route::Protection => self.protection(vm, event, wait),
            Route::Guest => self.exception(run, event, wait),
            Route::Fatal => {
                let rip = self.switcher.regs().rip;
                Err(Death::Impossible(event, rip).into())
            }
        }
    }

    /// #PF: the shadow's, the guest's, or a device's.
    fn page_fault(
        &mut self,
        vm: &Vm,
        run: &mut lguest_run,
        error: u32,
        wait: Wait,
    ) -> Result<Next, Stop> {
        let gva = Gva::new(self.switcher.cr2());
        let user = self.switcher.user_mode();
        let access = Access::from_error_code(error, user);
        let mut guard = vm.memory(wait)?;
        let mmu = guard.mmu()?;
        let fault = mmu.fault(gva, access, wait)?;
        match fault {
            Fault::Filled => {
                self.stats.pf_filled += 1;
                self.switcher.invalidate(gva.page().get());
            }
            Fault::Spurious => {
                self.stats.pf_spurious += 1;
                self.switcher.invalidate(gva.page().get());
            }
            Fault::Inject(code) => {
                self.stats.pf_injected += 1;
                self.switcher.set_shared(sh!(cr2), gva.get());
                return self.inject(Event::new(trap::PF, code));
            }
            Fault::GeneralProtection => {
                return self.inject_exception(Event::new(trap::GP, 0));
            }
            Fault::Mmio(gpa) => {
                self.stats.pf_mmio += 1;
                let rip = Gva::new(self.switcher.regs().rip);
                let mut insn = [0; 16];
                let len = mmu.fetch(rip, user, &mut insn[..emulate::MAX_LENGTH]);
                run.insn_len = len as u32;
                let mmio = run.mmio();
                mmio.gpa = gpa.get();
                mmio.gva = gva.get();
                mmio.insn = insn;
                mmio.write = access.write.into();
                mmio.pad = 0;
                return Ok(Next::Launcher(LGUEST_EXIT_MMIO));
            }
        }
        Ok(Next::Again)
    }

    /// An exception of the guest's, unless it is what the Launcher debugs with or the Host minds.
    fn exception(&mut self, run: &mut lguest_run, event: Event, wait: Wait) -> Result<Next, Stop> {
        match event.vector {
            // Nobody asked for alignment checks: the Host has split locks fault.
            trap::AC
                if cpu::detects_split_locks() && self.switcher.regs().rflags & flags::AC == 0 =>
            {
                if wait == Wait::Forbidden {
                    return Err(Stop::Later);
                }
                task::sleep_ms(BUS_LOCK_PAUSE_MS);
                self.switcher.allow_split_locks();
                return Ok(Next::Again);
            }
            trap::DB if self.switcher.bus_lock() => {
                if wait == Wait::Forbidden {
                    return Err(Stop::Later);
                }
                task::sleep_ms(BUS_LOCK_PAUSE_MS);
                if !self.switcher.forget_bus_lock() {
                    return Ok(Next::Again);
                }
            }
            _ => {}
        }
        let asked = match event.vector {
            trap::BP => self.debug.breakpoints,
            trap::DB => self.switcher.stepped(),
            _ => false,
        };
        if asked {
            return Ok(self.debug_exit(run, event.vector));
        }
        self.inject_exception(event)
    }

    /// #GP: perhaps a privileged instruction of the guest's kernel that no hypercall replaced, or a
    /// SYSENTER of its programs.
    fn protection(&mut self, vm: &Vm, event: Event, wait: Wait) -> Result<Next, Stop> {
        let regs = *self.switcher.regs();
        if event.error_code == Some(trap::INT80_REFUSED) && self.switcher.int80_is_a_device() {
            return self.int80(vm, event, wait);
        }
        let user = self.switcher.user_mode();
        if event.error_code == Some(0) && (user || regs.cs == 0x33) {
            if wait == Wait::Forbidden {
                return Err(Stop::Later);
            }
            let mut insn = [0; emulate::MAX_LENGTH];
            let len = {
                let mut guard = vm.memory(wait)?;
                guard.mmu()?.fetch(Gva::new(regs.rip), user, &mut insn)
            };
            if user {
                if emulate::is_sysenter(&insn[..len]) {
                    let event = Event::new(trap::GP, LGUEST_ERROR_SYSENTER);
                    return self.inject_exception(event);
                }
            } else if let Some((instruction, len)) = emulate::decode(&insn[..len]) {
                match privileged::execute(self, vm, instruction, len) {
                    Ok(()) => {
                        self.stats.emulated += 1;
                        return Ok(Next::Resume);
                    }
                    Err(Refused::Guest(Protection)) => {}
                    Err(Refused::Stop(stop)) => return Err(stop),
                }
            }
        }
        self.inject_exception(event)
    }

    /// The gate of `int 0x80` is closed, for a device of the Host's may have the vector. The guest gets
    /// its system call all the same.
    fn int80(&mut self, vm: &Vm, refused: Event, wait: Wait) -> Result<Next, Stop> {
        if wait == Wait::Forbidden {
            return Err(Stop::Later);
        }
        let user = self.switcher.user_mode();
        let rip = self.switcher.regs().rip;
        let mut insn = [0; emulate::MAX_LENGTH];
        let len = {
            let mut guard = vm.memory(wait)?;
            guard.mmu()?.fetch(Gva::new(rip), user, &mut insn)
        };
        let Some(len) = emulate::int80_length(&insn[..len]) else {
            // The guest has changed it meanwhile.
            return self.inject_exception(refused);
        };
        self.switcher.regs().rip = rip.wrapping_add(len.into());
        self.inject_exception(Event::new(trap::INT80, 0))
    }

    fn inject_exception(&mut self, event: Event) -> Result<Next, Stop> {
        self.stats.exceptions += 1;
        self.inject(event)
    }

    /// Gives the guest an event: the interrupted state goes to the shared page, and the guest to
    /// its entry point. Its stack is its own business.
    fn inject(&mut self, event: Event) -> Result<Next, Stop> {
        let regs = *self.switcher.regs();
        let Some(entries) = self.entries else {
            return Err(Death::NoEntries(event, regs.rip).into());
        };
        let undelivered = self.switcher.shared(sh!(event));
        if undelivered & u64::from(LGUEST_EVENT_VALID) != 0 {
            return Err(Death::DoubleFault(event, undelivered, regs.rip).into());
        }
        let user = self.switcher.user_mode();
        let virtual_if = user || self.switcher.shared(sh!(irq_enabled)) & flags::IF != 0;
        let cs = match (user, regs.cs) {
            (false, _) => eret::CS_KERNEL,
            (true, eret::CS_USER32) => eret::CS_USER32,
            (true, _) => eret::CS_USER64,
        };
        let kernel_rsp = self.switcher.shared(sh!(kernel_rsp));
        let frame = [
            (
                sh!(event),
                u64::from(event.vector) | u64::from(LGUEST_EVENT_VALID),
            ),
            (sh!(error_code), event.error_code.unwrap_or(0).into()),
            (sh!(rip), regs.rip),
            (sh!(cs), cs),
            (sh!(rflags), flags::guest_view(regs.rflags, virtual_if)),
            (sh!(rsp), regs.rsp),
            (sh!(ss), if user { 0x2b } else { 0x18 }),
            (sh!(rax), regs.rax),
            (sh!(irq_enabled), 0),
        ];
        for (offset, value) in frame {
            self.switcher.set_shared(offset, value);
        }
        self.switcher.set_user_mode(false);
        let id = u64::from(self.id);
        let regs = self.switcher.regs();
        regs.rax = (LGUEST_SHARED_VA as u64) + id * 4096;
        (regs.rip, regs.rsp) = if user {
            (entries.event_user.get(), kernel_rsp)
        } else {
            (entries.event_kernel.get(), regs.rsp & !0xf)
        };
        regs.rflags = flags::AT_EVENT_ENTRY;
        regs.cs = eret::CS_USER64;
        Ok(Next::Resume)
    }

    /// A hypercall: does what RAX says, and puts there what came of it, unless there is nothing to return to.
    fn hypercall(&mut self, vm: &Vm, run: &mut lguest_run, wait: Wait) -> Result<Next, Stop> {
        let regs = *self.switcher.regs();
        let (rax, next) = match u32::try_from(regs.rax).unwrap_or(LHCALL_COUNT) {
            LHCALL_ERET => return self.eret(),
            LHCALL_SHUTDOWN => {
                let shutdown = run.shutdown();
                shutdown.kind = regs.rdi;
                shutdown.arg = regs.rsi;
                return Ok(Next::Launcher(LGUEST_EXIT_SHUTDOWN));
            }
            number => match self.call(vm, run, number, &regs, wait) {
                Ok(next) => (0, next),
                Err(Refused::Guest(errno)) => (errno.rax(), Next::Resume),
                Err(Refused::Stop(stop)) => return Err(stop),
            },
        };
        self.switcher.regs().rax = rax;
        Ok(next)
    }

    /// The hypercalls that return to the guest with 0 or an errno.
    fn call(
        &mut self,
        vm: &Vm,
        run: &mut lguest_run,
        number: u32,
        regs: &Regs,
        wait: Wait,
    ) -> Result<Next, Refused<Errno>> {
        match number {
            LHCALL_SET_ENTRIES => self.set_entries(regs.rdi, regs.rsi, regs.rdx)?,
            LHCALL_WRITE_CR3 => self.write_cr3(vm, regs.rdi, wait)?,
            LHCALL_FLUSH_TLB => self.flush_tlb(vm, regs.rdi, regs.rsi, wait)?,
            // Both may have to wait: for the timer's callback, and for an interrupt.
            LHCALL_SET_TIMER if regs.rdi == !0 && wait == Wait::Forbidden => {
                return Err(Stop::Later.into())
            }
            LHCALL_HALT if wait == Wait::Forbidden => return Err(Stop::Later.into()),
            LHCALL_SET_TIMER => self.set_timer(regs.rdi),
            LHCALL_HALT => {
                self.switcher.set_shared(sh!(irq_enabled), flags::IF);
                self.halt()?;
            }
            // Coming here was all: pending interrupts are delivered on the way back.
            LHCALL_IRQ_WINDOW => {}
            LHCALL_CONSOLE => {
                if !self.is_ram(vm, regs.rdi, regs.rsi, LGUEST_CONSOLE_MAX.into(), wait)? {
                    return Err(Errno::Invalid.into());
                }
                let console = run.console();
                console.gpa = regs.rdi;
                console.len = regs.rsi;
                return Ok(Next::Launcher(LGUEST_EXIT_CONSOLE));
            }
            LHCALL_NOTIFY => {
                if !vm.notify(regs.rdi, regs.rsi, wait)? {
                    let notify = run.notify();
                    notify.gpa = regs.rdi;
                    notify.queue = regs.rsi;
                    return Ok(Next::Launcher(LGUEST_EXIT_NOTIFY));
                }
            }
            LHCALL_SET_TLS => self.set_tls(regs.rdi, regs.rsi)?,
            LHCALL_SET_CPUNODE => self.set_cpunode(regs.rdi)?,
            LHCALL_DROP_ROOT => {
                let mut guard = vm.memory(wait)?;
                guard.mmu()?.drop_root(Gpa::new(regs.rdi & paging::ADDR));
            }
            _ => return Err(Errno::NoSuchCall.into()),
        }
        Ok(Next::Resume)
    }

    fn set_tls(&mut self, index: u64, wanted: u64) -> Result<(), Errno> {
        match segment::tls_descriptor(wanted) {
            Some(descriptor) if index < 3 => {
                let index = LGUEST_TLS_FIRST as usize + index as usize;
                self.switcher.set_descriptor(index, descriptor);
                Ok(())
            }
            _ => Err(Errno::Invalid),
        }
    }

    fn set_cpunode(&mut self, limit: u64) -> Result<(), Errno> {
        match u32::try_from(limit) {
            Ok(limit) if limit < 1 << 20 => {
                let descriptor = segment::cpunode_descriptor(limit);
                self.switcher.set_descriptor(15, descriptor);
                Ok(())
            }
            _ => Err(Errno::Invalid),
        }
    }

    /// The returns that the switcher left to us.
    fn eret(&mut self) -> Result<Next, Stop> {
        let (cs, rip) = (
            self.switcher.shared(sh!(cs)),
            self.switcher.shared(sh!(rip)),
        );
        let frame = match eret::check(cs, rip, self.switcher.shared(sh!(rflags))) {
            Ok(frame) => frame,
            Err(_) => {
                let regs = self.switcher.regs();
                regs.rip = regs.rip.wrapping_sub(SYSCALL_LENGTH);
                return self.inject_exception(Event::new(trap::GP, 0));
            }
        };
        let (rsp, rax) = (
            self.switcher.shared(sh!(rsp)),
            self.switcher.shared(sh!(rax)),
        );
        let (rcx, r11) = (
            self.switcher.shared(sh!(rcx)),
            self.switcher.shared(sh!(r11)),
        );
        self.switcher
            .set_user_mode(frame.mode != eret::Mode::Kernel);
        let regs = self.switcher.regs();
        (regs.rip, regs.rsp, regs.rflags) = (rip, rsp, frame.rflags);
        (regs.rax, regs.rcx, regs.r11) = (rax, rcx, r11);
        regs.cs = if frame.mode == eret::Mode::User32 {
            eret::CS_USER32
        } else {
            eret::CS_USER64
        };
        let virtual_if = if frame.virtual_if { flags::IF } else { 0 };
        self.switcher.set_shared(sh!(irq_enabled), virtual_if);
        Ok(Next::Resume)
    }

    fn set_entries(
        &mut self,
        syscall: u64,
        event_user: u64,
        event_kernel: u64,
    ) -> Result<(), Errno> {
        let [syscall, event_user, event_kernel] = [syscall, event_user, event_kernel].map(Gva::new);
        if ![syscall, event_user, event_kernel]
            .iter()
            .all(|gva| gva.is_upper())
        {
            return Err(Errno::Invalid);
        }
        self.switcher.set_syscall_entry(syscall);
        self.entries = Some(Entries {
            event_user,
            event_kernel,
        });
        Ok(())
    }

    /// CR3 as the guest writes it: an address, a PCID, and bit 63 to keep what is cached.
    pub(crate) fn write_cr3(&mut self, vm: &Vm, cr3: u64, wait: Wait) -> Result<(), Stop> {
        let root = Gpa::new(cr3 & paging::ADDR);
        let mut guard = vm.memory(wait)?;
        let mmu = guard.mmu()?;
        if !mmu.ram().contains(root) {
            return Err(Death::BadRoot(root).into());
        }
        let roots = mmu.load(root, cr3 >> 63 != 0, wait)?;
        self.root = root;
        self.set_roots(&roots);
        Ok(())
    }

    fn flush_tlb(
        &mut self,
        vm: &Vm,
        what: u64,
        gva: u64,
        wait: Wait,
    ) -> Result<(), Refused<Errno>> {
        let mut guard = vm.memory(wait)?;
        let mmu = guard.mmu()?;
        match u32::try_from(what) {
            Ok(LGUEST_FLUSH_USER) => mmu.flush_user(),
            Ok(LGUEST_FLUSH_ALL) => mmu.flush_all(),
            Ok(LGUEST_FLUSH_ONE) => mmu.flush_one(Gva::new(gva)),
            _ => return Err(Errno::Invalid.into()),
        }
        Ok(())
    }

    /// Forgets one page, for INVLPG.
    pub(crate) fn flush_one(&mut self, vm: &Vm, gva: u64) -> Result<(), Stop> {
        let mut guard = vm.memory(Wait::Allowed)?;
        guard.mmu()?.flush_one(Gva::new(gva));
        Ok(())
    }

    fn set_timer(&mut self, ns: u64) {
        if ns == !0 {
            self.interrupts.disarm();
        } else {
            self.interrupts.arm(i64::try_from(ns).unwrap_or(i64::MAX));
        }
    }

    /// Waits for an interrupt. `EINTR` when a signal came first: the guest halts again afterwards.
    pub(crate) fn halt(&mut self) -> Result<(), Stop> {
        self.stats.halts += 1;
        let interrupts = self.interrupts.owner();
        let pending = &interrupts.pending;
        interrupts.runner.sleep_until(|| !pending.is_empty());
        if pending.is_empty() {
            Err(EINTR.into())
        } else {
            Ok(())
        }
    }

    /// Is `[gpa, gpa + len)` RAM, and `len` at most `max`?
    fn is_ram(&self, vm: &Vm, gpa: u64, len: u64, max: u64, wait: Wait) -> Result<bool, Stop> {
        let mut guard = vm.memory(wait)?;
        let ram = guard.mmu()?.ram();
        let last = gpa.checked_add(len.saturating_sub(1));
        Ok(len <= max
            && ram.contains(Gpa::new(gpa))
            && last.is_some_and(|last| ram.contains(Gpa::new(last))))
    }

    /// Counters of this vCPU.
    pub(crate) fn stats(&mut self) -> lguest_stats {
        let mut stats = self.stats;
        let (syscalls, erets, spurious) = self.switcher.counters();
        stats.direct_syscalls = syscalls;
        stats.direct_erets = erets;
        stats.hypercalls[LHCALL_ERET as usize] += erets;
        stats.pf_spurious += spurious;
        // A direct switch loads CR3 once, a return to kernel mode not at all: an upper bound.
        stats.cr3_loads += syscalls + erets;
        stats
    }

    /// What the Launcher may change after an MMIO exit: no more than the guest could by itself.
    fn load_regs(&mut self, from: &lguest_regs) -> Result {
        if !Gva::new(from.rip).is_canonical() {
            return Err(EINVAL);
        }
        let regs = self.switcher.regs();
        *regs = Regs {
            r15: from.r15,
            r14: from.r14,
            r13: from.r13,
            r12: from.r12,
            rbp: from.rbp,
            rbx: from.rbx,
            r11: from.r11,
            r10: from.r10,
            r9: from.r9,
            r8: from.r8,
            rax: from.rax,
            rcx: from.rcx,
            rdx: from.rdx,
            rsi: from.rsi,
            rdi: from.rdi,
            rip: from.rip,
            rsp: from.rsp,
            rflags: from.rflags,
            ..*regs
        };
        Ok(())
    }

    fn store_regs(&mut self, to: &mut lguest_regs) {
        let regs = *self.switcher.regs();
        let (fs_base, gs_base) = self.switcher.bases();
        *to = lguest_regs {
            r15: regs.r15,
            r14: regs.r14,
            r13: regs.r13,
            r12: regs.r12,
            rbp: regs.rbp,
            rbx: regs.rbx,
            r11: regs.r11,
            r10: regs.r10,
            r9: regs.r9,
            r8: regs.r8,
            rax: regs.rax,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rip: regs.rip,
            rflags: regs.rflags,
            rsp: regs.rsp,
            fs_base,
            gs_base,
            cr2: self.switcher.shared(sh!(cr2)),
            cr3: self.root.get(),
            user_mode: self.switcher.user_mode().into(),
        };
    }
}
