// SPDX-License-Identifier: GPL-2.0
//! Prints what the cheapest exit costs, in ticks of the time stamp counter: a hypercall that does nothing. scripts/bench
//! runs it where these are instructions, with a record and without one.

#![no_std]
#![no_main]

use lguest_guest::hypercall;
use lguest_guest::{entry, irq, println};

entry!(main);

/// Some are interrupted; the cheapest is not.
const TRIES: u32 = 2000;

fn main() -> u8 {
    let one = |_| {
        let start = irq::rdtsc();
        assert_eq!(hypercall::irq_window(), 0);
        irq::rdtsc() - start
    };
    println!("hypercall {}", (0..TRIES).map(one).min().unwrap_or(0));
    0
}
