// SPDX-License-Identifier: GPL-2.0
//! lg's interrupts, as ports: the timer's, what the Launcher raises, and what one vCPU raises for another.

use crate::domain::{now, pollers_of, ports, runstate};
use crate::memory;
use crate::vcpu::{words_of, Vcpu};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use lguest_call::abi::{LGUEST_VECTOR_LINE0, LGUEST_VECTOR_TIMER};
use lguest_call::{hypercall, shared_read};
use xen_abi::event_channel::VIRQ_TIMER;
use xen_abi::handover::LINE;
use xen_abi::vcpu::RunstateInfo;
use xen_core::clock::until;
use xen_core::ports::{Hears, Port, Ports, Use, Words};

const TIMER: u32 = LGUEST_VECTOR_TIMER;
const RAISED: u32 = LGUEST_VECTOR_LINE0 + LINE;
/// Says that another vCPU has raised something. What, is in memory: the vector itself asks for nothing.
const CALLED: u32 = 0xfd;

/// The ports, for somebody who raises some.
pub(crate) struct Raiser<'a> {
    pub(crate) ports: &'a mut Ports,
    /// The vCPUs that have to look.
    called: u64,
}

impl Raiser<'_> {
    /// Raises a port.
    pub(crate) fn raise(&mut self, port: u32) {
        self.tell(port, |words| words.raise(port));
    }

    /// Unmasks a port, and raises it if it was pending.
    pub(crate) fn unmask(&mut self, port: u32) {
        self.tell(port, |words| words.unmask(port));
    }

    fn tell(&mut self, port: u32, raise: impl FnOnce(&Words<'_>) -> Hears) {
        // One that there cannot be is the Launcher's mistake.
        let Ok(Port { vcpu, .. }) = self.ports.get(port) else {
            return;
        };
        let hears = raise(&words_of(vcpu));
        if hears.vcpu {
            self.called |= 1 << vcpu;
        }
        if hears.pollers {
            self.called |= pollers_of(port);
        }
    }
}

/// Does `work` with the ports, and then calls the vCPUs for which it has raised some: not while it has the lock, for the Host
/// may take the CPU from who makes a hypercall. This vCPU itself looks on its way out.
pub(crate) fn with_ports<R>(cpu: &Vcpu, work: impl FnOnce(&mut Raiser<'_>) -> R) -> R {
    let mut ports = ports();
    let mut raiser = Raiser {
        ports: &mut ports,
        called: 0,
    };
    let result = work(&mut raiser);
    let others = raiser.called & !(1 << cpu.id);
    drop(ports);
    if others != 0 {
        hypercall::send_ipi(others, CALLED);
    }
    result
}

/// Raises the ports that the interrupt stands for.
pub(crate) fn count(cpu: &mut Vcpu, vector: u8) {
    match u32::from(vector) {
        TIMER => timer(cpu),
        RAISED => take_raised(cpu),
        // Nobody pulls other lines.
        _ => {}
    }
}

/// Does what interrupts have asked for that came while the vCPU was off, and are lost.
pub(crate) fn catch_up(cpu: &mut Vcpu) {
    take_raised(cpu);
    arm(cpu.deadline);
}

fn timer(cpu: &mut Vcpu) {
    tell_time(cpu.id);
    if now() < cpu.deadline {
        // It was a poll's, or lg's nanoseconds are a little shorter than ours.
        arm(cpu.deadline);
        return;
    }
    cpu.deadline = u64::MAX;
    with_ports(cpu, |raiser| {
        if let Some(port) = raiser.ports.find(Use::Virq(VIRQ_TIMER), cpu.id) {
            raiser.raise(port);
        }
    });
}

/// Tells the kernel for how long the vCPU had no CPU, where it wants to know. It looks when its timer fires, and would have
/// registered another place if this one were not there.
pub(crate) fn tell_time(id: u32) {
    let place = runstate(id).load(Relaxed);
    if place != 0 {
        let (now, stolen) = (now(), shared_read!(of id, steal_ns));
        let info = RunstateInfo {
            state_entry_time: now,
            time: [now.saturating_sub(stolen), stolen, 0, 0],
            ..RunstateInfo::default()
        };
        let _ = memory::write(place, info);
    }
}

/// Has the timer interrupt at system time `deadline`; `u64::MAX`: never.
pub(crate) fn arm(deadline: u64) {
    hypercall::set_timer(match deadline {
        u64::MAX => u64::MAX,
        _ => until(now(), deadline),
    });
}

/// Raises what the Launcher has, on whichever vCPU.
fn take_raised(cpu: &Vcpu) {
    let raised = memory::raised();
    with_ports(cpu, |raiser| {
        for (i, word) in raised.ports.iter().enumerate() {
            for port in bits(word.swap(0, SeqCst), i) {
                raiser.raise(port);
            }
        }
        for (i, word) in raised.pirqs.iter().enumerate() {
            for pirq in bits(word.swap(0, SeqCst), i) {
                if let Some(port) = raiser.ports.find(Use::Pirq(pirq), cpu.id) {
                    raiser.raise(port);
                }
            }
        }
    });
}

/// The numbers of the bits that are set in word `i` of an array.
fn bits(mut word: u64, i: usize) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        (word != 0).then(|| {
            word &= word - 1;
            i as u32 * 64 + bit
        })
    })
}
