// SPDX-License-Identifier: GPL-2.0
//! SCHED_OP: waiting, and the end; and the timer.

use crate::cpu::wait;
use crate::domain::{begin_poll, end_poll, ANY_PORT};
use crate::interrupt::{arm, count};
use crate::memory::Result;
use crate::memory::{element, read};
use crate::vcpu::{words_of, Vcpu};
use core::sync::atomic::Ordering::SeqCst;
use lguest_call::abi::{
    LGUEST_SHUTDOWN_PANIC, LGUEST_SHUTDOWN_POWEROFF, LGUEST_SHUTDOWN_RESTART, LHCALL_HALT,
    LHCALL_IRQ_WINDOW,
};
use lguest_call::hypercall;
use xen_abi::handover::PORTS;
use xen_abi::number::error::{EINVAL, ENOSYS};
use xen_abi::vcpu::{sched, shutdown, SchedPoll};

/// Does `command`.
pub(super) fn operation(cpu: &mut Vcpu, command: u64, argument: u64) -> Result {
    match command {
        // Whom the kernel waits for may be the Launcher.
        sched::YIELD => pause(cpu, LHCALL_IRQ_WINDOW),
        sched::BLOCK => {
            cpu.mask(false);
            if cpu.info().upcall.load(SeqCst) == 0 {
                pause(cpu, LHCALL_HALT);
            }
        }
        sched::POLL => poll(cpu, &read(argument)?)?,
        sched::SHUTDOWN => match read::<u32>(argument)? {
            shutdown::POWEROFF => hypercall::shutdown(LGUEST_SHUTDOWN_POWEROFF, 0),
            shutdown::REBOOT => hypercall::shutdown(LGUEST_SHUTDOWN_RESTART, 0),
            // The message is on the console.
            shutdown::CRASH => hypercall::shutdown(LGUEST_SHUTDOWN_PANIC, 0),
            _ => return Err(EINVAL),
        },
        _ => return Err(ENOSYS),
    }
    Ok(0)
}

/// Leaves to the Host with interrupts on.
fn pause(cpu: &mut Vcpu, hypercall: u32) {
    let vector = wait(cpu, hypercall);
    if vector != 0 {
        count(cpu, vector as u8);
    }
}

/// Waits for one of some ports, or any interrupt: the kernel looks again.
fn poll(cpu: &mut Vcpu, poll: &SchedPoll) -> Result<()> {
    const MOST: u32 = 128;
    if poll.nr_ports > MOST {
        return Err(EINVAL);
    }
    let port = |i: u32| -> Result<u32> {
        let port = read(element::<u32>(poll.ports, i.into())?)?;
        if (port as usize) < PORTS {
            Ok(port)
        } else {
            Err(EINVAL)
        }
    };
    // Whoever raises one marks it, and then looks who polls.
    let polled = match poll.nr_ports {
        1 => port(0)?,
        _ => ANY_PORT,
    };
    begin_poll(cpu.id, polled);
    let result = sleep_unless_pending(cpu, poll, port);
    end_poll(cpu.id);
    result
}

fn sleep_unless_pending(
    cpu: &mut Vcpu,
    poll: &SchedPoll,
    port: impl Fn(u32) -> Result<u32>,
) -> Result<()> {
    for i in 0..poll.nr_ports {
        if words_of(cpu.id).is_pending(port(i)?) {
            return Ok(());
        }
    }
    let until = if poll.timeout == 0 {
        u64::MAX
    } else {
        poll.timeout
    };
    if until < cpu.deadline {
        arm(until);
    }
    pause(cpu, LHCALL_HALT);
    if until < cpu.deadline {
        arm(cpu.deadline);
    }
    Ok(())
}

/// SET_TIMER_OP, and the vCPU's one-shot timer: system time, or 0 for never.
pub(super) fn set_timer(cpu: &mut Vcpu, deadline: u64) -> i64 {
    cpu.deadline = if deadline == 0 { u64::MAX } else { deadline };
    arm(cpu.deadline);
    0
}
