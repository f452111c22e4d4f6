// SPDX-License-Identifier: GPL-2.0
//! For Guests of several vCPUs.

use core::hint::spin_loop;
use lguest_guest::event::set_handler;
use lguest_guest::{abi, hypercall, irq};

/// Waits until `done` says so. As there may be fewer CPUs than vCPUs, it leaves the CPU to others when that takes long:
/// it halts for a moment at a time, by its timer, whose handler it takes.
pub fn wait_until(done: impl Fn() -> bool) {
    const SPINS: u32 = 1000;
    const NAP_NS: u64 = 50_000;
    let enabled = irq::enabled();
    for spins in 1.. {
        if done() {
            return;
        }
        spin_loop();
        if spins % SPINS == 0 {
            set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(|_| {}));
            irq::disable();
            hypercall::set_timer(NAP_NS);
            irq::halt();
            if !enabled {
                irq::disable();
            }
        }
    }
}
