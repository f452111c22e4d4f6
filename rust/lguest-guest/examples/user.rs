// SPDX-License-Identifier: GPL-2.0
//! User mode: a program in an address space of its own, two system calls, and a page fault that is repaired.

#![no_std]
#![no_main]

use core::arch::global_asm;
use lguest_guest::event::{vector, Frame};
use lguest_guest::paging::{gpa_of, gpa_to_ptr, pte, AddressSpace};
use lguest_guest::{entry, println, shared_read, user};

entry!(main);

// The program: print(the string), then store 42 on its stack, of which there is nothing yet, then exit(what it finds
// there). It is linked in the kernel's image and runs elsewhere, which is why it must not use absolute addresses.
global_asm!(
    r#"
    .pushsection .text.user_program, "ax"
    .balign 4096
user_program:
    mov $1, %eax
    lea 1f(%rip), %rdi
    mov $2f - 1f, %esi
    syscall
    push $42
    pop %rdi
    mov $2, %eax
    syscall
1:  .ascii "Hello from guest user mode.\n"
2:  .balign 4096
    .popsection
    "#,
    options(att_syntax)
);

extern "C" {
    static user_program: u8;
}

const CODE: u64 = 0x40_0000;
const STACK_TOP: u64 = 0x7fff_ffff_f000;

fn main() -> u8 {
    let space = AddressSpace::new();
    space.map(CODE, gpa_of(&raw const user_program), pte::USER);
    space.activate();

    let mut program = user::start(CODE, STACK_TOP);
    loop {
        user::run(&mut program);
        match (program.vector, program.rax) {
            (vector::SYSCALL, 1) => print(&program),
            (vector::SYSCALL, 2) => {
                println!("The program exits with {}.", program.rdi);
                return u8::from(program.rdi != 42);
            }
            (vector::PAGE_FAULT, _) => {
                let page = shared_read!(cr2) & !0xfff;
                println!(
                    "Page fault at {:#x} (error {:#x}).",
                    shared_read!(cr2),
                    program.error_code
                );
                space.map_new_user(page);
            }
            _ => panic!("not expected of user mode: {program:x?}"),
        }
    }
}

/// The system call print(RDI: pointer, RSI: length). The kernel looks the pages up instead of trusting the pointer.
fn print(program: &Frame) {
    assert!(
        program.rdi >= CODE && program.rdi + program.rsi <= CODE + 4096,
        "a bad pointer"
    );
    let text = gpa_to_ptr::<u8>(gpa_of(&raw const user_program) + program.rdi - CODE);
    // SAFETY: inside the program's page, which nobody writes.
    let text = unsafe { core::slice::from_raw_parts(text, program.rsi as usize) };
    println!("{}", core::str::from_utf8(text).unwrap_or("?").trim_end());
}
