// SPDX-License-Identifier: GPL-2.0
//! Virtual interrupts come only while `irq_enabled` says so, and then as soon as possible: at the window after turning
//! them on, at the ERET of a handler, and in user mode always.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use lguest_guest::event::{set_handler, vector, Frame};
use lguest_guest::{abi, entry, hypercall, irq, println, shared_read};
use lguest_guest_tests::{arm, code, poke, User, DATA, FIRED};

entry!(main);

/// Arms the timer and waits until it is pending, with interrupts off.
fn make_pending() {
    irq::disable();
    arm(0);
    while shared_read!(irq_pending) == 0 {
        core::hint::spin_loop();
    }
    assert!(
        !FIRED.load(Relaxed),
        "an interrupt came with interrupts off"
    );
}

fn main() -> u8 {
    window();
    in_the_handler();
    at_eret_to_the_kernel();
    at_eret_to_user_mode();
    in_user_mode_only();
    println!("interrupts come when they may");
    0
}

fn window() {
    for _ in 0..100 {
        make_pending();
        irq::enable();
        assert!(
            FIRED.load(Relaxed),
            "turning interrupts on delivers what is pending"
        );
        assert_eq!(
            shared_read!(irq_pending),
            0,
            "nothing is pending after that"
        );
    }
    // A hypercall for nothing does nothing.
    assert_eq!(hypercall::irq_window(), 0);
    irq::disable();
    assert_eq!(hypercall::irq_window(), 0);
    assert!(!irq::enabled(), "IRQ_WINDOW leaves the flag alone");
}

/// The handler starts with interrupts off, and the frame says that they were on.
fn in_the_handler() {
    static OFF: AtomicBool = AtomicBool::new(false);
    static FLAGS: AtomicU64 = AtomicU64::new(0);
    set_handler(
        u64::from(abi::LGUEST_VECTOR_TIMER),
        Some(|frame: &mut Frame| {
            OFF.store(!irq::enabled(), Relaxed);
            FLAGS.store(frame.rflags, Relaxed);
            FIRED.store(true, Relaxed);
        }),
    );
    FIRED.store(false, Relaxed);
    irq::enable();
    hypercall::set_timer(0);
    while !FIRED.load(Relaxed) {
        core::hint::spin_loop();
    }
    assert!(OFF.load(Relaxed), "interrupts are off in a handler");
    assert_ne!(
        FLAGS.load(Relaxed) & irq::FLAG_IF,
        0,
        "IF in the frame of an interrupt"
    );
    assert!(irq::enabled(), "and on again afterwards");
}

/// A handler of an exception that came with interrupts off returns to code with interrupts on.
fn at_eret_to_the_kernel() {
    make_pending();
    set_handler(
        vector::BREAKPOINT,
        Some(|frame: &mut Frame| {
            assert_eq!(
                frame.rflags & irq::FLAG_IF,
                0,
                "IF in the frame of an exception"
            );
            frame.rflags |= irq::FLAG_IF;
        }),
    );
    // SAFETY: the handler resumes after it.
    unsafe { core::arch::asm!("int3") };
    assert!(irq::enabled(), "ERET loads the virtual flag");
    assert!(FIRED.load(Relaxed), "and delivers what was pending");

    set_handler(
        vector::BREAKPOINT,
        Some(|frame: &mut Frame| frame.rflags &= !irq::FLAG_IF),
    );
    // SAFETY: as above.
    unsafe { core::arch::asm!("int3") };
    assert!(!irq::enabled(), "ERET clears the virtual flag too");
    set_handler(vector::BREAKPOINT, None);
}

/// User mode has interrupts on, whatever the frame says.
fn at_eret_to_user_mode() {
    let user = User::new();
    make_pending();
    let mut frame = user.load(code!("nop"));
    frame.rflags &= !irq::FLAG_IF;
    lguest_guest::user::run(&mut frame);
    assert_eq!(frame.vector, vector::INVALID_OPCODE);
    assert!(
        FIRED.load(Relaxed),
        "an interrupt that was pending comes on the way to user mode"
    );
    assert_ne!(
        frame.rflags & irq::FLAG_IF,
        0,
        "IF in a frame from user mode"
    );
    assert!(!irq::enabled(), "`user::run` brings back what was before");
}

/// User mode cannot turn them off.
fn in_user_mode_only() {
    let user = User::new();
    poke(DATA, 0);
    set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(|_| poke(DATA, 1)));
    // CLI faults, POPF ignores the flag; then a loop that only the timer ends.
    let code = code!("pushf", "andl $0xfffffdff, (%rsp)", "popf" => "cli");
    assert_eq!(user.run(code).vector, vector::GENERAL_PROTECTION);
    hypercall::set_timer(2_000_000);
    let frame = user.run(code!(
        "pushf",
        "andl $0xfffffdff, (%rsp)",
        "popf",
        "6: cmpl $0, 0x700000",
        "je 6b"
    ));
    assert_eq!(
        frame.vector,
        vector::INVALID_OPCODE,
        "the timer interrupts user mode"
    );
}
