// SPDX-License-Identifier: GPL-2.0
//! Events (exceptions, virtual interrupts, `int 0x80`) and system calls of user mode: the stubs, and a table of handlers.
//!
//! A handler may change the [`Frame`]: that is the state which LHCALL_ERET resumes. Without a handler, an event from user
//! mode ends [`user::run`](crate::user::run) and one from kernel mode is a panic.

pub use crate::frame::{Frame, KERNEL_CS, USER32_CS, USER_CS, USER_SS};
use crate::user;
use core::arch::global_asm;
use core::mem::{offset_of, transmute};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use lguest_call::abi::{lguest_shared, LGUEST_SHARED_VA, LHCALL_ERET};
use lguest_call::{hypercall, shared_write};

/// Vectors of the exceptions (SDM volume 3, table 7-1), and ours for a system call.
pub mod vector {
    #![allow(missing_docs)]
    pub const DIVIDE: u64 = 0;
    pub const DEBUG: u64 = 1;
    pub const BREAKPOINT: u64 = 3;
    pub const OVERFLOW: u64 = 4;
    pub const BOUND: u64 = 5;
    pub const INVALID_OPCODE: u64 = 6;
    pub const SEGMENT_NOT_PRESENT: u64 = 11;
    pub const STACK_SEGMENT: u64 = 12;
    pub const GENERAL_PROTECTION: u64 = 13;
    pub const PAGE_FAULT: u64 = 14;
    pub const X87: u64 = 16;
    pub const ALIGNMENT_CHECK: u64 = 17;
    pub const SIMD: u64 = 19;
    pub const INT80: u64 = 0x80;
    /// SYSCALL from user mode: no hardware vector, so a number above all of them.
    pub const SYSCALL: u64 = 0x100;
}

// The stubs. An event arrives with RAX at the shared page, a system call with RCX and R11 free to use. Both build the same
// Frame (22 words, so that RSP stays a multiple of 16) and leave through `lguest_resume`.
global_asm!(
    r#"
    .pushsection .text.lguest_events, "ax"
    .globl lguest_kernel_event, lguest_user_event, lguest_syscall, lguest_resume

lguest_kernel_event:
    lea -128(%rsp), %rsp            /* libcore keeps things below the stack pointer */
lguest_user_event:
    push {SS}(%rax)
    push {RSP}(%rax)
    push {RFLAGS}(%rax)
    push {CS}(%rax)
    push {RIP}(%rax)
    push {ERROR}(%rax)
    push {EVENT}(%rax)
    andl $0xff, (%rsp)              /* the vector without LGUEST_EVENT_VALID */
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push {RAX}(%rax)
    movq $0, {EVENT}(%rax)          /* from here on another event may come */
    jmp .Lrest

lguest_syscall:
    movabs ${shared}, %r11
    cmpl $0, LGUEST_SEVERAL(%rip)
    je 1f
    mov ${cpunode}, %ecx
    lsl %ecx, %ecx
    shl $12, %rcx
    add %rcx, %r11
1:
    mov %rsp, %rcx
    mov {KERNEL_RSP}(%r11), %rsp
    push ${user_ss}
    push %rcx
    push {RFLAGS}(%r11)
    push ${user_cs}
    push {RIP}(%r11)
    push $0
    push ${syscall_vector}
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %rax

.Lrest:
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    mov %rsp, %rbx
    sub $512, %rsp                  /* the handler is compiled code and may use SSE */
    fxsave64 (%rsp)
    call lguest_event
    fxrstor64 (%rsp)

lguest_resume:                      /* RBX: the Frame to resume */
    mov %rbx, %rsp
    movabs ${shared}, %rdi
    cmpl $0, LGUEST_SEVERAL(%rip)
    je 1f
    mov ${cpunode}, %ecx
    lsl %ecx, %ecx
    shl $12, %rcx
    add %rcx, %rdi
1:
    movq $0, {IRQ_ENABLED}(%rdi)    /* an interrupt from here on would overwrite what is written below */
    mov 8*17(%rsp), %rax
    mov %rax, {RIP}(%rdi)
    mov 8*18(%rsp), %rax
    mov %rax, {CS}(%rdi)
    mov 8*19(%rsp), %rax
    mov %rax, {RFLAGS}(%rdi)
    mov 8*20(%rsp), %rax
    mov %rax, {RSP}(%rdi)
    mov 8*10(%rsp), %rax
    mov %rax, {RAX}(%rdi)
    mov 8*11(%rsp), %rax
    mov %rax, {RCX}(%rdi)
    mov 8*6(%rsp), %rax
    mov %rax, {R11}(%rdi)
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    lea 16(%rsp), %rsp              /* RAX and RCX: in the shared page */
    pop %rdx
    pop %rsi
    pop %rdi
    mov ${eret}, %eax
    syscall
    ud2
    .popsection
    "#,
    SS = const offset_of!(lguest_shared, ss),
    RSP = const offset_of!(lguest_shared, rsp),
    RFLAGS = const offset_of!(lguest_shared, rflags),
    CS = const offset_of!(lguest_shared, cs),
    RIP = const offset_of!(lguest_shared, rip),
    ERROR = const offset_of!(lguest_shared, error_code),
    EVENT = const offset_of!(lguest_shared, event),
    RAX = const offset_of!(lguest_shared, rax),
    RCX = const offset_of!(lguest_shared, rcx),
    R11 = const offset_of!(lguest_shared, r11),
    KERNEL_RSP = const offset_of!(lguest_shared, kernel_rsp),
    IRQ_ENABLED = const offset_of!(lguest_shared, irq_enabled),
    shared = const LGUEST_SHARED_VA,
    cpunode = const 0x7b,
    eret = const LHCALL_ERET,
    user_cs = const USER_CS,
    user_ss = const USER_SS,
    syscall_vector = const vector::SYSCALL,
    options(att_syntax)
);

extern "C" {
    fn lguest_kernel_event();
    fn lguest_user_event();
    fn lguest_syscall();
}

/// The handler's answer to an event.
pub type Handler = fn(&mut Frame);

static HANDLERS: [AtomicUsize; 0x101] = [const { AtomicUsize::new(0) }; 0x101];

/// Registers the stubs of this module as the Guest's entry points.
pub fn init() {
    set_syscall_entry(lguest_syscall as usize as u64);
}

/// Sends system calls to `entry`, a GVA, and events to the stubs of this module. [`init`] puts it back.
pub fn set_syscall_entry(entry: u64) {
    let result = hypercall::set_entries(
        entry,
        lguest_user_event as usize as u64,
        lguest_kernel_event as usize as u64,
    );
    assert_eq!(result, 0, "SET_ENTRIES");
}

/// Says whether a page fault of user mode may be given for a page that is mapped by now, or an access that is allowed by
/// now: whoever handles it then just has the program try again. In return most page faults come without an exit.
pub fn take_spurious_faults(take: bool) {
    shared_write!(takes_spurious, u64::from(take));
}

/// From now on `handler` gets the events of `vector` (see [`vector`]); `None`: nobody does.
pub fn set_handler(vector: u64, handler: Option<Handler>) {
    HANDLERS[vector as usize].store(handler.map_or(0, |handler| handler as usize), Relaxed);
}

#[no_mangle]
extern "C" fn lguest_event(frame: &mut Frame) {
    match HANDLERS[frame.vector as usize].load(Relaxed) {
        0 if frame.from_user() => user::leave(frame),
        0 => panic!(
            "event without a handler: {frame:x?} cr2 {:#x}",
            lguest_call::shared_read!(cr2)
        ),
        handler => {
            // SAFETY: `set_handler` alone stores there, and stores a `Handler` or 0.
            let handler: Handler = unsafe { transmute(handler) };
            handler(frame);
        }
    }
}
