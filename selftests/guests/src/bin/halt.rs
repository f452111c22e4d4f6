// SPDX-License-Identifier: GPL-2.0
//! HALT turns virtual interrupts on and sleeps until one comes; one that is already there is not lost.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use lguest_guest::event::{set_handler, Frame};
use lguest_guest::{abi, entry, hypercall, irq, println, shared_read};

entry!(main);

static FIRED: AtomicU32 = AtomicU32::new(0);

fn fire(_: &mut Frame) {
    FIRED.fetch_add(1, Relaxed);
}

fn main() -> u8 {
    const MS: u64 = 1_000_000;
    set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(fire));

    for n in 1..=200 {
        irq::disable();
        hypercall::set_timer(n * 10_000);
        irq::halt();
        assert_eq!(
            u64::from(FIRED.load(Relaxed)),
            n,
            "halt {n} came back without its interrupt"
        );
        assert!(irq::enabled(), "HALT turns virtual interrupts on");
    }

    // An interrupt that is pending ends the halt at once.
    FIRED.store(0, Relaxed);
    irq::disable();
    hypercall::set_timer(0);
    while shared_read!(irq_pending) == 0 {
        core::hint::spin_loop();
    }
    assert_eq!(
        FIRED.load(Relaxed),
        0,
        "nothing is delivered while interrupts are off"
    );
    irq::halt();
    assert_eq!(FIRED.load(Relaxed), 1, "HALT delivers what was pending");

    // HLT, which the Host emulates, with interrupts on as a kernel's idle loop has them. The timer fires again and again:
    // on a busy Host, the first time may be before the instruction.
    set_handler(
        u64::from(abi::LGUEST_VECTOR_TIMER),
        Some(|frame: &mut Frame| {
            fire(frame);
            hypercall::set_timer(20 * MS);
        }),
    );
    hypercall::set_timer(20 * MS);
    // SAFETY: the timer ends it.
    unsafe { core::arch::asm!("hlt", options(nomem, nostack)) };
    assert!(
        FIRED.load(Relaxed) >= 2,
        "HLT came back without its interrupt"
    );
    println!("201 halts ended by the timer");
    0
}
