// SPDX-License-Identifier: GPL-2.0
//! All of RAM is there, each byte once, in small pages and in large ones; code that changes is executed as it is; a store
//! through one mapping is seen through another.

#![no_std]
#![no_main]

use lguest_guest::paging::{
    alloc_frame, alloc_frames, gpa_of, gpa_to_ptr, pte, ram_end, AddressSpace, PAGE,
};
use lguest_guest::{abi, entry, hypercall, println};
use lguest_guest_tests::{code, in_kernel, peek, poke, User};

entry!(main);

const LARGE: u64 = 2 << 20;

fn main() -> u8 {
    let pages = all_of_ram();
    large_pages();
    aliases();
    changing_code();
    println!("{pages} pages, large pages, aliases and changing code");
    0
}

/// Each free page gets its own number, and still has it when all have theirs.
fn all_of_ram() -> u64 {
    let first = alloc_frame() + (1 << 20);
    let pages = (ram_end() - first) / PAGE;
    let word = |i: u64| gpa_to_ptr::<u64>(first + i * PAGE + i % 512 * 8);
    for i in 0..pages {
        // SAFETY: RAM past the image, of which only the first frames have been given away.
        unsafe { word(i).write_volatile(!i) };
    }
    for i in 0..pages {
        // SAFETY: as above.
        assert_eq!(unsafe { word(i).read_volatile() }, !i, "page {i} of RAM");
        // SAFETY: as above; frames must be zero when they are given away.
        unsafe { word(i).write_volatile(0) };
    }
    pages
}

/// A large page, and the same memory through small ones; both with a hole made by the other kind beside it.
fn large_pages() {
    const AT: u64 = 0x4000_0000;
    const SMALL: u64 = 0x6000_0000;
    let user = User::new();
    let frames = alloc_frames(LARGE);
    user.space.map_large(AT, frames, pte::WRITE | pte::USER);
    for i in 0..512 {
        user.space
            .map(SMALL + i * PAGE, frames + i * PAGE, pte::WRITE | pte::USER);
    }
    for i in 0..512 {
        poke(AT + i * PAGE + 8, i);
        assert_eq!(peek(SMALL + i * PAGE + 8), i, "page {i} of a large page");
    }
    let frame = user.run_with(code!("mov (%rsi), %rax"), AT + 511 * PAGE + 8);
    assert_eq!(frame.rax, 511, "a large page in user mode");
    // It ends where it ends.
    let frame = user.run_with(code!("mov (%rsi), %rax"), AT + LARGE - 4);
    assert_eq!(
        frame.vector,
        lguest_guest::event::vector::PAGE_FAULT,
        "across the end of a large page"
    );
}

fn aliases() {
    let space = AddressSpace::new();
    let frame = alloc_frame();
    let alias = |i: u64| 0x4000_0000 + i * (1 << 30) + i * PAGE;
    (0..50).for_each(|i| space.map(alias(i), frame, pte::WRITE));
    space.activate();
    for i in 0..50 {
        poke(alias(i), i + 1);
        (0..50).for_each(|j| {
            assert_eq!(
                peek(alias(j)),
                i + 1,
                "alias {j} after a store by alias {i}"
            )
        });
    }
}

/// Code written through the direct map, executed through the image and in user mode, and changed by itself.
fn changing_code() {
    let user = User::new();
    let piece = code!("mov $0, %eax", "mov %eax, 0x700000");
    let immediate = gpa_to_ptr::<u32>(gpa_of(piece.start) + 1);
    for value in 0..1000 {
        // SAFETY: the four bytes of the immediate in code that is ours.
        unsafe { immediate.write_unaligned(value) };
        assert!(in_kernel(piece).is_none());
        assert_eq!(
            peek(0x70_0000) as u32,
            value,
            "code of the kernel that was changed"
        );
        let frame = user.run(piece);
        assert_eq!(
            frame.rax as u32, value,
            "code of user mode that was changed"
        );
    }
    // User mode changes the immediate of the instruction that comes next.
    user.space.map(
        lguest_guest_tests::CODE,
        user.code_gpa(),
        pte::USER | pte::WRITE,
    );
    hypercall::flush_tlb(abi::LGUEST_FLUSH_USER, 0);
    let frame = user.run(code!(
        "mov $1000, %ecx",
        "6: incl 7f+1(%rip)",
        "7: mov $5, %eax",
        "loop 6b"
    ));
    assert_eq!(frame.rax, 1005, "code that changes itself");
}
