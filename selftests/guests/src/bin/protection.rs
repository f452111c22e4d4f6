// SPDX-License-Identifier: GPL-2.0
//! Reads, writes and fetches of both modes under every combination of W, U and NX in a page's entry and in the entry above
//! it: allowed, or a page fault with the right error code, as the SDM says for CR0.WP, EFER.NXE and CR4.SMEP.

#![no_std]
#![no_main]

use lguest_guest::event::vector;
use lguest_guest::paging::{alloc_frame, gpa_to_ptr, pte, AddressSpace};
use lguest_guest::{abi, entry, hypercall, println, shared_read, user};
use lguest_guest_tests::{code, in_kernel, Code, User};

entry!(main);

/// A page with a table of its own, so that the entry above maps nothing else.
const PAGE: u64 = 0x4000_0000;
const RET: u8 = 0xc3;

/// What is tried, the bit of the error code that tells it, and the code. All leave the page as it is: a RET.
fn accesses() -> [(&'static str, u64, Code); 3] {
    [
        ("read", 0, code!("movb 0x40000000, %al")),
        ("write", 2, code!("movb $0xc3, 0x40000000")),
        ("fetch", 16, code!("mov $0x40000000, %eax", "call *%rax")),
    ]
}

/// The error code's bits for an access that the entries' rights forbid.
fn expected(flags: [u64; 2], access: u64, user: bool) -> Option<u64> {
    let all = |bit| flags.iter().all(|entry| entry & bit != 0);
    let user_page = all(pte::USER);
    let executable = flags.iter().all(|entry| entry & pte::NX == 0);
    let allowed = match (access, user) {
        (_, true) if !user_page => false,
        (2, _) => all(pte::WRITE),
        (16, false) if user_page => false,
        (16, _) => executable,
        _ => true,
    };
    (!allowed).then_some(1 | access | if user { 4 } else { 0 })
}

fn main() -> u8 {
    let user = User::new();
    let frame = alloc_frame();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<u8>(frame).write_volatile(RET) };
    user.space.map(PAGE, frame, 0);

    let flags: [u64; 8] = core::array::from_fn(|i| {
        let bit = |n: usize, flag| if i & (1 << n) != 0 { flag } else { 0 };
        bit(0, pte::WRITE) | bit(1, pte::USER) | bit(2, pte::NX)
    });
    let mut faults = 0;
    for leaf in flags {
        for above in flags {
            set(user.space, frame, leaf, above);
            for (name, access, code) in accesses() {
                for from_user in [false, true] {
                    hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
                    let found = error_of(&user, code, from_user);
                    let wanted = expected([leaf, above], access, from_user);
                    assert_eq!(
                        found, wanted,
                        "{name}, user mode: {from_user}, flags {leaf:#x} below {above:#x}"
                    );
                    faults += u32::from(found.is_some());
                }
            }
        }
    }
    println!("{} accesses, {faults} of them faults", 8 * 8 * 3 * 2);
    0
}

fn set(space: AddressSpace, frame: u64, leaf: u64, above: u64) {
    space.map(PAGE, frame, leaf);
    let entry = space.entry(PAGE, 2);
    // SAFETY: an entry of our own tables that maps this page alone.
    unsafe {
        let table = entry.read_volatile() & pte::ADDRESS;
        entry.write_volatile(table | pte::PRESENT | above);
    }
}

/// The page fault's error code, or `None` if the access was allowed.
fn error_of(user: &User, code: Code, from_user: bool) -> Option<u64> {
    let frame = if from_user {
        let mut frame = user.load(code);
        user::run(&mut frame);
        (frame.vector != vector::INVALID_OPCODE).then_some(frame)
    } else {
        in_kernel(code)
    }?;
    assert_eq!(frame.vector, vector::PAGE_FAULT, "{frame:x?}");
    assert_eq!(shared_read!(cr2), PAGE);
    Some(frame.error_code)
}
