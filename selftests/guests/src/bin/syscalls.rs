// SPDX-License-Identifier: GPL-2.0
//! System calls of user mode, which go to the Guest kernel and back without the Host: registers, flags, stack and GS are
//! whose they should be, thousands of times, with interrupts in between.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_guest::event::{set_handler, vector, Frame};
use lguest_guest::{abi, entry, hypercall, irq, println, shared_read, shared_write, user};
use lguest_guest_tests::{code, User, CODE, STACK_TOP};

entry!(main);

const KERNEL_GS_BASE: u64 = 0xffff_8123_4567_8000;
const USER_GS_BASE: u64 = 0x7123_4567_8000;

// A kernel's entry for system calls that does nothing but return, as short as it can be: what a kernel's fast path does.
global_asm!(
    r#"
    .pushsection .text.fast_syscall, "ax"
    .globl fast_syscall
fast_syscall:
    movabs ${shared}, %r11
    mov %rsp, {RSP}(%r11)
    mov %r11, %rsp                  /* RSP is free until ERET, and shows that nobody pushes there */
    rdgsbase %rcx
    add %rcx, %rax
    mov %rax, {RAX}(%r11)
    movq $0x33, {CS}(%r11)
    movq $0x1234, {RCX}(%r11)
    movq $0x5678, {R11}(%r11)
    xor %eax, %eax
    syscall
    ud2
    .popsection
    "#,
    shared = const abi::LGUEST_SHARED_VA,
    RSP = const core::mem::offset_of!(abi::lguest_shared, rsp),
    RAX = const core::mem::offset_of!(abi::lguest_shared, rax),
    CS = const core::mem::offset_of!(abi::lguest_shared, cs),
    RCX = const core::mem::offset_of!(abi::lguest_shared, rcx),
    R11 = const core::mem::offset_of!(abi::lguest_shared, r11),
    options(att_syntax)
);

extern "C" {
    fn fast_syscall();
}

fn main() -> u8 {
    let user = User::new();
    // SAFETY: nothing of Rust's is reached through GS.
    unsafe { asm!("wrgsbase {}", in(reg) KERNEL_GS_BASE) };
    shared_write!(user_gs_base, USER_GS_BASE);
    state(&user);
    many(&user);
    fast(&user);
    println!("system calls go through");
    0
}

/// The state that the kernel finds at the entry point.
fn state(user: &User) {
    for flags in [0, 0x8d5, 1 << 10, 1 << 18, 1 << 21] {
        let mut frame = user.load(code!(
            "rdgsbase %rdx",
            "syscall",
            "rdgsbase %rbx",
            "syscall"
        ));
        frame.rflags = flags;
        frame.rax = 42;
        irq::enable();
        user::run(&mut frame);
        assert_eq!(
            (frame.vector, frame.rip, frame.rax),
            (vector::SYSCALL, CODE + 7, 42)
        );
        assert_eq!(
            (frame.rsp, frame.rdx),
            (STACK_TOP, USER_GS_BASE),
            "user mode's RSP and GS base"
        );
        assert_eq!(
            frame.rflags,
            flags | 2 | irq::FLAG_IF,
            "RFLAGS of user mode"
        );
        assert_eq!(gs_base(), KERNEL_GS_BASE, "the kernel's GS base");
        assert_eq!(shared_read!(user_gs_base), USER_GS_BASE);
        user::run(&mut frame);
        assert_eq!(
            (frame.vector, frame.rbx),
            (vector::SYSCALL, USER_GS_BASE),
            "GS base after the return"
        );
    }
    irq::disable();
}

fn gs_base() -> u64 {
    let base;
    // SAFETY: reads a register.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack)) };
    base
}

/// A program that counts by system calls while the timer interrupts both it and the kernel.
fn many(user: &User) {
    const CALLS: u64 = 20_000;
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static TICKS: AtomicU64 = AtomicU64::new(0);
    set_handler(
        vector::SYSCALL,
        Some(|frame: &mut Frame| {
            // A handler with interrupts on, as a kernel runs most of its system calls.
            irq::enable();
            frame.rax = COUNT.fetch_add(1, Relaxed) + 1;
        }),
    );
    set_handler(
        u64::from(abi::LGUEST_VECTOR_TIMER),
        Some(|_| {
            TICKS.fetch_add(1, Relaxed);
            hypercall::set_timer(300_000);
        }),
    );
    hypercall::set_timer(300_000);
    let mut frame = user.load(code!(
        "6: inc %rbx",
        "syscall",
        "cmp %rax, %rbx",
        "jne 7f",
        "cmp %rsi, %rbx",
        "jne 6b",
        "7:"
    ));
    frame.rsi = CALLS;
    user::run(&mut frame);
    assert_eq!(
        (frame.vector, frame.rbx, frame.rax),
        (vector::INVALID_OPCODE, CALLS, CALLS),
        "the count of both"
    );
    assert!(
        TICKS.load(Relaxed) > 3,
        "the timer ticked {} times",
        TICKS.load(Relaxed)
    );
    irq::disable();
    hypercall::set_timer(u64::MAX);
    set_handler(vector::SYSCALL, None);
}

/// The shortest way, by an entry of our own.
fn fast(user: &User) {
    const CALLS: u64 = 50_000;
    let own = fast_syscall as usize as u64;
    lguest_guest::event::set_syscall_entry(own);
    let mut frame = user.load(code!(
        "6: mov %rcx, %rax",
        "mov %rsp, %rdx",
        "syscall",
        "cmp %rsp, %rdx",
        "jne 7f",
        "cmp $0x1234, %rcx",
        "jne 7f",
        "cmp $0x5678, %r11",
        "jne 7f",
        "sub %rdi, %rax",
        "cmp %r8, %rax",
        "jne 7f",
        "mov $0x1234, %r8d",
        "dec %rsi",
        "jnz 6b",
        "7:"
    ));
    // RAX comes back with the kernel's GS base added.
    frame.rdi = KERNEL_GS_BASE;
    frame.rcx = 0x1234;
    frame.r8 = 0x1234;
    frame.rsi = CALLS;
    user::run(&mut frame);
    lguest_guest::event::init();
    assert_eq!(
        (frame.vector, frame.rsi),
        (vector::INVALID_OPCODE, 0),
        "after some of {CALLS} calls: {frame:x?}"
    );
}
