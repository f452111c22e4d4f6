// SPDX-License-Identifier: GPL-2.0
//! Every exception that a Guest can raise arrives, from user and from kernel mode, with the vector, error code, RIP, CS,
//! SS, RSP and flags of the SDM.

#![no_std]
#![no_main]

use lguest_guest::event::{vector, Frame, KERNEL_CS, USER_CS, USER_SS};
use lguest_guest::paging::{alloc_frame, pte, PAGE};
use lguest_guest::{entry, irq, println, shared_read};
use lguest_guest_tests::{
    code, in_kernel, in_tcg, kernel_rsp, Code, User, DATA, NOTHING, STACK_TOP,
};

entry!(main);

struct Case {
    name: &'static str,
    code: Code,
    vector: u64,
    error: u64,
}

/// RF is set in the frame of a fault, and the instructions before it set the others.
const FLAGS: u64 = !((1 << 16) | 0x8d5);
const TF: u64 = 1 << 8;
const READ_ONLY: u64 = DATA + PAGE;
const NOT_EXECUTABLE: u64 = DATA + 2 * PAGE;
const KERNEL_ONLY: u64 = DATA + 3 * PAGE;
/// A page with none after it.
const SPLIT: u64 = DATA + 4 * PAGE;

macro_rules! cases {
    ($($name:literal: $vector:expr, $error:expr, [$($code:tt)*];)*) => {
        [$(Case { name: $name, code: code!($($code)*), vector: $vector, error: $error }),*]
    };
}

#[rustfmt::skip]
fn main() -> u8 {
    let both = cases! {
        "#DE": vector::DIVIDE, 0, ["xor %ecx, %ecx" => "div %ecx"];
        "#DB after a step": vector::DEBUG, 0,
            ["pushf", "orl $0x100, (%rsp)", "popf", "nop" => "nop"];
        "#DB by INT1": vector::DEBUG, 0, [".byte 0xf1" => "nop"];
        "#BP": vector::BREAKPOINT, 0, ["int3" => "nop"];
        "#BP by INT n": vector::BREAKPOINT, 0, ["int $3" => "nop"];
        "#OF by INT n": vector::OVERFLOW, 0, ["int $4" => "nop"];
        "#UD": vector::INVALID_OPCODE, 0, ["nop" => "ud2"];
        "#UD by DAA, which 64-bit mode lacks": vector::INVALID_OPCODE, 0, ["nop" => ".byte 0x27"];
        "#UD by STAC, which needs CPL 0": vector::INVALID_OPCODE, 0, ["nop" => "stac"];
        "#SS": vector::STACK_SEGMENT, 0,
            ["movabs $0x800000000000, %rcx", "xchg %rcx, %rbp" => "mov (%rbp), %eax"];
        "#GP by an address": vector::GENERAL_PROTECTION, 0,
            ["movabs $0x800000000000, %rcx" => "mov (%rcx), %eax"];
        "#GP by a selector": vector::GENERAL_PROTECTION, 0x10, ["mov $0x10, %eax" => "mov %eax, %ds"];
        "#GP by a selector past the GDT": vector::GENERAL_PROTECTION, 0xfff8,
            ["mov $0xfffb, %eax" => "mov %eax, %es"];
        "#GP by an empty TLS entry": vector::GENERAL_PROTECTION, 0x60, ["mov $0x63, %eax" => "mov %eax, %fs"];
        "#GP by INT n": vector::GENERAL_PROTECTION, 0x21 * 8 + 2, ["nop" => "int $0x21"];
        "#GP by LLDT": vector::GENERAL_PROTECTION, 0, ["mov $0x28, %eax" => "lldt %ax"];
        "#GP by misaligned MOVAPS": vector::GENERAL_PROTECTION, 0, ["nop" => "movaps 0x700001, %xmm0"];
        "#MF": vector::X87, 0,
            ["fninit", "movw $0x37b, -8(%rsp)", "fldcw -8(%rsp)", "fldz", "fld1", "fdiv %st(1), %st" => "fwait"];
        "#XM": vector::SIMD, 0,
            ["movl $0x1d80, -8(%rsp)", "ldmxcsr -8(%rsp)", "mov $1, %eax", "cvtsi2ss %eax, %xmm0",
             "xorps %xmm1, %xmm1" => "divss %xmm1, %xmm0"];
        "INT 0x80": vector::INT80, 0, ["int $0x80" => "nop"];
        "#PF, read": vector::PAGE_FAULT, 4, ["mov $0x800123, %ecx" => "mov (%rcx), %eax"];
        "#PF, write": vector::PAGE_FAULT, 6, ["mov $0x800123, %ecx" => "mov %eax, (%rcx)"];
        "#PF, write to read-only": vector::PAGE_FAULT, 7, ["mov $0x701123, %ecx" => "mov %eax, (%rcx)"];
        "#PF, second half": vector::PAGE_FAULT, 6, ["mov $0x704fff, %ecx" => "mov %eax, (%rcx)"];
    };
    let user_only = cases! {
        "#GP by HLT": vector::GENERAL_PROTECTION, 0, ["nop" => "hlt"];
        "#GP by CLI": vector::GENERAL_PROTECTION, 0, ["nop" => "cli"];
        "#GP by IN": vector::GENERAL_PROTECTION, 0, ["nop" => "in $0x80, %al"];
        "#GP by MOV CR": vector::GENERAL_PROTECTION, 0, ["nop" => "mov %cr3, %rax"];
        "#GP by MOV DR": vector::GENERAL_PROTECTION, 0, ["nop" => "mov %dr7, %rax"];
        "#GP by RDMSR": vector::GENERAL_PROTECTION, 0, ["mov $0xc0000080, %ecx" => "rdmsr"];
        "#GP by WRMSR": vector::GENERAL_PROTECTION, 0, ["mov $0xc0000080, %ecx" => "wrmsr"];
        "#GP by IRET to CPL 0": vector::GENERAL_PROTECTION, 0x10,
            ["push $0x18", "push %rsp", "pushf", "push $0x10", "push $0x400000" => "iretq"];
        "#PF, kernel page": vector::PAGE_FAULT, 5, ["mov $0x703123, %ecx" => "mov (%rcx), %eax"];
        "#PF, kernel half": vector::PAGE_FAULT, 5, ["mov $-0x7ff00000, %rcx" => "mov (%rcx), %eax"];
        "#PF, shared page": vector::PAGE_FAULT, 4, ["movabs $0xffff870000000000, %rcx" => "mov (%rcx), %eax"];
    };

    let user = User::new();
    user.space.map(READ_ONLY, alloc_frame(), pte::USER);
    user.space.map(NOT_EXECUTABLE, alloc_frame(), pte::USER | pte::WRITE | pte::NX);
    user.space.map(KERNEL_ONLY, alloc_frame(), pte::WRITE);
    user.space.map_new_user(SPLIT);

    irq::disable();
    // QEMU's TCG never raises #XM.
    let both = || both.iter().filter(|case| case.vector != vector::SIMD || !in_tcg());
    for case in both().chain(&user_only) {
        let frame = user.run(case.code);
        check(case, "user mode", &frame, case.error, &Frame {
            rip: lguest_guest_tests::CODE + case.code.rip,
            cs: USER_CS,
            ss: USER_SS,
            rsp: frame_rsp(case, STACK_TOP),
            rflags: 2 | irq::FLAG_IF | step(case),
            ..frame
        });
    }
    for case in both() {
        let Some(frame) = in_kernel(case.code) else { panic!("{} in kernel mode: nothing came", case.name) };
        let error = if case.vector == vector::PAGE_FAULT { case.error & !4 } else { case.error };
        check(case, "kernel mode", &frame, error, &Frame {
            rip: case.code.start as u64 + case.code.rip,
            cs: KERNEL_CS,
            ss: 0x18,
            rsp: kernel_rsp(),
            rflags: 2 | step(case),
            ..frame
        });
    }
    fetches(&user);
    println!("{} exceptions from user mode, {} of them from kernel mode", both().count() + user_only.len(), both().count());
    0
}

/// RSP at the event: IRET's frame is still there, everything else has cleaned up.
fn frame_rsp(case: &Case, top: u64) -> u64 {
    if case.name.contains("IRET") {
        top - 5 * 8
    } else {
        top
    }
}

/// TF is still set when its trap comes.
fn step(case: &Case) -> u64 {
    if case.name.contains("step") {
        TF
    } else {
        0
    }
}

fn check(case: &Case, mode: &str, frame: &Frame, error: u64, expected: &Frame) {
    let name = case.name;
    let vector = match case.vector {
        // QEMU's TCG has #GP for all addresses that are not canonical.
        vector::STACK_SEGMENT if in_tcg() => vector::GENERAL_PROTECTION,
        vector => vector,
    };
    assert_eq!(
        frame.vector, vector,
        "{name} from {mode}: the vector, with {frame:x?}"
    );
    assert_eq!(
        frame.error_code, error,
        "{name} from {mode}: the error code"
    );
    assert_eq!(frame.rip, expected.rip, "{name} from {mode}: RIP");
    assert_eq!(
        (frame.cs, frame.ss),
        (expected.cs, expected.ss),
        "{name} from {mode}: CS, SS"
    );
    assert_eq!(frame.rsp, expected.rsp, "{name} from {mode}: RSP");
    let flags = frame.rflags & FLAGS;
    assert_eq!(
        flags, expected.rflags,
        "{name} from {mode}: RFLAGS ({flags:#x})"
    );
    if case.vector == vector::PAGE_FAULT {
        let address = match case.name {
            "#PF, second half" => SPLIT + PAGE,
            _ => frame.rcx,
        };
        let cr2 = shared_read!(cr2);
        assert_eq!(cr2, address, "{name} from {mode}: CR2 is {cr2:#x}");
    }
}

/// Fetches that fault have the address itself as RIP.
fn fetches(user: &User) {
    let missing = NOTHING + 0x123;
    for (target, error) in [(missing, 0x14), (NOT_EXECUTABLE, 0x15), (KERNEL_ONLY, 0x15)] {
        let mut frame = user.load(code!("jmp *%rcx"));
        frame.rcx = target;
        lguest_guest::user::run(&mut frame);
        assert_eq!(
            (frame.vector, frame.error_code, frame.rip, shared_read!(cr2)),
            (vector::PAGE_FAULT, error, target, target),
            "a fetch from user mode"
        );
    }
}
