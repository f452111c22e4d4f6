// SPDX-License-Identifier: GPL-2.0
//! Interrupts: arms the timer, sleeps until it fires, and tells how late it was.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use lguest_guest::abi::LGUEST_VECTOR_TIMER;
use lguest_guest::event::{set_handler, Frame};
use lguest_guest::{entry, hypercall, irq, println};

entry!(main);

const PERIOD_NS: u64 = 100_000_000;

static TICKS: AtomicU32 = AtomicU32::new(0);

fn tick(_: &mut Frame) {
    TICKS.fetch_add(1, Relaxed);
}

fn main() -> u8 {
    set_handler(u64::from(LGUEST_VECTOR_TIMER), Some(tick));
    for n in 1..=5 {
        let start = irq::rdtsc();
        hypercall::set_timer(PERIOD_NS);
        // With interrupts off, a timer that fires between the look at TICKS and the halt still ends the halt.
        irq::disable();
        while TICKS.load(Relaxed) < n {
            irq::halt();
            irq::disable();
        }
        let ns = irq::ticks_to_ns(irq::rdtsc() - start);
        println!(
            "tick {n} after {}.{:03} ms",
            ns / 1_000_000,
            ns / 1000 % 1000
        );
    }
    0
}
