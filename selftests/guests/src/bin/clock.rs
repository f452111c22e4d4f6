// SPDX-License-Identifier: GPL-2.0
//! The clock: the TSC runs at the speed that the shared page says, and the wall clock is set.

#![no_std]
#![no_main]

use core::sync::atomic::Ordering::Relaxed;
use lguest_guest::{entry, irq, println, shared_read};
use lguest_guest_tests::{arm, FIRED};

entry!(main);

fn main() -> u8 {
    const MS: u64 = 1_000_000;
    // The Host's timer and the TSC measure the same time. The lower bound is exact, the upper one is for a busy Host,
    // which can be late: then once more.
    for ns in [20 * MS, 200 * MS] {
        let in_time = (0..5).any(|_| {
            irq::disable();
            let start = irq::rdtsc();
            arm(ns);
            while !FIRED.load(Relaxed) {
                irq::halt();
                irq::disable();
            }
            let took = irq::ticks_to_ns(irq::rdtsc() - start);
            assert!(
                took * 100 >= ns * 99,
                "a timer of {ns} ns fired after {took} ns of the TSC"
            );
            if took >= ns * 4 + 500 * MS {
                println!("a timer of {ns} ns fired after {took} ns of the TSC");
            }
            took < ns * 4 + 500 * MS
        });
        assert!(in_time, "a timer of {ns} ns is never in time");
    }
    let mut last = 0;
    for _ in 0..100_000 {
        let now = irq::rdtsc();
        assert!(now >= last, "the TSC went back");
        last = now;
    }
    let (wall, then) = (shared_read!(wall_ns), shared_read!(wall_tsc));
    assert!(
        then <= irq::rdtsc(),
        "the wall clock was read in the future"
    );
    let seconds = (wall + irq::ticks_to_ns(irq::rdtsc() - then)) / 1_000_000_000;
    // The test machines' clocks are set, to this century at least.
    assert!(
        (946_684_800..4_102_444_800).contains(&seconds),
        "the time is {seconds} s after 1970"
    );
    println!("{} kHz, {seconds} s since 1970", shared_read!(tsc_khz));
    0
}
