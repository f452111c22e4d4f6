// SPDX-License-Identifier: GPL-2.0
//! lg's interrupts, as ports: the timer's, and what the Launcher raises.

use crate::domain::{now, ports, Guard};
use crate::memory;
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::SeqCst;
use lguest_call::abi::{LGUEST_VECTOR_LINE0, LGUEST_VECTOR_TIMER};
use lguest_call::hypercall;
use xen_abi::event_channel::VIRQ_TIMER;
use xen_abi::handover::LINE;
use xen_core::clock::until;
use xen_core::ports::{Ports, Use};

const TIMER: u32 = LGUEST_VECTOR_TIMER;
const RAISED: u32 = LGUEST_VECTOR_LINE0 + LINE;

/// Raises the ports that the interrupt stands for.
pub(crate) fn count(cpu: &mut Vcpu, vector: u8) {
    match u32::from(vector) {
        TIMER => timer(cpu),
        RAISED => take_raised(cpu, &ports()),
        // Nobody pulls other lines.
        _ => {}
    }
}

fn timer(cpu: &mut Vcpu) {
    if now() < cpu.deadline {
        // It was a poll's, or lg's nanoseconds are a little shorter than ours.
        arm(cpu.deadline);
        return;
    }
    cpu.deadline = u64::MAX;
    if let Some(port) = ports().find(Use::Virq(VIRQ_TIMER), cpu.id) {
        cpu.raise(port);
    }
}

/// Has the timer interrupt at system time `deadline`; `u64::MAX`: never.
pub(crate) fn arm(deadline: u64) {
    hypercall::set_timer(match deadline {
        u64::MAX => u64::MAX,
        _ => until(now(), deadline),
    });
}

fn take_raised(cpu: &mut Vcpu, ports: &Guard<'_, Ports>) {
    let raised = memory::raised();
    for (i, word) in raised.ports.iter().enumerate() {
        for port in bits(word.swap(0, SeqCst), i) {
            cpu.raise(port);
        }
    }
    for (i, word) in raised.pirqs.iter().enumerate() {
        for pirq in bits(word.swap(0, SeqCst), i) {
            if let Some(port) = ports.find(Use::Pirq(pirq), cpu.id) {
                cpu.raise(port);
            }
        }
    }
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
