// SPDX-License-Identifier: GPL-2.0
//! Hypercalls: the number is in RAX, arguments are in RDI, RSI, RDX, R10, R8 and R9, the result goes to RAX.
//!
//! What a domain that is nobody's master never calls, and what Linux can do without, is ENOSYS.

mod channel;
mod descriptor;
mod kernel;
mod mmu;
mod reservation;
mod sched;
mod vcpu_op;

pub(crate) use descriptor::take_segments;

use crate::memory::{element, read, write, Result};
use crate::trap;
use crate::vcpu::Vcpu;
use core::mem::offset_of;
use xen_abi::number::{self, error::*};
use xen_abi::vcpu::MulticallEntry;

/// Does the hypercall that is in the frame. Returns true when the kernel's handler of events comes before what is behind it.
pub(crate) fn hypercall(cpu: &mut Vcpu) -> bool {
    let frame = &cpu.frame;
    let (number, args) = (
        frame.rax as u32,
        [
            frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9,
        ],
    );
    let result = match number {
        number::MULTICALL => multicall(cpu, args[0], args[1]),
        _ => call(cpu, number, &args),
    };
    cpu.frame.rax = result.unwrap_or_else(|error| error) as u64;
    trap::deliver_pending(cpu)
}

fn call(cpu: &mut Vcpu, number: u32, args: &[u64; 6]) -> Result {
    let [a, b, c, d, ..] = *args;
    match number {
        number::MMU_UPDATE => mmu::update(a, b, c, d),
        number::UPDATE_VA_MAPPING => mmu::update_va_mapping(cpu, a, b, c),
        number::MMUEXT_OP => mmu::extended(cpu, a, b, c, d),
        number::STACK_SWITCH => Ok(kernel::stack_switch(cpu, b)),
        number::SET_TRAP_TABLE => kernel::set_trap_table(cpu, a),
        number::CALLBACK_OP => kernel::callback(cpu, a, b),
        number::SET_DEBUGREG => kernel::set_debug_register(cpu, a, b),
        number::GET_DEBUGREG => kernel::debug_register(cpu, a),
        number::XEN_VERSION => kernel::version(a, b),
        number::CONSOLE_IO => kernel::console(a, b, c),
        number::VM_ASSIST => kernel::assist(a, b),
        number::PHYSDEV_OP => kernel::physdev(cpu, a, b),
        // There is no lazy FPU to tell of.
        number::FPU_TASKSWITCH => Ok(0),
        number::SET_GDT => descriptor::set_gdt(cpu, a, b),
        number::UPDATE_DESCRIPTOR => descriptor::update(cpu, a, b),
        number::SET_SEGMENT_BASE => descriptor::set_segment_base(cpu, a, b),
        number::EVENT_CHANNEL_OP => channel::operation(cpu, a, b),
        number::SCHED_OP => sched::operation(cpu, a, b),
        number::SET_TIMER_OP => Ok(sched::set_timer(cpu, a)),
        number::VCPU_OP => vcpu_op::operation(cpu, a, b, c),
        number::MEMORY_OP => reservation::memory(a, b),
        number::GRANT_TABLE_OP => reservation::grants(a, b, c),
        _ => Err(ENOSYS),
    }
}

/// A list of hypercalls, each with its own result.
fn multicall(cpu: &mut Vcpu, list: u64, count: u64) -> Result {
    for i in 0..count {
        let at = element::<MulticallEntry>(list, i)?;
        let entry: MulticallEntry = read(at)?;
        let result = match entry.op as u32 {
            number::MULTICALL | number::IRET => Err(EINVAL),
            number => call(cpu, number, &entry.args),
        };
        let result = result.unwrap_or_else(|error| error);
        write(
            at + offset_of!(MulticallEntry, result) as u64,
            result as u64,
        )?;
    }
    Ok(0)
}
