// SPDX-License-Identifier: GPL-2.0
//! The ways in and out: assembly, and the few Rust functions that it calls.
//!
//! # Who may interrupt what
//!
//! Virtual interrupts are on while the kernel or a program runs, whatever the kernel's own event mask says, and off in the
//! shim. They are turned on in three places of it:
//!
//! * the *tail*, between `tail_begin` and `tail_end`: the state to resume is complete in [`Frame`](crate::vcpu::Frame), and
//!   callee-saved registers are the interrupted program's already. What an interrupt finds in the others is dropped; it is
//!   counted, and the way out begins again, with another look at what is pending.
//! * the stubs `shim_syscall` and `shim_event_user`, which enter the kernel with events masked. There an interrupt is counted
//!   and the stub goes on, as if it were part of the kernel.
//! * `shim_wait`, which returns the vector to its caller.
//!
//! A vCPU that is off has all of its state in the shim: its stack is as `shim_off` has left it.
//!
//! An exception in the shim is a bug, or the kernel's stack is not there; except between `shim_access_begin` and
//! `shim_access_end`, in functions that use the kernel's pointers: they return an error.

use crate::{boot, call, trap, vcpu};
use core::arch::global_asm;
use core::mem::{offset_of, size_of};
use lguest_call::abi::{lguest_shared, LHCALL_ERET, LHCALL_IRQ_WINDOW, LHCALL_STOP_VCPU};
use vcpu::{Frame, Vcpu, STACK_SIZE, VCPUS};
use xen_abi::number::{
    error::{EFAULT, ENOSYS},
    IRET,
};
use xen_abi::vcpu::{IretFrame, VcpuInfo};
use xen_core::frame::{IF, RFLAGS};

/// Bits 63:32 of the addresses of the shim.
const SHIM_HIGH: u64 = xen_abi::handover::SHIM >> 32;

// There are as many stubs.
const _: () = assert!(VCPUS == 32);

global_asm!(
    r#"
    .pushsection .text.shim_start, "ax"
    .globl _start
_start:
    lea shim_vcpus + {STACK} + {STACK_SIZE}(%rip), %rsp
    mov %rsi, %rdi
    xor %ebp, %ebp
    call shim_start
    jmp shim_resume_0
    .popsection

    .pushsection .bss.shim_vcpus, "aw", @nobits
    .balign 4096
    .globl shim_vcpus
shim_vcpus:
    .skip {VCPUS} * {SIZE}
    .popsection

    .pushsection .text.shim_entry, "ax"

    .macro save_scratch n           /* all that a function call may lose but RAX, RCX and R11 */
    mov %rdi, cpu_\n + {RDI}(%rip)
    mov %rsi, cpu_\n + {RSI}(%rip)
    mov %rdx, cpu_\n + {RDX}(%rip)
    mov %r8, cpu_\n + {R8}(%rip)
    mov %r9, cpu_\n + {R9}(%rip)
    mov %r10, cpu_\n + {R10}(%rip)
    .endm

    .macro load_scratch n
    mov cpu_\n + {RDI}(%rip), %rdi
    mov cpu_\n + {RSI}(%rip), %rsi
    mov cpu_\n + {RDX}(%rip), %rdx
    mov cpu_\n + {R8}(%rip), %r8
    mov cpu_\n + {R9}(%rip), %r9
    mov cpu_\n + {R10}(%rip), %r10
    .endm

    /* Events are masked, and the kernel's frame is on its stack: go to where `target` says. */
    .macro enter_kernel n, target
    movq ${IF}, shared_\n + {IRQ_ENABLED}(%rip)
    cmpq $0, shared_\n + {IRQ_PENDING}(%rip)
    jne 1f
    jmp *cpu_\n + \target(%rip)
1:  mov %rax, cpu_\n + {SAVED_RAX}(%rip)
    mov ${IRQ_WINDOW}, %eax
    syscall
    mov cpu_\n + {SAVED_RAX}(%rip), %rax
    jmp *cpu_\n + \target(%rip)
    .endm

    .macro stubs n
    .set cpu_\n, shim_vcpus + \n * {SIZE}
    .set shared_\n, lguest_shared_pages + \n * 4096
    .set info_\n, {INFOS} + \n * 8

    /* SYSCALL of a program: RSP is the program's, RCX and R11 are free. */
    .balign 16
shim_syscall_\n:
    cmp ${MODIFY_LDT}, %eax
    je 7f
    mov %rsp, cpu_\n + {SAVED_RSP}(%rip)
    mov cpu_\n + {KERNEL_SP}(%rip), %rsp
    push ${USER_SS}
    push cpu_\n + {SAVED_RSP}(%rip)
    mov shared_\n + {SH_RFLAGS}(%rip), %r11
    push %r11
    push ${USER_CS}
    mov shared_\n + {SH_RIP}(%rip), %rcx
    push %rcx
    push %r11
    push %rcx
    mov info_\n(%rip), %rcx
    movb $1, {MASK}(%rcx)
    enter_kernel \n, {SYSCALL}

    /* There are no LDTs, which the kernel does not know: it would say that all is well. */
7:  mov shared_\n + {SH_RIP}(%rip), %rcx
    mov %rcx, shared_\n + {SH_RCX}(%rip)
    mov shared_\n + {SH_RFLAGS}(%rip), %r11
    mov %r11, shared_\n + {SH_R11}(%rip)
    mov %rsp, shared_\n + {SH_RSP}(%rip)
    movq ${USER_CS}, shared_\n + {SH_CS}(%rip)
    movq ${ENOSYS}, shared_\n + {SH_RAX}(%rip)
    mov ${ERET}, %eax
    syscall
    ud2

    /* SYSCALL of the kernel: a hypercall. RSP is the kernel's, RCX and R11 are free. */
    .balign 16
shim_hypercall_\n:
    cmp ${IRET}, %eax
    je 5f
    save_scratch \n
    mov %rax, cpu_\n + {RAX}(%rip)
    mov shared_\n + {SH_RIP}(%rip), %rcx
    mov shared_\n + {SH_RFLAGS}(%rip), %r11
    mov %rcx, cpu_\n + {RIP}(%rip)
    mov %r11, cpu_\n + {RFLAGS}(%rip)
    mov %rsp, cpu_\n + {RSP}(%rip)
    movq $0, cpu_\n + {USER}(%rip)
    lea cpu_\n + {STACK} + {STACK_SIZE}(%rip), %rsp
    lea cpu_\n(%rip), %rdi
    call shim_hypercall
    test %eax, %eax
    jnz shim_resume_\n

tail_begin_\n:
    /* Back to behind the hypercall; it may lose RCX, R11 and the flags of the last comparison. */
    movq ${IF}, shared_\n + {IRQ_ENABLED}(%rip)
    cmpq $0, shared_\n + {IRQ_PENDING}(%rip)
    jne 3f
    load_scratch \n
    mov cpu_\n + {RAX}(%rip), %rax
    mov cpu_\n + {RSP}(%rip), %rsp
    jmp *cpu_\n + {RIP}(%rip)

    /* Back to the kernel with all registers. */
2:  movq ${IF}, shared_\n + {IRQ_ENABLED}(%rip)
    cmpq $0, shared_\n + {IRQ_PENDING}(%rip)
    jne 3f
    load_scratch \n
    mov cpu_\n + {RAX}(%rip), %rax
    mov cpu_\n + {RCX}(%rip), %rcx
    mov cpu_\n + {R11}(%rip), %r11
    lea cpu_\n + {RIP}(%rip), %rsp
    iretq
3:  mov ${IRQ_WINDOW}, %eax
    syscall
    movq $0, shared_\n + {IRQ_ENABLED}(%rip)
    nop
tail_end_\n:

    /* Resume the Frame. Callee-saved registers have what it has. */
shim_resume_\n:
    cmpq $0, cpu_\n + {USER}(%rip)
    jne 4f
    andl ${KEEP}, cpu_\n + {RFLAGS}(%rip)
    orl ${IF} | 2, cpu_\n + {RFLAGS}(%rip)
    movq ${USER_CS}, cpu_\n + {CS}(%rip)
    movq ${USER_SS}, cpu_\n + {SS}(%rip)
    jmp 2b
4:  mov cpu_\n + {RIP}(%rip), %rax
    mov %rax, shared_\n + {SH_RIP}(%rip)
    mov cpu_\n + {USER}(%rip), %rax
    mov %rax, shared_\n + {SH_CS}(%rip)
    mov cpu_\n + {RFLAGS}(%rip), %rax
    mov %rax, shared_\n + {SH_RFLAGS}(%rip)
    mov cpu_\n + {RSP}(%rip), %rax
    mov %rax, shared_\n + {SH_RSP}(%rip)
    mov cpu_\n + {RAX}(%rip), %rax
    mov %rax, shared_\n + {SH_RAX}(%rip)
    mov cpu_\n + {RCX}(%rip), %rax
    mov %rax, shared_\n + {SH_RCX}(%rip)
    mov cpu_\n + {R11}(%rip), %rax
    mov %rax, shared_\n + {SH_R11}(%rip)
    load_scratch \n
    mov ${ERET}, %eax
    syscall
    ud2

    /* Hypercall IRET: its frame is at RSP. Here is the way to a 64-bit program that has nothing to wait for. */
5:  cmpq ${USER_CS}, {I_CS}(%rsp)
    jne 6f
    cmpq ${USER_SS}, {I_SS}(%rsp)
    jne 6f
    mov {I_RFLAGS}(%rsp), %r11
    test ${IF}, %r11d
    jz 6f
    mov {I_RIP}(%rsp), %rax
    mov %rax, %rcx
    shr $47, %rcx
    jnz 6f
    mov info_\n(%rip), %rcx
    cmpb $0, {PENDING}(%rcx)
    jne 6f
    movb $0, {MASK}(%rcx)
    mov %rax, shared_\n + {SH_RIP}(%rip)
    mov %r11, shared_\n + {SH_RFLAGS}(%rip)
    movq ${USER_CS}, shared_\n + {SH_CS}(%rip)
    mov {I_RSP}(%rsp), %rax
    mov %rax, shared_\n + {SH_RSP}(%rip)
    mov {I_RAX}(%rsp), %rax
    mov %rax, shared_\n + {SH_RAX}(%rip)
    mov {I_RCX}(%rsp), %rax
    mov %rax, shared_\n + {SH_RCX}(%rip)
    mov {I_R11}(%rsp), %rax
    mov %rax, shared_\n + {SH_R11}(%rip)
    mov ${ERET}, %eax
    syscall
    ud2
6:  save_scratch \n
    mov %rsp, cpu_\n + {RSP}(%rip)
    mov shared_\n + {SH_RIP}(%rip), %rcx
    mov %rcx, cpu_\n + {RIP}(%rip)
    lea cpu_\n + {STACK} + {STACK_SIZE}(%rip), %rsp
    lea cpu_\n(%rip), %rdi
    call shim_iret
    jmp shim_resume_\n

    /* An event: RAX is free, RSP is the kernel's stack for events. */
    .balign 16
shim_event_user_\n:
    cmpb ${PAGE_FAULT}, shared_\n + {SH_EVENT}(%rip)
    jne event_\n
    cmpq $0, cpu_\n + {PF_HANDLER}(%rip)
    je event_\n
    push shared_\n + {SH_SS}(%rip)
    push shared_\n + {SH_RSP}(%rip)
    push shared_\n + {SH_RFLAGS}(%rip)
    push shared_\n + {SH_CS}(%rip)
    push shared_\n + {SH_RIP}(%rip)
    push shared_\n + {SH_ERROR}(%rip)
    push %r11
    push %rcx
    mov info_\n(%rip), %rcx
    mov shared_\n + {SH_CR2}(%rip), %rax
    mov %rax, {CR2}(%rcx)
    movb $1, {MASK}(%rcx)
    mov shared_\n + {SH_RAX}(%rip), %rax
    movq $0, shared_\n + {SH_EVENT}(%rip)
    enter_kernel \n, {PF_HANDLER}

    .balign 16
shim_event_kernel_\n:
    cmpl $-(0x100000000 - {SHIM_HIGH}), shared_\n + {SH_RIP} + 4(%rip)
    je in_shim_\n
event_\n:
    save_scratch \n
    mov %rcx, cpu_\n + {RCX}(%rip)
    mov %r11, cpu_\n + {R11}(%rip)
    mov %rbx, cpu_\n + {RBX}(%rip)
    mov %rbp, cpu_\n + {RBP}(%rip)
    mov %r12, cpu_\n + {R12}(%rip)
    mov %r13, cpu_\n + {R13}(%rip)
    mov %r14, cpu_\n + {R14}(%rip)
    mov %r15, cpu_\n + {R15}(%rip)
    mov shared_\n + {SH_RAX}(%rip), %rcx
    mov %rcx, cpu_\n + {RAX}(%rip)
    mov shared_\n + {SH_RIP}(%rip), %rcx
    mov %rcx, cpu_\n + {RIP}(%rip)
    mov shared_\n + {SH_RFLAGS}(%rip), %rcx
    mov %rcx, cpu_\n + {RFLAGS}(%rip)
    mov shared_\n + {SH_RSP}(%rip), %rcx
    mov %rcx, cpu_\n + {RSP}(%rip)
    xor %ecx, %ecx
    mov shared_\n + {SH_CS}(%rip), %rdx
    cmp ${KERNEL_CS}, %rdx
    cmove %rcx, %rdx
    mov %rdx, cpu_\n + {USER}(%rip)
    movzbl shared_\n + {SH_EVENT}(%rip), %esi
    mov shared_\n + {SH_ERROR}(%rip), %rdx
    movq $0, shared_\n + {SH_EVENT}(%rip)
    lea cpu_\n + {STACK} + {STACK_SIZE}(%rip), %rsp
    lea cpu_\n(%rip), %rdi
    call shim_event
resume_all_\n:
    mov cpu_\n + {RBX}(%rip), %rbx
    mov cpu_\n + {RBP}(%rip), %rbp
    mov cpu_\n + {R12}(%rip), %r12
    mov cpu_\n + {R13}(%rip), %r13
    mov cpu_\n + {R14}(%rip), %r14
    mov cpu_\n + {R15}(%rip), %r15
    jmp shim_resume_\n

    /* An event in the shim itself. RCX and RDX are saved, for one case goes on with all registers. */
in_shim_\n:
    mov %rcx, cpu_\n + {SAVED_RCX}(%rip)
    mov %rdx, cpu_\n + {SAVED_RDX}(%rip)
    mov shared_\n + {SH_RIP}(%rip), %rcx
    cmpb $32, shared_\n + {SH_EVENT}(%rip)
    jae 1f
    lea shim_access_begin(%rip), %rdx
    cmp %rdx, %rcx
    jb 9f
    lea shim_access_end(%rip), %rdx
    cmp %rdx, %rcx
    jae 9f
    mov shared_\n + {SH_RSP}(%rip), %rsp
    movq $0, shared_\n + {SH_EVENT}(%rip)
    mov ${EFAULT}, %rax
    ret
1:  lea tail_begin_\n(%rip), %rdx
    cmp %rdx, %rcx
    jb 2f
    lea tail_end_\n(%rip), %rdx
    cmp %rdx, %rcx
    jae 2f
    movzbl shared_\n + {SH_EVENT}(%rip), %esi
    movq $0, shared_\n + {SH_EVENT}(%rip)
    lea cpu_\n + {STACK} + {STACK_SIZE}(%rip), %rsp
    lea cpu_\n(%rip), %rdi
    call shim_interrupt
    jmp shim_resume_\n
2:  lea shim_wait(%rip), %rdx
    cmp %rdx, %rcx
    jb 3f
    lea shim_wait_end(%rip), %rdx
    cmp %rdx, %rcx
    jae 3f
    mov shared_\n + {SH_RSP}(%rip), %rsp
    movzbl shared_\n + {SH_EVENT}(%rip), %eax
    movq $0, shared_\n + {SH_EVENT}(%rip)
    ret
3:  mov cpu_\n + {SAVED_RCX}(%rip), %rcx
    mov cpu_\n + {SAVED_RDX}(%rip), %rdx
    jmp event_\n
9:  lea cpu_\n + {STACK} + {STACK_SIZE}(%rip), %rsp
    lea cpu_\n(%rip), %rdi
    call shim_crash
    ud2

    /* The vCPU is turned on: for the first time, or again. */
    .balign 16
shim_begin_\n:
    xor %eax, %eax
    xor %ebp, %ebp
    mov cpu_\n + {OFF_SP}(%rip), %rsp
    test %rsp, %rsp
    jnz shim_on
    lea cpu_\n + {STACK} + {STACK_SIZE}(%rip), %rsp
    lea cpu_\n(%rip), %rdi
    call shim_begin
    jmp resume_all_\n
    .endm

    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    stubs \n
    .endr

    /* u64 shim_copy(to, from, bytes): 0, or EFAULT. */
    .balign 16
    .globl shim_copy, shim_load_gs, shim_wait
shim_access_begin:
shim_copy:
    mov %rdx, %rcx
    shr $3, %rcx
    rep movsq
    mov %edx, %ecx
    and $7, %ecx
    rep movsb
    xor %eax, %eax
    ret
    /* u64 shim_load_gs(selector): 0, or EFAULT. AMD's CPUs keep the base with a null selector. */
shim_load_gs:
    mov ${USER_SS}, %eax
    mov %eax, %gs
    mov %edi, %gs
    xor %eax, %eax
    ret
shim_access_end:

    /* u64 shim_wait(hypercall, &irq_enabled): the vector of the interrupt that came, or 0. */
    .balign 16
shim_wait:
    movq ${IF}, (%rsi)
    mov %edi, %eax
    syscall
    movq $0, (%rsi)
    xor %eax, %eax
    ret
shim_wait_end:

    /* u64 shim_off(&mut sp): turns this vCPU off. 0 when it is on again; not 0: no other is on. */
    .balign 16
    .globl shim_off
shim_off:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov ${STOP_VCPU}, %eax
    syscall
shim_on:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .popsection

    .pushsection .rodata.shim_entries, "a"
    .balign 8
    .globl shim_entries
shim_entries:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .quad shim_syscall_\n, shim_event_user_\n, shim_event_kernel_\n, shim_hypercall_\n, shim_begin_\n
    .endr
    .popsection
    "#,
    VCPUS = const VCPUS,
    SIZE = const size_of::<Vcpu>(),
    STACK = const offset_of!(Vcpu, stack),
    STACK_SIZE = const STACK_SIZE,
    RAX = const offset_of!(Frame, rax),
    RCX = const offset_of!(Frame, rcx),
    RDX = const offset_of!(Frame, rdx),
    RSI = const offset_of!(Frame, rsi),
    RDI = const offset_of!(Frame, rdi),
    R8 = const offset_of!(Frame, r8),
    R9 = const offset_of!(Frame, r9),
    R10 = const offset_of!(Frame, r10),
    R11 = const offset_of!(Frame, r11),
    RBX = const offset_of!(Frame, rbx),
    RBP = const offset_of!(Frame, rbp),
    R12 = const offset_of!(Frame, r12),
    R13 = const offset_of!(Frame, r13),
    R14 = const offset_of!(Frame, r14),
    R15 = const offset_of!(Frame, r15),
    RIP = const offset_of!(Frame, rip),
    CS = const offset_of!(Frame, cs),
    RFLAGS = const offset_of!(Frame, rflags),
    RSP = const offset_of!(Frame, rsp),
    SS = const offset_of!(Frame, ss),
    USER = const offset_of!(Vcpu, user),
    INFOS = sym vcpu::INFOS,
    OFF_SP = const offset_of!(Vcpu, off_sp),
    KERNEL_SP = const offset_of!(Vcpu, kernel_sp),
    SYSCALL = const offset_of!(Vcpu, syscall),
    PF_HANDLER = const offset_of!(Vcpu, page_fault),
    SAVED_RAX = const offset_of!(Vcpu, saved),
    SAVED_RSP = const offset_of!(Vcpu, saved) + 8,
    SAVED_RCX = const offset_of!(Vcpu, saved) + 16,
    SAVED_RDX = const offset_of!(Vcpu, saved) + 24,
    PENDING = const offset_of!(VcpuInfo, evtchn_upcall_pending),
    MASK = const offset_of!(VcpuInfo, evtchn_upcall_mask),
    CR2 = const offset_of!(VcpuInfo, cr2),
    I_RAX = const offset_of!(IretFrame, rax),
    I_R11 = const offset_of!(IretFrame, r11),
    I_RCX = const offset_of!(IretFrame, rcx),
    I_RIP = const offset_of!(IretFrame, rip),
    I_CS = const offset_of!(IretFrame, cs),
    I_RFLAGS = const offset_of!(IretFrame, rflags),
    I_RSP = const offset_of!(IretFrame, rsp),
    I_SS = const offset_of!(IretFrame, ss),
    SH_SS = const offset_of!(lguest_shared, ss),
    SH_RSP = const offset_of!(lguest_shared, rsp),
    SH_RFLAGS = const offset_of!(lguest_shared, rflags),
    SH_CS = const offset_of!(lguest_shared, cs),
    SH_RIP = const offset_of!(lguest_shared, rip),
    SH_ERROR = const offset_of!(lguest_shared, error_code),
    SH_EVENT = const offset_of!(lguest_shared, event),
    SH_RAX = const offset_of!(lguest_shared, rax),
    SH_RCX = const offset_of!(lguest_shared, rcx),
    SH_R11 = const offset_of!(lguest_shared, r11),
    SH_CR2 = const offset_of!(lguest_shared, cr2),
    IRQ_ENABLED = const offset_of!(lguest_shared, irq_enabled),
    IRQ_PENDING = const offset_of!(lguest_shared, irq_pending),
    IRQ_WINDOW = const LHCALL_IRQ_WINDOW,
    ERET = const LHCALL_ERET,
    STOP_VCPU = const LHCALL_STOP_VCPU,
    IRET = const IRET,
    EFAULT = const EFAULT,
    ENOSYS = const ENOSYS,
    MODIFY_LDT = const trap::MODIFY_LDT,
    IF = const IF,
    KEEP = const RFLAGS,
    SHIM_HIGH = const SHIM_HIGH,
    PAGE_FAULT = const trap::PAGE_FAULT,
    USER_CS = const vcpu::USER_CS,
    USER_SS = const vcpu::USER_SS,
    KERNEL_CS = const vcpu::KERNEL_CS,
    options(att_syntax)
);

/// A hypercall. Returns 0 when the kernel goes on right behind it, with the result in RAX.
#[no_mangle]
extern "C" fn shim_hypercall(cpu: &mut Vcpu) -> u32 {
    u32::from(call::hypercall(cpu))
}

/// Hypercall IRET, where it is not simple.
#[no_mangle]
extern "C" fn shim_iret(cpu: &mut Vcpu) {
    trap::iret(cpu);
}

/// An event of the kernel or of a program.
#[no_mangle]
extern "C" fn shim_event(cpu: &mut Vcpu, vector: u32, error: u64) {
    trap::event(cpu, vector as u8, error);
}

/// An interrupt on the way out.
#[no_mangle]
extern "C" fn shim_interrupt(cpu: &mut Vcpu, vector: u32) {
    trap::interrupt(cpu, vector as u8);
}

/// An exception in the shim.
#[no_mangle]
extern "C" fn shim_crash(cpu: &mut Vcpu) -> ! {
    trap::crash(cpu)
}

/// Another vCPU's first Rust.
#[no_mangle]
extern "C" fn shim_begin(cpu: &mut Vcpu) {
    boot::begin(cpu);
}

/// The first Rust: returns with the kernel's first state in the frame.
#[no_mangle]
extern "C" fn shim_start(handover: u64) {
    boot::start(handover);
}
