// SPDX-License-Identifier: GPL-2.0
//! A monitor, for a Guest that is its own kernel: it makes the kernel's hypercalls for it, and returns from events on its
//! behalf by the frame on the kernel's stack. So the library works on top of it as it does without.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_guest::abi;
use lguest_guest::paging::{alloc_frame, gpa_of, pte, AddressSpace};

/// Where the monitor sees the first bytes of RAM, which have the image: a slot that may hold code.
pub const MONITOR: u64 = 0xffff_8700_4000_0000;

/// RAX of the call that has the monitor write a [`Note`].
pub const NOTE: u64 = 0x1000;
/// RAX of the call that has the monitor load from RDI.
pub const LOAD: u64 = 0x1001;

// The kernel's RSP is the monitor's stack, below the red zone.
global_asm!(
    r#"
    .pushsection .text.monitor, "ax"
    .globl monitor_entry
monitor_entry:
    mov %rcx, note+8*16(%rip)
    mov %r11, note+8*17(%rip)
    movabs ${shared}, %r11
    lock incq monitor_calls(%rip)
    test %rax, %rax
    jz 3f
    cmp ${NOTE}, %rax
    je 4f
    cmp ${LOAD}, %rax
    je 5f
    lea -128(%rsp), %rsp
    push {RIP}(%r11)                /* HALT lets interrupts in, which write there */
    push {RFLAGS}(%r11)
    syscall
    movabs ${shared}, %r11
    pop {RFLAGS}(%r11)
    pop {RIP}(%r11)
    lea 128(%rsp), %rsp
2:  mov %rax, {RAX}(%r11)
    mov %rsp, {RSP}(%r11)
    movq $0x10, {CS}(%r11)
    movq $0x1234, {RCX}(%r11)
    movq $0x5678, {R11}(%r11)
    xor %eax, %eax
    syscall
    ud2

3:  mov 8*2(%rsp), %rcx             /* ERET of lguest_resume: the Frame from its vector on */
    mov %rcx, {RIP}(%r11)
    mov 8*4(%rsp), %rcx
    mov %rcx, {RFLAGS}(%r11)
    syscall
    ud2

4:  mov %rax, note(%rip)
    mov %rbx, note+8*1(%rip)
    mov %rdx, note+8*2(%rip)
    mov %rsi, note+8*3(%rip)
    mov %rdi, note+8*4(%rip)
    mov %rbp, note+8*5(%rip)
    mov %rsp, note+8*6(%rip)
    mov %r8, note+8*7(%rip)
    mov %r9, note+8*8(%rip)
    mov %r10, note+8*9(%rip)
    mov %r12, note+8*10(%rip)
    mov %r13, note+8*11(%rip)
    mov %r14, note+8*12(%rip)
    mov %r15, note+8*13(%rip)
    rdgsbase %rcx
    mov %rcx, note+8*14(%rip)
    mov {IRQ_ENABLED}(%r11), %rcx
    mov %rcx, note+8*15(%rip)
    mov {RIP}(%r11), %rcx
    mov %rcx, note+8*18(%rip)
    mov {RFLAGS}(%r11), %rcx
    mov %rcx, note+8*19(%rip)
    pushfq
    pop note+8*20(%rip)
    lea monitor_entry(%rip), %rcx
    mov %rcx, note+8*21(%rip)
    jmp 2b

5:  mov (%rdi), %rax
    jmp 2b
    .popsection

    .pushsection .bss.monitor, "aw", @nobits
    .balign 8
    .globl note, monitor_calls
note:
    .skip 8*22
monitor_calls:
    .skip 8
    .popsection
    "#,
    shared = const abi::LGUEST_SHARED_VA,
    RSP = const offset_of!(abi::lguest_shared, rsp),
    RAX = const offset_of!(abi::lguest_shared, rax),
    RIP = const offset_of!(abi::lguest_shared, rip),
    CS = const offset_of!(abi::lguest_shared, cs),
    RFLAGS = const offset_of!(abi::lguest_shared, rflags),
    RCX = const offset_of!(abi::lguest_shared, rcx),
    R11 = const offset_of!(abi::lguest_shared, r11),
    IRQ_ENABLED = const offset_of!(abi::lguest_shared, irq_enabled),
    NOTE = const NOTE,
    LOAD = const LOAD,
    options(att_syntax)
);

/// What the monitor notes: the registers it arrives with, and what the shared page says then.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Note {
    pub rax: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub others: [u64; 7],
    pub gs_base: u64,
    pub irq_enabled: u64,
    pub rcx: u64,
    pub r11: u64,
    pub saved_rip: u64,
    pub saved_rflags: u64,
    pub rflags: u64,
    /// Where it executes.
    pub at: u64,
}

extern "C" {
    fn monitor_entry();
    static mut note: Note;
    static monitor_calls: AtomicU64;
}

/// What it noted last.
pub fn noted() -> Note {
    // SAFETY: the monitor writes it while its caller waits, and no reference to it exists.
    unsafe { note }
}

/// SYSCALLs that the monitor has got.
pub fn calls() -> u64 {
    // SAFETY: an aligned integer.
    unsafe { monitor_calls.load(Relaxed) }
}

/// GVA of its entry point.
pub fn entry() -> u64 {
    MONITOR + gpa_of(monitor_entry as *const u8)
}

/// Tables that have its code, in large pages, and nothing else.
pub fn tables() -> AddressSpace {
    const LARGE: u64 = 2 << 20;
    let root = AddressSpace(alloc_frame());
    for gpa in [0, LARGE] {
        root.map_large(MONITOR + gpa, gpa, pte::WRITE);
    }
    root
}
