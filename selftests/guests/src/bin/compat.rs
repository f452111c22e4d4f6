// SPDX-License-Identifier: GPL-2.0
//! 32-bit user mode: `int 0x80`, exceptions with the right frame, and far jumps to 64-bit code and back.

#![no_std]
#![no_main]

use core::arch::asm;
use lguest_guest::event::{set_handler, vector, Frame, USER32_CS, USER_CS, USER_SS};
use lguest_guest::{abi, entry, hypercall, println, shared_read, user};
use lguest_guest_tests::{arm, code, Code, User, CODE, FIRED, NOTHING, STACK_TOP};

entry!(main);

fn start(user: &User, code: Code) -> Frame {
    Frame {
        cs: USER32_CS,
        ..user.load(code)
    }
}

fn run(user: &User, code: Code) -> Frame {
    let mut frame = start(user, code);
    user::run(&mut frame);
    frame
}

fn main() -> u8 {
    // 32-bit code cannot use a null segment, as 64-bit code can.
    // SAFETY: 64-bit code does not care what these are.
    unsafe { asm!("mov {0:e}, %ds", "mov {0:e}, %es", in(reg) USER_SS, options(att_syntax)) };
    let user = User::new();
    system_calls(&user);
    fast_system_calls(&user);
    exceptions(&user);
    far_jumps(&user);
    interrupts(&user);
    println!("32-bit code works");
    0
}

fn system_calls(user: &User) {
    let mut frame = start(
        user,
        code!(
            ".code32",
            "mov $20, %eax",
            "int $0x80",
            "inc %eax",
            "int $0x80",
            ".code64"
        ),
    );
    user::run(&mut frame);
    assert_eq!(
        (frame.vector, frame.error_code, frame.rax),
        (vector::INT80, 0, 20)
    );
    assert_eq!(
        (frame.cs, frame.ss, frame.rip, frame.rsp),
        (USER32_CS, 0x2b, CODE + 7, STACK_TOP)
    );
    frame.rax = 41;
    user::run(&mut frame);
    assert_eq!(
        (frame.vector, frame.rax),
        (vector::INT80, 42),
        "a result, and the next call"
    );
    // The same from 64-bit code.
    let frame = user.run(code!("int $0x80"));
    assert_eq!(
        (frame.vector, frame.cs, frame.rip),
        (vector::INT80, USER_CS, CODE + 2)
    );
}

/// SYSENTER and SYSCALL come as #GP that says so, if the processor has them here; else as #UD.
fn fast_system_calls(user: &User) {
    let sysenter = u64::from(abi::LGUEST_ERROR_SYSENTER);
    let syscall = u64::from(abi::LGUEST_ERROR_SYSCALL32);
    let cases = [
        (
            "SYSENTER",
            sysenter,
            true,
            code!(".code32", "mov $20, %eax" => "sysenter", ".code64"),
        ),
        (
            "SYSENTER with prefixes",
            sysenter,
            true,
            code!(".code32", "inc %eax" => ".byte 0x2e, 0x66", "sysenter", ".code64"),
        ),
        (
            "SYSENTER in 64-bit code",
            sysenter,
            false,
            code!("mov $20, %eax" => "sysenter"),
        ),
        (
            "SYSCALL",
            syscall,
            true,
            code!(".code32", "mov $20, %eax" => "syscall", ".code64"),
        ),
    ];
    for (name, bit, is_32, code) in cases {
        let frame = if is_32 {
            run(user, code)
        } else {
            user.run(code)
        };
        let behind = CODE + code.len as u64;
        let rip = match (frame.vector, frame.error_code) {
            (vector::INVALID_OPCODE, 0) => CODE + code.rip,
            (vector::GENERAL_PROTECTION, error) if error == bit && bit == syscall => behind,
            (vector::GENERAL_PROTECTION, error) if error == bit => CODE + code.rip,
            _ => panic!("{name}: {frame:x?}"),
        };
        let cs = if is_32 { USER32_CS } else { USER_CS };
        assert_eq!(
            (frame.rip, frame.cs, frame.rsp, frame.rflags & 0x200),
            (rip, cs, STACK_TOP, 0x200),
            "{name}: {frame:x?}"
        );
    }
    // A SYSENTER that is not the instruction which faults makes no system call of it.
    let frame = run(
        user,
        code!(".code32", "nop" => "hlt", "sysenter", ".code64"),
    );
    assert_eq!(
        (frame.vector, frame.error_code, frame.rip),
        (vector::GENERAL_PROTECTION, 0, CODE + 1)
    );
}

fn exceptions(user: &User) {
    let cases = [
        (
            "#OF by INTO",
            vector::OVERFLOW,
            0,
            code!(".code32", "mov $0x7fffffff, %eax", "inc %eax", "into" => ".code64"),
        ),
        (
            "#BR",
            vector::BOUND,
            0,
            code!(".code32", "mov $9, %eax", "push $8", "push $1" => "bound %eax, (%esp)", ".code64"),
        ),
        (
            "#DE",
            vector::DIVIDE,
            0,
            code!(".code32", "xor %ecx, %ecx" => "div %ecx", ".code64"),
        ),
        (
            "#BP",
            vector::BREAKPOINT,
            0,
            code!(".code32", "int3" => ".code64"),
        ),
        (
            "#UD",
            vector::INVALID_OPCODE,
            0,
            code!(".code32", "nop" => "ud2", ".code64"),
        ),
        (
            "#GP by HLT",
            vector::GENERAL_PROTECTION,
            0,
            code!(".code32", "nop" => "hlt", ".code64"),
        ),
        (
            "#GP by INT n",
            vector::GENERAL_PROTECTION,
            0x81 * 8 + 2,
            code!(".code32", "nop" => "int $0x81", ".code64"),
        ),
        (
            "#PF",
            vector::PAGE_FAULT,
            6,
            // 64-bit code needs no DS, and so has none.
            code!(".code32", "push $0x2b", "pop %ds" => "mov %eax, 0x800124", ".code64"),
        ),
    ];
    for (name, vector, error, code) in cases {
        let frame = run(user, code);
        assert_eq!(
            (frame.vector, frame.error_code),
            (vector, error),
            "{name}: {frame:x?}"
        );
        assert_eq!(
            (frame.rip, frame.cs, frame.ss),
            (CODE + code.rip, USER32_CS, 0x2b),
            "{name}"
        );
    }
    assert_eq!(shared_read!(cr2), NOTHING + 0x124);
    // The upper halves of registers are nobody's in 32-bit mode, but addresses wrap at 4 GiB.
    let frame = run(
        user,
        code!(".code32", "mov $0xfffffff0, %eax" => "mov 0x10(%eax), %eax", ".code64"),
    );
    assert_eq!(
        (frame.vector, shared_read!(cr2)),
        (vector::PAGE_FAULT, 0),
        "an address past 4 GiB"
    );
}

/// User mode changes between 32 and 64 bits without asking anybody.
fn far_jumps(user: &User) {
    let frame = run(
        user,
        code!(
            ".code32", "ljmp $0x33, $0x400007", // the next instruction
            ".code64", "movabs $0x123456789abcdef0, %rbx",
            "push $0x23", "lea 6f(%rip), %rax", "push %rax", "lretq",
            "6: .code32", "mov $7, %ecx" => "int $0x80", ".code64"
        ),
    );
    assert_eq!(
        (frame.vector, frame.cs, frame.rcx),
        (vector::INT80, USER32_CS, 7),
        "{frame:x?}"
    );
    let frame = run(
        user,
        code!(".code32", "ljmp $0x33, $0x400007", ".code64", "nop" => "syscall"),
    );
    assert_eq!(
        (frame.vector, frame.cs),
        (vector::SYSCALL, USER_CS),
        "a system call after a far jump"
    );
}

fn interrupts(user: &User) {
    arm(1_000_000);
    let mut frame = start(
        user,
        code!(".code32", "6: cmp $0, %ebx", "je 6b", ".code64"),
    );
    set_handler(
        u64::from(lguest_guest::abi::LGUEST_VECTOR_TIMER),
        Some(|frame| {
            frame.rbx = 1;
            assert_eq!(frame.cs, USER32_CS, "CS of an interrupted 32-bit program");
            FIRED.store(true, core::sync::atomic::Ordering::Relaxed);
        }),
    );
    user::run(&mut frame);
    assert_eq!(
        (frame.vector, frame.cs),
        (vector::INVALID_OPCODE, USER32_CS)
    );
    hypercall::set_timer(u64::MAX);
}
