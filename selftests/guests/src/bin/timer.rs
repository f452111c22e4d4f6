// SPDX-License-Identifier: GPL-2.0
//! The timer fires once, not early, wherever the Guest is; arming it again replaces it, ~0 disarms it.

#![no_std]
#![no_main]

use core::sync::atomic::Ordering::Relaxed;
use lguest_guest::event::vector;
use lguest_guest::{entry, hypercall, irq, println};
use lguest_guest_tests::{arm, code, poke, User, DATA, FIRED};

entry!(main);

const MS: u64 = 1_000_000;

fn fired() -> bool {
    FIRED.load(Relaxed)
}

fn wait_until_fired() {
    while !fired() {
        core::hint::spin_loop();
    }
}

/// Nanoseconds of `work`.
fn time(work: impl FnOnce()) -> u64 {
    let start = irq::rdtsc();
    work();
    irq::ticks_to_ns(irq::rdtsc() - start)
}

/// Spins for `ns` nanoseconds.
fn spin(ns: u64) {
    let start = irq::rdtsc();
    while irq::ticks_to_ns(irq::rdtsc() - start) < ns {
        core::hint::spin_loop();
    }
}

fn main() -> u8 {
    irq::enable();
    for ns in [0, 1, 1000, 50_000, MS, 20 * MS] {
        let took = time(|| {
            arm(ns);
            wait_until_fired();
        });
        assert!(took >= ns, "the timer for {ns} ns fired after {took} ns");
        assert!(
            took < ns + 2000 * MS,
            "the timer for {ns} ns fired as late as {took} ns"
        );
    }

    arm(MS);
    wait_until_fired();
    FIRED.store(false, Relaxed);
    spin(10 * MS);
    assert!(!fired(), "it fires once");

    arm(MS);
    assert_eq!(hypercall::set_timer(u64::MAX), 0);
    // A timer may have fired before it was disarmed, but not afterwards.
    FIRED.store(false, Relaxed);
    spin(10 * MS);
    assert!(!fired(), "~0 disarms it");

    arm(5 * MS);
    // Later than a busy Host can make 50 ms.
    arm(20_000 * MS);
    spin(50 * MS);
    assert!(!fired(), "arming it again replaces it");
    arm(u64::MAX - 1);
    spin(5 * MS);
    assert!(!fired(), "a timer 584 years ahead");
    hypercall::set_timer(u64::MAX);

    // In user mode: the first two instructions spin until the handler of `arm` has run, seen from the kernel's side.
    let user = User::new();
    poke(DATA, 0);
    lguest_guest::event::set_handler(
        u64::from(lguest_guest::abi::LGUEST_VECTOR_TIMER),
        Some(|_| poke(DATA, 1)),
    );
    hypercall::set_timer(5 * MS);
    let frame = user.run(code!("6: cmpl $0, 0x700000", "je 6b"));
    assert_eq!(
        frame.vector,
        vector::INVALID_OPCODE,
        "user mode went on after the timer"
    );
    println!("the timer keeps its promises");
    0
}
