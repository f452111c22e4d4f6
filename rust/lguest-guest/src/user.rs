// SPDX-License-Identifier: GPL-2.0
//! Guest user mode: go there with [`run`], and come back by the first event that has no handler.

use crate::frame::{Frame, USER_CS, USER_SS};
use core::arch::global_asm;
use core::mem::{offset_of, size_of};
use lguest_call::abi::{lguest_shared, LGUEST_SHARED_VA};
use lguest_call::irq;

// `lguest_enter_user(frame)` keeps what a C function must keep on the stack, has events from user mode push their Frame
// below that, and resumes `frame`. `lguest_leave_user(frame)` copies the event's Frame to the caller's and returns from
// the call of `lguest_enter_user`.
global_asm!(
    r#"
    .pushsection .text.lguest_user, "ax"
    .globl lguest_enter_user, lguest_leave_user
lguest_enter_user:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    push %rdi
    movabs ${shared}, %rax
    movq $0, {IRQ_ENABLED}(%rax)
    mov %rsp, {KERNEL_RSP}(%rax)
    mov %rsp, lguest_user_return(%rip)
    /* lguest_resume pops a Frame, and an event may come in between: it must lie above RSP. */
    sub ${frame_size}, %rsp
    mov %rdi, %rsi
    mov %rsp, %rdi
    mov ${frame_size} / 8, %ecx
    rep movsq
    mov %rsp, %rbx
    jmp lguest_resume

lguest_leave_user:
    mov %rdi, %rsi
    mov lguest_user_return(%rip), %rsp
    pop %rdi
    mov ${frame_size} / 8, %ecx
    rep movsq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .popsection

    .pushsection .bss.lguest_user_return, "aw", @nobits
    .balign 8
lguest_user_return:
    .skip 8
    .popsection
    "#,
    IRQ_ENABLED = const offset_of!(lguest_shared, irq_enabled),
    KERNEL_RSP = const offset_of!(lguest_shared, kernel_rsp),
    shared = const LGUEST_SHARED_VA,
    frame_size = const size_of::<Frame>(),
    options(att_syntax)
);

extern "C" {
    fn lguest_enter_user(frame: *mut Frame);
    fn lguest_leave_user(frame: *mut Frame) -> !;
}

/// The state in which 64-bit user mode starts at `rip` with the stack pointer `rsp` and every other register 0.
pub fn start(rip: u64, rsp: u64) -> Frame {
    let rflags = 2 | irq::FLAG_IF;
    Frame {
        rip,
        rsp,
        rflags,
        cs: USER_CS,
        ss: USER_SS,
        ..Frame::default()
    }
}

/// Resumes `frame` in user mode and returns at the next event without a handler, with the interrupted state in `frame`.
/// Call it again to go on.
pub fn run(frame: &mut Frame) {
    let irqs = irq::enabled();
    // SAFETY: user mode reaches none of our memory but what the page tables give it, and comes back through
    // `lguest_leave_user` with every register a function call keeps.
    unsafe { lguest_enter_user(frame) };
    if irqs {
        irq::enable();
    }
}

/// Returns from the [`run`] in progress.
pub(crate) fn leave(frame: &mut Frame) -> ! {
    // SAFETY: an event from user mode can only come while `lguest_enter_user` waits, and `frame` is on its stack.
    unsafe { lguest_leave_user(frame) }
}
