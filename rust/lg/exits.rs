// SPDX-License-Identifier: GPL-2.0

//! The consequence of an exit.

use crate::{
    abi::*,
    blame::{
        Death,
        Protection,
        Refused,
        Stop, //
    },
    debug::Debug,
    guest::{
        lguest::{
            self,
            event::inject_exception,
            hypercall, //
        },
        privileged,
        Cpu,
        Next, //
    },
    lg_core::{
        addr::Gva,
        emulate,
        eret,
        event::{
            self,
            Event, //
        },
        exit::Exit,
        flags,
        paging::Access, //
    },
    mmu::Fault,
    sys::{
        features,
        page::Wait,
        task, //
    },
};

/// How long a Guest has to wait that locks the whole bus, on a Host that minds: as a process has to for
/// a split lock (arch/x86/kernel/cpu/bus_lock.c).
const BUS_LOCK_PAUSE_MS: u32 = 10;

/// Does what the exit asks for.
pub(crate) fn handle(
    cpu: &mut Cpu,
    debug: &mut Debug,
    exit: &Exit,
    run: &mut lguest_run,
    wait: Wait,
) -> Result<Next, Stop> {
    let next = match *exit {
        Exit::Hypercall => hypercall::handle(cpu, run, wait)?,
        // The switcher does them alone unless the Guest is stepped, or each is to be in the record.
        Exit::Syscall => {
            lguest::event::system_call(cpu);
            Next::Resume
        }
        Exit::Monitored => {
            lguest::event::call_monitor(cpu);
            Next::Resume
        }
        Exit::Syscall32 { user_mode: true } => inject_exception(cpu, lguest::event::SYSCALL32)?,
        Exit::Syscall32 { user_mode: false } => {
            lguest::back_to_syscall(cpu);
            inject_exception(cpu, Event::new(event::UD, 0))?
        }
        // These are the Host's, which the run loop sees to.
        Exit::Interrupted | Exit::HostInterrupt(_) | Exit::Nmi | Exit::MachineCheck => Next::Again,
        Exit::PageFault { gva, access } => page_fault(cpu, run, gva, access, wait)?,
        Exit::Int80Refused(event) => int80(cpu, event, wait)?,
        Exit::Protection(event) => protection(cpu, event, wait)?,
        Exit::Exception(event) => exception(cpu, debug, run, event, wait)?,
        Exit::Impossible(event) => {
            return Err(Death::Impossible(event, cpu.switcher.regs().rip).into())
        }
        Exit::SwitcherFault(vector) => {
            let (error, rip, cr2) = cpu.switcher.own_fault();
            return Err(Death::SwitcherFault {
                vector,
                error,
                rip,
                cr2,
            }
            .into());
        }
    };
    Ok(debug.end_step(cpu, run, next))
}

/// After an error of the Host's, which the Launcher may mend: makes the Guest do the hypercall
/// again. A page fault comes again by itself.
pub(crate) fn rewind(cpu: &mut Cpu, exit: &Exit) {
    if *exit == Exit::Hypercall {
        lguest::back_to_syscall(cpu);
    }
}

/// #PF: the shadow's, the Guest's, or a device's.
fn page_fault(
    cpu: &mut Cpu,
    run: &mut lguest_run,
    gva: Gva,
    access: Access,
    wait: Wait,
) -> Result<Next, Stop> {
    let fault = cpu
        .shared
        .fault((&cpu.root, &cpu.inbox), &mut cpu.walked, gva, access, wait)?;
    if wait == Wait::Forbidden && matches!(fault, Fault::Mmio(_)) {
        // Its instruction may have to be waited for.
        return Err(Stop::Later);
    }
    cpu.walked = None;
    cpu.counts.fault(&fault);
    match fault {
        Fault::Filled | Fault::Spurious => cpu.switcher.invalidate(gva.page().get()),
        Fault::Inject(code) => {
            return lguest::event::inject_page_fault(cpu, gva, code);
        }
        Fault::GeneralProtection => return inject_exception(cpu, Event::GENERAL_PROTECTION),
        Fault::Mmio(gpa) => {
            let rip = Gva::new(cpu.switcher.regs().rip);
            let mut insn = [0; 16];
            let len = cpu.fetch(rip, &mut insn[..emulate::MAX_LENGTH]);
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

/// An exception of the Guest's, unless it is what the Launcher debugs with or the Host minds.
fn exception(
    cpu: &mut Cpu,
    debug: &mut Debug,
    run: &mut lguest_run,
    event: Event,
    wait: Wait,
) -> Result<Next, Stop> {
    match event.vector {
        // Nobody asked for alignment checks: the Host has split locks fault.
        event::AC
            if features::detects_split_locks() && cpu.switcher.regs().rflags & flags::AC == 0 =>
        {
            pause(wait)?;
            cpu.switcher.allow_split_locks();
            return Ok(Next::Again);
        }
        event::DB if cpu.switcher.bus_lock() => {
            pause(wait)?;
            if !cpu.switcher.forget_bus_lock() {
                return Ok(Next::Again);
            }
        }
        _ => {}
    }
    match debug.exception(cpu, run, event.vector) {
        Some(next) => Ok(next),
        None => inject_exception(cpu, event),
    }
}

/// Makes who locks the bus wait.
fn pause(wait: Wait) -> Result<(), Stop> {
    if wait == Wait::Forbidden {
        return Err(Stop::Later);
    }
    task::sleep_ms(BUS_LOCK_PAUSE_MS);
    Ok(())
}

/// #GP: perhaps a privileged instruction of the Guest's kernel that no hypercall replaced, or a
/// SYSENTER of its programs.
fn protection(cpu: &mut Cpu, event: Event, wait: Wait) -> Result<Next, Stop> {
    let regs = *cpu.switcher.regs();
    let user = cpu.switcher.user_mode();
    if event.error_code != Some(0) || !(user || regs.cs == eret::CS_USER64) {
        return inject_exception(cpu, event);
    }
    if wait == Wait::Forbidden {
        return Err(Stop::Later);
    }
    let mut insn = [0; emulate::MAX_LENGTH];
    let len = cpu.fetch(Gva::new(regs.rip), &mut insn);
    if user {
        if emulate::is_sysenter(&insn[..len]) {
            return inject_exception(cpu, lguest::event::SYSENTER);
        }
    } else if let Some((instruction, len)) = emulate::decode(&insn[..len]) {
        match privileged::execute(cpu, instruction, len) {
            Ok(()) => {
                cpu.counts.emulated();
                return Ok(Next::Resume);
            }
            Err(Refused::Guest(Protection)) => {}
            Err(Refused::Stop(stop)) => return Err(stop),
        }
    }
    inject_exception(cpu, event)
}

/// The gate of `int 0x80` is closed, for a device of the Host's may have the vector. The Guest gets
/// its system call all the same.
fn int80(cpu: &mut Cpu, refused: Event, wait: Wait) -> Result<Next, Stop> {
    if wait == Wait::Forbidden {
        return Err(Stop::Later);
    }
    let rip = cpu.switcher.regs().rip;
    let mut insn = [0; emulate::MAX_LENGTH];
    let len = cpu.fetch(Gva::new(rip), &mut insn);
    let Some(len) = emulate::int80_length(&insn[..len]) else {
        // The Guest has changed it meanwhile.
        return inject_exception(cpu, refused);
    };
    cpu.switcher.regs().rip = rip.wrapping_add(len.into());
    inject_exception(cpu, Event::new(event::INT80, 0))
}
