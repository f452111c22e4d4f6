// SPDX-License-Identifier: GPL-2.0
//! CR2 is the Guest's: the Host's own page faults on the Guest's behalf do not show in it.

#![no_std]
#![no_main]

use core::arch::asm;
use lguest_guest::event::vector;
use lguest_guest::{abi, entry, hypercall, println, shared_read, shared_write};
use lguest_guest_tests::{code, peek, User, DATA, NOTHING};

entry!(main);

fn mov_from_cr2() -> u64 {
    let cr2;
    // SAFETY: the Host emulates it.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    cr2
}

fn main() -> u8 {
    let user = User::new();
    shared_write!(cr2, 0x1234_5678);
    hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
    peek(DATA);
    assert_eq!(shared_read!(cr2), 0x1234_5678, "CR2 after fills");

    let frame = user.run(code!("mov 0x800abc, %eax"));
    assert_eq!(frame.vector, vector::PAGE_FAULT);
    assert_eq!(
        shared_read!(cr2),
        NOTHING + 0xabc,
        "CR2 after a fault of the guest"
    );
    assert_eq!(mov_from_cr2(), NOTHING + 0xabc, "MOV from CR2");

    let frame = user.run(code!("movabs $0x800000000000, %rax", "mov (%rax), %eax"));
    assert_eq!(frame.vector, vector::GENERAL_PROTECTION);
    hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
    peek(DATA);
    assert_eq!(
        shared_read!(cr2),
        NOTHING + 0xabc,
        "CR2 after #GP and fills"
    );
    println!("CR2 holds the guest's faults only");
    0
}
