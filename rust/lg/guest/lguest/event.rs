// SPDX-License-Identifier: GPL-2.0

//! Events of the lguest ABI: how exceptions, interrupts and system calls come to the Guest's kernel.

use super::{
    set_cr2,
    set_virtual_if,
    virtual_if, //
};
use crate::{
    abi::{
        lguest_nmi,
        LGUEST_ERROR_SYSCALL32,
        LGUEST_ERROR_SYSENTER,
        LGUEST_EVENT_VALID, //
    },
    blame::{
        Death,
        Stop, //
    },
    guest::{
        Cpu,
        Next, //
    },
    lg_core::{
        addr::Gva,
        eret,
        event::{
            self,
            Event, //
        },
        flags,
        foresight::Note,
        irq::Call, //
    },
    sys::ram::Look,
};

/// The #GP by which a program's SYSENTER is told to the Guest's kernel.
pub(crate) const SYSENTER: Event = Event::new(event::GP, LGUEST_ERROR_SYSENTER);
/// The same for a SYSCALL of 32-bit code.
pub(crate) const SYSCALL32: Event = Event::new(event::GP, LGUEST_ERROR_SYSCALL32);

/// Tells the Guest what it has to hear of before it goes on: that its RIP leads nowhere, and
/// interrupts.
pub(crate) fn deliver(cpu: &mut Cpu) -> Result<Next, Stop> {
    let regs = cpu.switcher.regs();
    let limit_32 = regs.cs == eret::CS_USER32 && u32::try_from(regs.rip).is_err();
    if limit_32 || !Gva::new(regs.rip).is_canonical() {
        // An instruction ended at the end of the lower half. IRET would fault at CPL0.
        let next = inject_exception(cpu, Event::GENERAL_PROTECTION)?;
        if cpu.switcher.stepping() {
            return Ok(next);
        }
    }
    if cpu.inbox.is_called(Call::Nmi) {
        deliver_nmi(cpu);
    }
    deliver_interrupts(cpu)
}

/// Gives the Guest its NMI, if it is not at one: the interrupted state goes to a part of the shared page that
/// nothing else uses.
fn deliver_nmi(cpu: &mut Cpu) {
    if cpu.in_nmi || cpu.switcher.stepping() {
        return;
    }
    cpu.inbox.answer(Call::Nmi);
    if cpu.nmi_entry.get() == 0 {
        return;
    }
    let regs = *cpu.switcher.regs();
    let user = cpu.switcher.user_mode();
    let nmi = lguest_nmi {
        rip: regs.rip,
        cs: selector(user, regs.cs),
        rflags: flags::guest_view(regs.rflags, virtual_if(cpu)),
        rsp: regs.rsp,
        rax: regs.rax,
        rcx: regs.rcx,
        r11: regs.r11,
    };
    cpu.switcher.page.set_nmi(nmi);
    cpu.in_nmi = true;
    let rsp = cpu.switcher.page.nmi_rsp();
    arrive_with_page(cpu, cpu.nmi_entry.get(), rsp);
}

/// The selector by which the Guest knows its mode.
fn selector(user: bool, cs: u64) -> u64 {
    match (user, cs) {
        (false, _) => eret::CS_KERNEL,
        (true, eret::CS_USER32) => eret::CS_USER32,
        (true, _) => eret::CS_USER64,
    }
}

/// Takes the Guest to an entry point for events: kernel mode, virtual interrupts off, RAX at the shared page.
fn arrive_with_page(cpu: &mut Cpu, rip: u64, rsp: u64) {
    cpu.switcher.page.set_irq_enabled(0);
    cpu.switcher.set_user_mode(false);
    let shared = cpu.switcher.shared_gva();
    let regs = cpu.switcher.regs();
    regs.rax = shared;
    (regs.rip, regs.rsp) = (rip, rsp);
    regs.rflags = flags::AT_EVENT_ENTRY;
    regs.cs = eret::CS_USER64;
}

/// Delivers the next pending interrupt if the Guest takes one now; else sees to it that the
/// Guest, or the switcher on its behalf, calls as soon as it does.
fn deliver_interrupts(cpu: &mut Cpu) -> Result<Next, Stop> {
    let mut waiting = !cpu.inbox.is_empty();
    if waiting && !cpu.switcher.stepping() && virtual_if(cpu) {
        if let Some(vector) = cpu.inbox.take() {
            inject(cpu, Event::interrupt(vector))?;
            cpu.counts.interrupt(vector);
        }
        waiting = !cpu.inbox.is_empty();
    }
    cpu.switcher.set_irq_waiting(waiting);
    cpu.switcher.page.set_irq_pending(waiting.into());
    Ok(Next::Again)
}

/// Gives the Guest an exception which is not a page fault.
pub(crate) fn inject_exception(cpu: &mut Cpu, event: Event) -> Result<Next, Stop> {
    let next = inject(cpu, event)?;
    cpu.counts.exception(event);
    Ok(next)
}

/// Gives the Guest a page fault. Of user mode, those that are likely to come next are noted for the switcher, unless
/// somebody wants to see each.
pub(crate) fn inject_page_fault(cpu: &mut Cpu, gva: Gva, code: u32) -> Result<Next, Stop> {
    let user = cpu.switcher.user_mode();
    set_cr2(cpu, gva.get());
    let next = inject(cpu, Event::new(event::PF, code))?;
    if user {
        let note = if gva.is_upper() || cpu.watched || cpu.switcher.page.takes_spurious() == 0 {
            Note::default()
        } else {
            let root = cpu.root.gpa();
            let note = |look: &Look<'_>| Note::of(look, root, gva);
            cpu.inbox.looker.look(cpu.shared.ram(), note)
        };
        *cpu.switcher.note() = note;
    }
    cpu.switcher.note().cross_out(gva);
    Ok(next)
}

/// Gives the Guest an event: the interrupted state goes to the shared page, and the Guest to
/// its entry point. Its stack is its own business.
pub(crate) fn inject(cpu: &mut Cpu, event: Event) -> Result<Next, Stop> {
    let regs = *cpu.switcher.regs();
    let Some(entries) = cpu.entries else {
        return Err(Death::NoEntries(event, regs.rip).into());
    };
    let undelivered = cpu.switcher.page.event();
    if undelivered & u64::from(LGUEST_EVENT_VALID) != 0 {
        return Err(Death::DoubleFault(event, undelivered, regs.rip).into());
    }
    let user = cpu.switcher.user_mode();
    let rflags = flags::guest_view(regs.rflags, virtual_if(cpu));
    let page = &mut cpu.switcher.page;
    let kernel_rsp = page.kernel_rsp();
    page.set_event(u64::from(event.vector) | u64::from(LGUEST_EVENT_VALID));
    page.set_error_code(event.error_code.unwrap_or(0).into());
    page.set_rip(regs.rip);
    page.set_cs(selector(user, regs.cs));
    page.set_rflags(rflags);
    page.set_rsp(regs.rsp);
    page.set_ss(if user { eret::SS_USER } else { eret::SS_KERNEL });
    page.set_rax(regs.rax);
    let (rip, rsp) = if user {
        (entries.user.get(), kernel_rsp)
    } else {
        (entries.kernel.get(), regs.rsp & !0xf)
    };
    arrive_with_page(cpu, rip, rsp);
    Ok(Next::Resume)
}

/// What SYSCALL in user mode does where the switcher does not do it alone: kernel mode begins at the Guest's
/// entry point, with the stack of user mode.
pub(crate) fn system_call(cpu: &mut Cpu) {
    let entry = cpu.switcher.syscall_entry();
    arrive(cpu, entry);
    cpu.switcher.set_user_mode(false);
}

/// The same for a SYSCALL of the kernel that is for the monitor.
pub(crate) fn call_monitor(cpu: &mut Cpu) {
    let entry = cpu.switcher.monitor_entry();
    arrive(cpu, entry);
}

/// Takes the Guest from its SYSCALL to `entry`, which is canonical.
fn arrive(cpu: &mut Cpu, entry: u64) {
    let (rip, rflags) = (cpu.switcher.regs().rip, cpu.switcher.regs().rflags);
    let rflags = flags::guest_view(rflags, virtual_if(cpu));
    cpu.switcher.page.set_rip(rip);
    cpu.switcher.page.set_rflags(rflags);
    set_virtual_if(cpu, false);
    let regs = cpu.switcher.regs();
    regs.rip = entry;
    regs.rflags = flags::AT_EVENT_ENTRY;
    (regs.rcx, regs.r11) = (regs.rip, regs.rflags);
}
