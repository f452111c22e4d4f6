// SPDX-License-Identifier: GPL-2.0
//! EVENT_CHANNEL_OP. Commands for another kind of channels are ENOSYS, and Linux uses this kind.

use crate::domain::ports;
use crate::interrupt::with_ports;
use crate::memory::Result;
use crate::memory::{handover, read, write};
use crate::vcpu::{words_of, Vcpu};
use lguest_call::hypercall;
use xen_abi::event_channel::{
    op, AllocUnbound, BindIpi, BindPirq, BindVcpu, BindVirq, Port, Status, VIRQS,
};
use xen_abi::handover::PIRQS;
use xen_abi::number::error::{EINVAL, ENOENT, ENOSYS};
use xen_core::ports::Use;

/// Does `command` with the structure at `argument`.
pub(super) fn operation(cpu: &Vcpu, command: u64, argument: u64) -> Result {
    match command {
        op::ALLOC_UNBOUND => {
            // The Launcher has the other end of each.
            let mut wanted: AllocUnbound = read(argument)?;
            wanted.port = ports().bind(Use::Backend, 0)?;
            write(argument, wanted)?;
        }
        op::BIND_VIRQ => {
            let mut wanted: BindVirq = read(argument)?;
            if wanted.virq >= VIRQS {
                return Err(EINVAL);
            }
            wanted.port = ports().bind(Use::Virq(wanted.virq), vcpu(wanted.vcpu)?)?;
            write(argument, wanted)?;
        }
        op::BIND_IPI => {
            let mut wanted: BindIpi = read(argument)?;
            wanted.port = ports().bind(Use::Ipi, vcpu(wanted.vcpu)?)?;
            write(argument, wanted)?;
        }
        op::BIND_PIRQ => {
            let mut wanted: BindPirq = read(argument)?;
            if wanted.pirq as usize >= PIRQS {
                return Err(EINVAL);
            }
            wanted.port = ports().bind(Use::Pirq(wanted.pirq), 0)?;
            write(argument, wanted)?;
        }
        op::CLOSE => {
            let Port { port } = read(argument)?;
            let mut ports = ports();
            ports.close(port)?;
            words_of(cpu.id).clear(port);
        }
        op::SEND => {
            let Port { port } = read(argument)?;
            send(cpu, port)?;
        }
        op::STATUS => {
            let mut status: Status = read(argument)?;
            let port = ports().get(status.port)?;
            (status.status, status.what) = port.used.status();
            status.vcpu = port.vcpu;
            write(argument, status)?;
        }
        op::BIND_VCPU => {
            let wanted: BindVcpu = read(argument)?;
            ports().move_to(wanted.port, vcpu(wanted.vcpu)?)?;
        }
        op::UNMASK => {
            let Port { port } = read(argument)?;
            with_ports(cpu, |raiser| -> Result<()> {
                raiser.ports.get(port)?;
                raiser.unmask(port);
                Ok(())
            })?;
        }
        _ => return Err(ENOSYS),
    }
    Ok(0)
}

/// Calls the other end of a port.
fn send(cpu: &Vcpu, port: u32) -> Result<()> {
    let used = with_ports(cpu, |raiser| -> Result<Use> {
        let used = raiser.ports.get(port)?.used;
        if used == Use::Ipi {
            raiser.raise(port);
        }
        Ok(used)
    })?;
    match used {
        Use::Backend => {
            hypercall::notify(handover().notify, port.into());
            Ok(())
        }
        Use::Ipi => Ok(()),
        _ => Err(EINVAL),
    }
}

/// A vCPU's number as a kernel gave it.
fn vcpu(number: u32) -> Result<u32> {
    if number < handover().vcpus {
        Ok(number)
    } else {
        Err(ENOENT)
    }
}
