// SPDX-License-Identifier: GPL-2.0
//! VCPU_OP.

use crate::call::sched;
use crate::cpu;
use crate::domain::clock;
use crate::memory::Result;
use crate::memory::{self, is_ram, read, write, write_at, PAGE};
use crate::vcpu::{Vcpu, VCPUS};
use core::mem::size_of;
use xen_abi::number::error::{EINVAL, ENOENT, ENOSYS};
use xen_abi::vcpu::{vcpu_op, RegisterVcpuInfo, SetSingleshotTimer, VcpuInfo};

/// Does `command` for vCPU `id`.
pub(super) fn operation(cpu: &mut Vcpu, command: u64, id: u64, argument: u64) -> Result {
    if id >= VCPUS as u64 {
        return Err(ENOENT);
    }
    match command {
        vcpu_op::IS_UP => return Ok(1),
        // So ends a kernel that meets with an exception before it has anything to tell of it by.
        vcpu_op::DOWN => panic!("the kernel has stopped its only CPU"),
        // It stays as the kernel made it: running, and never robbed of its time.
        vcpu_op::REGISTER_RUNSTATE_MEMORY_AREA | vcpu_op::STOP_PERIODIC_TIMER => {}
        vcpu_op::SET_SINGLESHOT_TIMER => {
            let timer: SetSingleshotTimer = read(argument)?;
            // 0 is long ago, too.
            sched::set_timer(cpu, timer.timeout_abs_ns.max(1));
        }
        vcpu_op::STOP_SINGLESHOT_TIMER => {
            sched::set_timer(cpu, 0);
        }
        vcpu_op::REGISTER_VCPU_INFO => register_info(cpu, &read(argument)?)?,
        vcpu_op::REGISTER_VCPU_TIME_MEMORY_AREA => {
            let area: u64 = read(argument)?;
            write(area, clock().info(cpu::tsc_is_stable()))?;
        }
        _ => return Err(ENOSYS),
    }
    Ok(0)
}

/// Moves what vCPU and kernel share to the kernel's own memory, once.
fn register_info(cpu: &mut Vcpu, to: &RegisterVcpuInfo) -> Result<()> {
    const SIZE: usize = size_of::<VcpuInfo>();
    let offset = u64::from(to.offset);
    if cpu.registered || !is_ram(to.mfn) || offset % 8 != 0 || offset + SIZE as u64 > PAGE {
        return Err(EINVAL);
    }
    let gpa = to.mfn * PAGE + offset;
    for at in (0..SIZE as u64).step_by(8) {
        write_at(gpa + at, memory::read_at(cpu.info + at));
    }
    cpu.set_info(gpa);
    cpu.registered = true;
    // What was pending there is pending here.
    cpu.words().select_all();
    Ok(())
}
