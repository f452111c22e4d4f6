// SPDX-License-Identifier: GPL-2.0
//! VCPU_OP: how vCPUs begin, come and go; and what each has of its own.

use crate::call::sched;
use crate::domain::{clock, initialised, ports, runstate};
use crate::interrupt::catch_up;
use crate::memory::Result;
use crate::memory::{self, handover, is_ram, read, write, write_at, PAGE};
use crate::vcpu::{entries, info_of, set_info, vcpu, words_of, Frame, Trap, Vcpu};
use crate::{cpu, trap};
use core::mem::size_of;
use core::ptr::from_ref;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use lguest_call::hypercall;
use xen_abi::number::error::{EEXIST, EINVAL, ENOENT, ENOSYS};
use xen_abi::vcpu::{
    vcpu_op, GuestContext, RegisterVcpuInfo, SetSingleshotTimer, VcpuInfo, FAILSAFE_MASKS_EVENTS,
    IN_KERNEL, TRAP_MASKS_EVENTS,
};
use xen_core::frame;
use xen_core::page_table::is_canonical;

/// Does `command` for vCPU `id`.
pub(super) fn operation(cpu: &mut Vcpu, command: u64, id: u64, argument: u64) -> Result {
    if id >= handover().vcpus.into() {
        return Err(ENOENT);
    }
    let id = id as u32;
    match command {
        vcpu_op::INITIALISE => initialise(id, &read(argument)?)?,
        vcpu_op::UP => turn_on(cpu, id)?,
        vcpu_op::IS_UP => return Ok(is_on(id).into()),
        vcpu_op::REGISTER_RUNSTATE_MEMORY_AREA => runstate(id).store(read(argument)?, Relaxed),
        vcpu_op::STOP_PERIODIC_TIMER => {}
        vcpu_op::REGISTER_VCPU_INFO => register_info(cpu, id, &read(argument)?)?,
        vcpu_op::REGISTER_VCPU_TIME_MEMORY_AREA => {
            let area: u64 = read(argument)?;
            write(area, clock().info(cpu::tsc_is_stable()))?;
        }
        // The rest a vCPU does for itself alone.
        _ if id != cpu.id => return Err(EINVAL),
        vcpu_op::DOWN => {
            cpu::off(cpu);
            catch_up(cpu);
        }
        vcpu_op::SET_SINGLESHOT_TIMER => {
            let timer: SetSingleshotTimer = read(argument)?;
            // 0 is long ago, too.
            sched::set_timer(cpu, timer.timeout_abs_ns.max(1));
        }
        vcpu_op::STOP_SINGLESHOT_TIMER => {
            sched::set_timer(cpu, 0);
        }
        _ => return Err(ENOSYS),
    }
    Ok(0)
}

fn is_on(id: u32) -> bool {
    hypercall::vcpu_state(id) == 1
}

/// Gives a vCPU that has never been on the state in which it begins, once. What no CPU would take is refused: nobody could
/// be told of it later.
fn initialise(id: u32, context: &GuestContext) -> Result<()> {
    let regs = &context.user_regs;
    let (root, gdt) = (context.control[3], context.gdt_frames[0]);
    let traps = || {
        (0..=u8::MAX)
            .zip(&context.traps)
            .filter(|(_, trap)| trap.address != 0)
    };
    let mut addresses = [
        regs.rip,
        context.event_callback,
        context.failsafe_callback,
        context.syscall_callback,
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
    ]
    .into_iter()
    .chain(traps().map(|(_, trap)| trap.address));
    if context.flags & IN_KERNEL == 0
        || !addresses.all(is_canonical)
        || root % PAGE != 0
        || !is_ram(root / PAGE)
        || !is_ram(gdt)
        || context.gdt_ents > PAGE / 8
    {
        return Err(EINVAL);
    }
    let mut initialised = initialised();
    if *initialised & (1 << id) != 0 {
        return Err(EEXIST);
    }
    // SAFETY: it has never been on, since nobody has initialised it, and who does that has the lock.
    let new = unsafe { vcpu(id) };
    new.id = id;
    new.frame = Frame {
        rax: regs.rax,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        rbx: regs.rbx,
        rbp: regs.rbp,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rip: regs.rip,
        rflags: frame::rflags(regs.rflags),
        rsp: regs.rsp,
        ..new.frame
    };
    for (vector, handler) in traps() {
        trap::set_handler(new, vector, handler);
    }
    let masks = |masks| if masks { TRAP_MASKS_EVENTS } else { 0 };
    new.event = Trap {
        address: context.event_callback,
        flags: masks(true),
    };
    new.failsafe = Trap {
        address: context.failsafe_callback,
        flags: masks(context.flags & FAILSAFE_MASKS_EVENTS != 0),
    };
    new.syscall = context.syscall_callback;
    new.kernel_sp = context.kernel_sp & !15;
    new.cr3 = root;
    new.gdt = if context.gdt_ents == 0 { 0 } else { gdt * PAGE };
    new.debug = context.debug;
    new.bases = [
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
    ];
    new.cpu_node = id;
    new.deadline = u64::MAX;
    *initialised |= 1 << id;
    Ok(())
}

/// Turns a vCPU on: where it begins, or goes on, is known to its own stub. It is on our root for its first instructions.
fn turn_on(cpu: &Vcpu, id: u32) -> Result<()> {
    const EBUSY: i64 = -16;
    if *initialised() & (1 << id) == 0 {
        return Err(EINVAL);
    }
    match hypercall::start_vcpu(id, entries(id).begin, 0, 0, cpu.cr3) {
        // It is on, as it is to be.
        0 | EBUSY => Ok(()),
        error => Err(error),
    }
}

/// Moves what a vCPU, which is this one or off, and its kernel share to the kernel's own memory, once.
fn register_info(cpu: &Vcpu, id: u32, to: &RegisterVcpuInfo) -> Result<()> {
    static REGISTERED: AtomicU64 = AtomicU64::new(0);
    const SIZE: usize = size_of::<VcpuInfo>();
    let offset = u64::from(to.offset);
    if !is_ram(to.mfn) || offset % 8 != 0 || offset + SIZE as u64 > PAGE {
        return Err(EINVAL);
    }
    if id != cpu.id && is_on(id) {
        return Err(EINVAL);
    }
    // Who raises a port has the lock, too.
    let _ports = ports();
    if REGISTERED.fetch_or(1 << id, SeqCst) & (1 << id) != 0 {
        return Err(EINVAL);
    }
    let gpa = to.mfn * PAGE + offset;
    let from = from_ref(info_of(id)) as u64;
    for at in (0..SIZE as u64).step_by(8) {
        write_at(gpa + at, memory::read_at(from + at));
    }
    set_info(id, gpa);
    // What was pending there is pending here.
    words_of(id).select_all();
    Ok(())
}
