// SPDX-License-Identifier: GPL-2.0

//! Part 1 of the contract (`include/uapi/linux/lguest.h`), the Host's side: what a patched kernel and the
//! Host tell each other. Nobody but this folder and the switcher knows a field of the shared page, and
//! nobody but this folder the number of a hypercall.

pub(crate) mod event;
pub(crate) mod hypercall;

use crate::{
    abi::*,
    guest::{
        Cpu,
        Start, //
    },
    lg_core::{
        addr::Gva,
        eret,
        flags,
        monitor, //
    },
    sys::{
        cpu,
        host,
        task, //
    },
};

// lg_core has no header, so that cargo can build it alone.
const _: () = {
    assert!(eret::CS_KERNEL == LGUEST_CS_KERNEL as u64);
    assert!(eret::CS_USER64 == LGUEST_CS_USER64 as u64);
    assert!(eret::CS_USER32 == LGUEST_CS_USER32 as u64);
    assert!(eret::SS_KERNEL == LGUEST_SS_KERNEL as u64);
    assert!(eret::SS_USER == LGUEST_SS_USER as u64);
    assert!(monitor::FIRST == LGUEST_MONITOR_FIRST as usize);
    assert!(monitor::CODE == LGUEST_MONITOR_CODE as usize);
};

/// The length of the instruction SYSCALL.
const SYSCALL_LENGTH: u64 = 2;

/// Fills in the shared page of a new vCPU.
pub(crate) fn begin(cpu: &mut Cpu) {
    let (now, tsc) = wall_and_tsc();
    let mut features = cpu.switcher.features();
    if host::tsc_is_stable() {
        features |= u64::from(LGUEST_HOST_TSC_STABLE);
    }
    let page = &mut cpu.switcher.page;
    page.set_abi_version(LGUEST_ABI_VERSION);
    page.set_vcpu(cpu.id);
    page.set_tsc_khz(host::tsc_khz().into());
    page.set_wall_ns(now);
    page.set_wall_tsc(tsc);
    page.set_host_features(features);
}

/// Takes a vCPU that is on the root of `start` to where that says.
pub(crate) fn begin_at(cpu: &mut Cpu, start: &Start) {
    cpu.switcher.restart();
    cpu.xcr0.restart();
    cpu.walked = None;
    cpu.in_nmi = false;
    (cpu.entries, cpu.nmi_entry) = (start.entries, start.nmi_entry);
    cpu.switcher
        .set_syscall_entry(Gva::new(start.syscall_entry));
    let events = start.entries.map_or(Gva::new(0), |entries| entries.user);
    cpu.switcher.set_event_entry(events);
    cpu.monitor = start.monitor;
    cpu.switcher
        .set_monitor_entry(start.monitor.map_or(Gva::new(0), |monitor| monitor.entry()));
    let regs = cpu.switcher.regs();
    (regs.rip, regs.rsp, regs.rdi) = (start.rip, start.rsp, start.argument);
}

/// The vCPU has a CPU of the Host's.
pub(crate) fn got_cpu(cpu: &mut Cpu) {
    cpu.switcher.page.set_preempted(0);
    cpu.switcher.page.set_steal_ns(task::run_delay());
}

/// The Host may take it away.
pub(crate) fn may_lose_cpu(cpu: &mut Cpu) {
    cpu.switcher.page.set_preempted(1);
}

/// The wall clock, and the TSC at that time. This may be interrupted, for long; of some tries, the one that took
/// least time was not.
fn wall_and_tsc() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..5 {
        let before = cpu::rdtsc();
        let now = host::wall_ns();
        let took = cpu::rdtsc().wrapping_sub(before);
        best = best.min((took, now, before.wrapping_add(took / 2)));
    }
    let (_, now, tsc) = best;
    (now, tsc)
}

/// The virtual interrupt flag.
pub(crate) fn virtual_if(cpu: &mut Cpu) -> bool {
    cpu.switcher.user_mode() || cpu.switcher.page.irq_enabled() & flags::IF != 0
}

pub(crate) fn set_virtual_if(cpu: &mut Cpu, on: bool) {
    let word = if on { flags::IF } else { 0 };
    cpu.switcher.page.set_irq_enabled(word);
}

/// The Guest's CR2.
pub(crate) fn cr2(cpu: &Cpu) -> u64 {
    cpu.switcher.page.cr2()
}

pub(crate) fn set_cr2(cpu: &mut Cpu, value: u64) {
    cpu.switcher.page.set_cr2(value);
}

/// The GS base of user mode, while kernel mode runs.
pub(crate) fn user_gs_base(cpu: &Cpu) -> u64 {
    cpu.switcher.page.user_gs_base()
}

pub(crate) fn set_user_gs_base(cpu: &mut Cpu, value: u64) {
    cpu.switcher.page.set_user_gs_base(value);
}

/// Takes the Guest back to the SYSCALL that it left by.
pub(crate) fn back_to_syscall(cpu: &mut Cpu) {
    let regs = cpu.switcher.regs();
    regs.rip = regs.rip.wrapping_sub(SYSCALL_LENGTH);
}
