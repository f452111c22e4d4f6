// SPDX-License-Identifier: GPL-2.0

//! Hypercalls of the lguest ABI: SYSCALL in Guest kernel mode, number in RAX.

use super::{
    back_to_syscall,
    event,
    set_virtual_if, //
};
use crate::{
    abi::*,
    blame::{
        Errno,
        Refused,
        Stop, //
    },
    guest::{
        Cpu,
        Entries,
        Next,
        Start, //
    },
    lg_core::{
        addr::{
            Gpa,
            Gva, //
        },
        eret,
        event::Event,
        irq::Call,
        monitor::Monitor,
        paging,
        segment,
        shadow::Flush, //
    },
    sys::{
        page::Wait,
        switcher::Regs, //
    },
};

/// The most pages that are flushed one by one. Of more than 33, Linux flushes all itself.
const MOST_FLUSHED: usize = 64;

/// Does what RAX says, and puts there what came of it, unless there is nothing to return to.
pub(crate) fn handle(cpu: &mut Cpu, run: &mut lguest_run, wait: Wait) -> Result<Next, Stop> {
    let regs = *cpu.switcher.regs();
    let (rax, next) = match u32::try_from(regs.rax).unwrap_or(LHCALL_COUNT) {
        LHCALL_ERET => return eret(cpu),
        LHCALL_RETURN_NMI => return return_nmi(cpu),
        LHCALL_SHUTDOWN => {
            let shutdown = run.shutdown();
            shutdown.kind = regs.rdi;
            shutdown.arg = regs.rsi;
            return Ok(Next::Launcher(LGUEST_EXIT_SHUTDOWN));
        }
        LHCALL_VCPU_STATE => (vcpu_state(cpu, regs.rdi), Next::Resume),
        number => match call(cpu, run, number, &regs, wait) {
            Ok(next) => (0, next),
            Err(Refused::Guest(errno)) => (errno.rax(), Next::Resume),
            Err(Refused::Stop(stop)) => return Err(stop),
        },
    };
    cpu.switcher.regs().rax = rax;
    Ok(next)
}

/// 1 for a vCPU that is on, 0 for one that is off.
fn vcpu_state(cpu: &Cpu, id: u64) -> u64 {
    match cpu.shared.crew.is_off(id) {
        Some(off) => (!off).into(),
        None => Errno::Invalid.rax(),
    }
}

/// The hypercalls that return to the Guest with 0 or an errno.
fn call(
    cpu: &mut Cpu,
    run: &mut lguest_run,
    number: u32,
    regs: &Regs,
    wait: Wait,
) -> Result<Next, Refused<Errno>> {
    match number {
        LHCALL_SET_ENTRIES => set_entries(cpu, [regs.rdi, regs.rsi, regs.rdx])?,
        LHCALL_WRITE_CR3 => cpu.write_cr3(regs.rdi, wait)?,
        LHCALL_FLUSH_TLB => flush_tlb(cpu, regs.rdi, [regs.rsi, regs.rdx], wait)?,
        // Both may have to wait: for the timer's callback, and for an interrupt.
        LHCALL_SET_TIMER if regs.rdi == !0 && wait == Wait::Forbidden => {
            return Err(Stop::Later.into())
        }
        LHCALL_HALT if wait == Wait::Forbidden => return Err(Stop::Later.into()),
        LHCALL_SET_TIMER => set_timer(cpu, regs.rdi),
        LHCALL_HALT => {
            set_virtual_if(cpu, true);
            cpu.halt()?;
        }
        // Coming here was all: pending interrupts are delivered on the way back.
        LHCALL_IRQ_WINDOW => {}
        LHCALL_CONSOLE => {
            if !is_text(cpu, regs.rdi, regs.rsi) {
                return Err(Errno::Invalid.into());
            }
            let console = run.console();
            console.gpa = regs.rdi;
            console.len = regs.rsi;
            return Ok(Next::Launcher(LGUEST_EXIT_CONSOLE));
        }
        LHCALL_NOTIFY => {
            if !cpu.shared.notify.signal(regs.rdi, regs.rsi, wait)? {
                let notify = run.notify();
                notify.gpa = regs.rdi;
                notify.queue = regs.rsi;
                return Ok(Next::Launcher(LGUEST_EXIT_NOTIFY));
            }
        }
        LHCALL_SET_TLS => set_tls(cpu, regs.rdi, regs.rsi)?,
        LHCALL_SET_CPUNODE => set_cpunode(cpu, regs.rdi)?,
        LHCALL_DROP_ROOT => {
            let root = Gpa::new(regs.rdi & paging::ADDR);
            cpu.drop_root(root, wait)?;
        }
        // All of these wait, or may have to.
        LHCALL_START_VCPU | LHCALL_STOP_VCPU | LHCALL_WAIT | LHCALL_STOP_OTHERS
            if wait == Wait::Forbidden =>
        {
            return Err(Stop::Later.into())
        }
        LHCALL_START_VCPU => start_vcpu(cpu, regs)?,
        LHCALL_STOP_VCPU => {
            cpu.shared.crew.stop(&cpu.inbox)?;
            return Ok(Next::Again);
        }
        LHCALL_WAIT => cpu.wait(regs.rdi != 0)?,
        LHCALL_STOP_OTHERS => cpu.shared.crew.stop_others((&cpu.inbox, cpu.life)),
        LHCALL_SEND_IPI => send_ipi(cpu, regs.rdi, regs.rsi)?,
        LHCALL_KICK => cpu.shared.crew.call(existing(cpu, regs.rdi)?, Call::Kick),
        LHCALL_FLUSH_VCPUS => flush_vcpus(cpu, regs, wait)?,
        LHCALL_SET_NMI => set_nmi(cpu, Gva::new(regs.rdi))?,
        LHCALL_SET_MONITOR => set_monitor(cpu, Gva::new(regs.rdi), Gpa::new(regs.rsi), wait)?,
        _ => return Err(Errno::NoSuchCall.into()),
    }
    Ok(Next::Resume)
}

/// The returns that the switcher left to us.
fn eret(cpu: &mut Cpu) -> Result<Next, Stop> {
    let page = &cpu.switcher.page;
    let state = lguest_nmi {
        rip: page.rip(),
        cs: page.cs(),
        rflags: page.rflags(),
        rsp: page.rsp(),
        rax: page.rax(),
        rcx: page.rcx(),
        r11: page.r11(),
    };
    resume(cpu, state)
}

/// The end of an NMI.
fn return_nmi(cpu: &mut Cpu) -> Result<Next, Stop> {
    if !cpu.in_nmi {
        back_to_syscall(cpu);
        return event::inject_exception(cpu, Event::GENERAL_PROTECTION);
    }
    cpu.in_nmi = false;
    let state = cpu.switcher.page.nmi();
    resume(cpu, state)
}

/// Takes the Guest to where `state` says, which is a copy of what it wrote.
fn resume(cpu: &mut Cpu, state: lguest_nmi) -> Result<Next, Stop> {
    let lguest_nmi {
        rip,
        cs,
        rflags,
        rsp,
        rax,
        rcx,
        r11,
    } = state;
    let Ok(frame) = eret::check(cs, rip, rflags) else {
        back_to_syscall(cpu);
        return event::inject_exception(cpu, Event::GENERAL_PROTECTION);
    };
    cpu.switcher.set_user_mode(frame.mode != eret::Mode::Kernel);
    let regs = cpu.switcher.regs();
    (regs.rip, regs.rsp, regs.rflags) = (rip, rsp, frame.rflags);
    (regs.rax, regs.rcx, regs.r11) = (rax, rcx, r11);
    regs.cs = if frame.mode == eret::Mode::User32 {
        eret::CS_USER32
    } else {
        eret::CS_USER64
    };
    set_virtual_if(cpu, frame.virtual_if);
    Ok(Next::Resume)
}

fn set_entries(cpu: &mut Cpu, entries: [u64; 3]) -> Result<(), Errno> {
    let entries @ [syscall, user, kernel] = entries.map(Gva::new);
    if !entries.iter().all(|gva| gva.is_upper()) {
        return Err(Errno::Invalid);
    }
    cpu.switcher.set_syscall_entry(syscall);
    cpu.switcher.set_event_entry(user);
    cpu.entries = Some(Entries { user, kernel });
    Ok(())
}

fn flush_tlb(cpu: &mut Cpu, what: u64, range: [u64; 2], wait: Wait) -> Result<(), Refused<Errno>> {
    let what = flush(what, range)?;
    cpu.flush(what, wait)?;
    Ok(())
}

fn flush_vcpus(cpu: &mut Cpu, regs: &Regs, wait: Wait) -> Result<(), Refused<Errno>> {
    let what = flush(regs.rdi, [regs.rsi, regs.rdx])?;
    let set = existing(cpu, regs.r10)?;
    let me = (&cpu.root, &*cpu.inbox);
    cpu.shared.flush_vcpus(me, set, what, wait)?;
    cpu.switcher.note().flush(what);
    Ok(())
}

/// What a flush is to be of.
fn flush(what: u64, [gva, end]: [u64; 2]) -> Result<Flush, Errno> {
    Ok(match u32::try_from(what) {
        Ok(LGUEST_FLUSH_USER) => Flush::Lower,
        Ok(LGUEST_FLUSH_ALL) => Flush::All,
        Ok(LGUEST_FLUSH_ONE) => Flush::Page(Gva::new(gva)),
        Ok(LGUEST_FLUSH_RANGE) => range(Gva::new(gva), Gva::new(end)).ok_or(Errno::Invalid)?,
        _ => return Err(Errno::Invalid),
    })
}

/// The set, if the Guest has all vCPUs in it.
fn existing(cpu: &Cpu, set: u64) -> Result<u64, Errno> {
    match cpu.shared.crew.has(set) {
        true => Ok(set),
        false => Err(Errno::Invalid),
    }
}

fn start_vcpu(cpu: &mut Cpu, regs: &Regs) -> Result<(), Refused<Errno>> {
    let (rip, root) = (Gva::new(regs.rsi), Gpa::new(regs.r8));
    if !rip.is_canonical() || root.offset() != 0 || !cpu.shared.ram().contains(root) {
        return Err(Errno::Invalid.into());
    }
    let start = Start {
        rip: rip.get(),
        rsp: regs.rdx,
        argument: regs.r10,
        root,
        syscall_entry: cpu.switcher.syscall_entry(),
        entries: cpu.entries,
        nmi_entry: cpu.nmi_entry,
        monitor: cpu.monitor,
    };
    let me = (&*cpu.inbox, cpu.life);
    Ok(cpu.shared.crew.start(me, regs.rdi, &start.words())?)
}

fn send_ipi(cpu: &Cpu, set: u64, vector: u64) -> Result<(), Errno> {
    let set = existing(cpu, set)?;
    match u8::try_from(vector) {
        Ok(vector) if u32::from(vector) == LGUEST_VECTOR_NMI => {
            cpu.shared.crew.call(set, Call::Nmi);
        }
        // What is below are exceptions.
        Ok(vector @ 0x20..) => cpu.shared.crew.raise(set, vector),
        _ => return Err(Errno::Invalid),
    }
    Ok(())
}

fn set_nmi(cpu: &mut Cpu, entry: Gva) -> Result<(), Errno> {
    if entry.get() != 0 && !entry.is_upper() {
        return Err(Errno::Invalid);
    }
    cpu.nmi_entry = entry;
    Ok(())
}

/// The pages of `[first, end)`, or all of that half if they are many. `None` if they are in no half.
fn range(first: Gva, end: Gva) -> Option<Flush> {
    let last = Gva::new(end.get().checked_sub(1)?);
    end.get().checked_sub(first.get())?;
    let bytes = end.get() - first.page().get();
    if !first.is_canonical() || !last.is_canonical() || first.is_upper() != last.is_upper() {
        return None;
    }
    Some(match usize::try_from(bytes.div_ceil(4096)) {
        Ok(pages @ ..=MOST_FLUSHED) => Flush::Pages(first, pages),
        _ if first.is_upper() => Flush::All,
        _ => Flush::Lower,
    })
}

fn set_timer(cpu: &Cpu, ns: u64) {
    if ns == !0 {
        cpu.inbox.disarm();
    } else {
        cpu.inbox.arm(i64::try_from(ns).unwrap_or(i64::MAX));
    }
}

/// May `[gpa, gpa + len)` be text for the console: RAM, and not too long?
fn is_text(cpu: &Cpu, gpa: u64, len: u64) -> bool {
    let ram = cpu.shared.ram();
    let last = gpa.checked_add(len.saturating_sub(1));
    len <= LGUEST_CONSOLE_MAX.into()
        && ram.contains(Gpa::new(gpa))
        && last.is_some_and(|last| ram.contains(Gpa::new(last)))
}

fn set_tls(cpu: &mut Cpu, index: u64, wanted: u64) -> Result<(), Errno> {
    match segment::tls_descriptor(wanted) {
        Some(descriptor) if index < 3 => {
            let index = LGUEST_TLS_FIRST as usize + index as usize;
            cpu.switcher.set_descriptor(index, descriptor);
            Ok(())
        }
        _ => Err(Errno::Invalid),
    }
}

fn set_cpunode(cpu: &mut Cpu, limit: u64) -> Result<(), Errno> {
    match u32::try_from(limit) {
        Ok(limit) if limit < 1 << 20 => {
            cpu.switcher
                .set_descriptor(15, segment::cpunode_descriptor(limit));
            Ok(())
        }
        _ => Err(Errno::Invalid),
    }
}

/// A section has the entry point of SYSCALL that it began with, so this is done outside of one.
fn set_monitor(cpu: &mut Cpu, entry: Gva, root: Gpa, wait: Wait) -> Result<(), Refused<Errno>> {
    let monitor = Monitor::new(entry, root);
    if let Some(known) = cpu.monitor {
        // The entry point alone may change, also within a section.
        return match monitor {
            _ if known.root() != root => Err(Errno::Busy.into()),
            Some(monitor) => {
                cpu.set_monitor_entry(monitor);
                Ok(())
            }
            None => Err(Errno::Invalid.into()),
        };
    }
    if !cpu.shared.crew.is_alone(&cpu.inbox) {
        return Err(Errno::Busy.into());
    }
    match monitor {
        Some(monitor) if cpu.shared.ram().contains(root) => {
            if wait == Wait::Forbidden {
                return Err(Stop::Later.into());
            }
            Ok(cpu.set_monitor(monitor)?)
        }
        _ => Err(Errno::Invalid.into()),
    }
}
