// SPDX-License-Identifier: GPL-2.0
//! Every general register and every flag comes through every kind of exit, in Guest kernel mode and in user mode.

#![no_std]
#![no_main]

use core::arch::global_asm;
use core::mem::offset_of;
use lguest_guest::event::{set_handler, vector, Frame};
use lguest_guest::paging::{alloc_frame, pte};
use lguest_guest::{abi, entry, hypercall, irq, println, user};
use lguest_guest_tests::{code, poke, Code, User, DATA};

entry!(main);

/// A Frame's first 15 words.
const GPRS: usize = offset_of!(Frame, vector) / 8;
const NAMES: [&str; GPRS] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi",
];
/// CF, PF, AF, ZF, SF, OF, DF and ID.
const FLAGS: u64 = 0x8d5 | (1 << 10) | (1 << 21);

// `around(registers, code)`: loads the 15 registers and RFLAGS from `registers`, calls `code`, stores them there again.
global_asm!(
    r#"
    .pushsection .text.around, "ax"
around:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    push %rdi
    mov %rsi, around_code(%rip)
    push 15*8(%rdi)
    mov 0*8(%rdi), %r15
    mov 1*8(%rdi), %r14
    mov 2*8(%rdi), %r13
    mov 3*8(%rdi), %r12
    mov 4*8(%rdi), %rbp
    mov 5*8(%rdi), %rbx
    mov 6*8(%rdi), %r11
    mov 7*8(%rdi), %r10
    mov 8*8(%rdi), %r9
    mov 9*8(%rdi), %r8
    mov 10*8(%rdi), %rax
    mov 11*8(%rdi), %rcx
    mov 12*8(%rdi), %rdx
    mov 13*8(%rdi), %rsi
    mov 14*8(%rdi), %rdi
    popf
    call *around_code(%rip)
    pushf
    push %rdi
    mov 16(%rsp), %rdi
    mov %r15, 0*8(%rdi)
    mov %r14, 1*8(%rdi)
    mov %r13, 2*8(%rdi)
    mov %r12, 3*8(%rdi)
    mov %rbp, 4*8(%rdi)
    mov %rbx, 5*8(%rdi)
    mov %r11, 6*8(%rdi)
    mov %r10, 7*8(%rdi)
    mov %r9, 8*8(%rdi)
    mov %r8, 9*8(%rdi)
    mov %rax, 10*8(%rdi)
    mov %rcx, 11*8(%rdi)
    mov %rdx, 12*8(%rdi)
    mov %rsi, 13*8(%rdi)
    pop 14*8(%rdi)
    pop 15*8(%rdi)
    pop %rdi
    cld
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .popsection

    .pushsection .bss.around_code, "aw", @nobits
    .balign 8
around_code:
    .skip 8
    .popsection
    "#,
    options(att_syntax)
);

extern "C" {
    fn around(registers: *mut [u64; GPRS + 1], code: *const u8);
}

/// A way out of the Guest.
struct Exit {
    name: &'static str,
    code: Code,
    prepare: fn(&User),
    /// The registers that are not kept, by name.
    lost: &'static [&'static str],
    /// True if the code itself leaves the flags alone.
    flags: bool,
    kernel: bool,
    user: bool,
}

fn nothing(_: &User) {}

fn flush(_: &User) {
    hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
}

fn spin(_: &User) {
    poke(DATA, 2_000_000);
}

/// The timer, again and again: a single shot might come before the code that waits for it.
fn tick(_: &User) {
    const PERIOD_NS: u64 = 1_000_000;
    fn ticked(_: &mut Frame) {
        poke(DATA, 1);
        hypercall::set_timer(PERIOD_NS);
    }
    poke(DATA, 0);
    set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(ticked));
    hypercall::set_timer(PERIOD_NS);
    irq::enable();
}

fn end_of_ticks() {
    irq::disable();
    hypercall::set_timer(u64::MAX);
}

/// The page at 0x900000, which a handler maps again.
fn unmap(user: &User) {
    user.space.unmap(0x90_0000);
    flush(user);
    set_handler(vector::PAGE_FAULT, Some(repair));
}

fn repair(_: &mut Frame) {
    set_handler(vector::PAGE_FAULT, None);
    let space = lguest_guest::paging::AddressSpace::current();
    space.map(0x90_0000, alloc_frame(), pte::WRITE | pte::USER);
}

fn resume(_: &mut Frame) {}

fn skip(frame: &mut Frame) {
    frame.rip += 2;
}

#[rustfmt::skip]
fn main() -> u8 {
    const SYSCALL: &[&str] = &["rcx", "r11"];
    const ALL: bool = true;
    let exits = [
        Exit { name: "no exit", code: code!("nop"), prepare: nothing, lost: &[], flags: ALL, kernel: true, user: true },
        Exit { name: "a page fault that the Host fills", code: code!("movabs %al, 0x700008"), prepare: flush,
               lost: &[], flags: ALL, kernel: true, user: true },
        Exit { name: "interrupts of the Host", code: code!("6: decl 0x700000", "jnz 6b"), prepare: spin,
               lost: &[], flags: false, kernel: true, user: true },
        Exit { name: "a page fault that the guest repairs", code: code!("movabs %al, 0x900008"), prepare: unmap,
               lost: &[], flags: ALL, kernel: true, user: true },
        Exit { name: "a breakpoint", code: code!("int3"), prepare: nothing, lost: &[], flags: ALL, kernel: true, user: true },
        Exit { name: "int 0x80", code: code!("int $0x80"), prepare: nothing, lost: &[], flags: ALL, kernel: true, user: true },
        Exit { name: "a protection fault", code: code!("int $0x21"), prepare: nothing, lost: &[], flags: ALL,
               kernel: true, user: true },
        Exit { name: "the timer", code: code!("6: cmpl $0, 0x700000", "je 6b"), prepare: tick,
               lost: &[], flags: false, kernel: true, user: true },
        Exit { name: "a system call", code: code!("syscall"), prepare: nothing, lost: SYSCALL, flags: ALL,
               kernel: false, user: true },
        Exit { name: "a hypercall", code: code!("mov $3, %eax", "mov $0, %edi", "syscall"), prepare: nothing,
               lost: &["rcx", "r11", "rax", "rdi"], flags: ALL, kernel: true, user: false },
        Exit { name: "CLTS, which the Host emulates", code: code!("clts"), prepare: nothing, lost: &[], flags: ALL,
               kernel: true, user: false },
        Exit { name: "HLT, which the Host emulates", code: code!("hlt"), prepare: tick, lost: &[], flags: ALL,
               kernel: true, user: false },
    ];
    set_handler(vector::BREAKPOINT, Some(resume));
    set_handler(vector::INT80, Some(resume));
    set_handler(vector::SYSCALL, Some(resume));
    set_handler(vector::GENERAL_PROTECTION, Some(skip));

    let user = User::new();
    for exit in &exits {
        for pattern in [0x0123_4567_89ab_cd00, 0xfedc_ba98_7654_3200] {
            if exit.kernel {
                in_kernel_mode(exit, &user, pattern);
            }
            if exit.user {
                in_user_mode(exit, &user, pattern);
            }
        }
    }
    println!("{} ways out", exits.len());
    0
}

/// Fifteen numbers, all different, and flags: all of them or none.
fn fill(pattern: u64) -> [u64; GPRS + 1] {
    core::array::from_fn(|i| match i {
        GPRS if pattern >> 63 != 0 => 2 | FLAGS,
        GPRS => 2,
        i => pattern + 17 * i as u64,
    })
}

fn in_kernel_mode(exit: &Exit, user: &User, pattern: u64) {
    let expected = fill(pattern);
    let mut registers = expected;
    (exit.prepare)(user);
    // SAFETY: the code changes nothing but what `lost` says, and `around` keeps what a function must keep.
    unsafe { around(&mut registers, exit.code.start) };
    end_of_ticks();
    compare(exit, "kernel mode", &registers, &expected);
}

fn in_user_mode(exit: &Exit, user: &User, pattern: u64) {
    let expected = fill(pattern);
    let mut frame = user.load(exit.code);
    let registers: *mut [u64; GPRS] = (&raw mut frame).cast();
    // SAFETY: a Frame begins with these registers.
    unsafe { registers.write(*expected.first_chunk().unwrap()) };
    frame.rflags = expected[GPRS] | irq::FLAG_IF;
    (exit.prepare)(user);
    user::run(&mut frame);
    end_of_ticks();
    assert_eq!(
        frame.vector,
        vector::INVALID_OPCODE,
        "{}: {frame:x?}",
        exit.name
    );
    let mut after = [frame.rflags; GPRS + 1];
    // SAFETY: as above.
    after[..GPRS].copy_from_slice(unsafe { &*registers });
    compare(exit, "user mode", &after, &expected);
}

fn compare(exit: &Exit, mode: &str, after: &[u64; GPRS + 1], expected: &[u64; GPRS + 1]) {
    for (i, name) in NAMES.iter().enumerate() {
        let (is, was) = (after[i], expected[i]);
        if !exit.lost.contains(name) {
            assert_eq!(
                is, was,
                "{name} after {} in {mode}: {is:#x}, was {was:#x}",
                exit.name
            );
        }
    }
    let (is, was) = (after[GPRS] & FLAGS, expected[GPRS] & FLAGS);
    if exit.flags {
        assert_eq!(
            is, was,
            "flags after {} in {mode}: {is:#x}, were {was:#x}",
            exit.name
        );
    }
}
