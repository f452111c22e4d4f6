// SPDX-License-Identifier: GPL-2.0
//! Accessed and dirty bits: set by the accesses that must set them, in every level, and by no other; set again after the
//! Guest cleared and flushed them.

#![no_std]
#![no_main]

use lguest_guest::paging::{alloc_frame, alloc_frames, pte, AddressSpace};
use lguest_guest::{abi, entry, hypercall, println};
use lguest_guest_tests::{code, peek, poke, User, CODE};

entry!(main);

/// In a table of its own.
const PAGE: u64 = 0x4000_0000;
const NEIGHBOUR: u64 = PAGE + 4096;
const LARGE: u64 = 0x8000_0000;

/// Clears both bits in the entries of all levels, and flushes the page.
fn clear(space: AddressSpace, gva: u64, lowest: u32) {
    for level in lowest..=4 {
        let entry = space.entry(gva, level);
        // SAFETY: an entry of our own tables.
        unsafe { entry.write_volatile(entry.read_volatile() & !(pte::ACCESSED | pte::DIRTY)) };
    }
    assert_eq!(hypercall::flush_tlb(abi::LGUEST_FLUSH_ONE, gva), 0);
}

fn has(space: AddressSpace, gva: u64, level: u32, bit: u64) -> bool {
    // SAFETY: as above.
    unsafe { space.entry(gva, level).read_volatile() & bit != 0 }
}

/// The same after a flush of everything: what the Host has kept of a page counts as no access, and does not hide one.
fn kept_over_a_flush(space: AddressSpace) {
    let flushes: [&dyn Fn(); 3] = [
        &|| assert_eq!(hypercall::flush_tlb(abi::LGUEST_FLUSH_USER, 0), 0),
        &|| assert_eq!(hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0), 0),
        &|| space.activate(),
    ];
    for (n, flush) in flushes.iter().enumerate() {
        for round in 0..3 {
            poke(PAGE, 1);
            poke(NEIGHBOUR, 1);
            for page in [PAGE, NEIGHBOUR] {
                let entry = space.entry(page, 1);
                // SAFETY: an entry of our own tables.
                unsafe {
                    entry.write_volatile(entry.read_volatile() & !(pte::ACCESSED | pte::DIRTY))
                };
            }
            flush();
            peek(NEIGHBOUR);
            assert_eq!(
                (space.accessed_dirty(PAGE), space.accessed_dirty(NEIGHBOUR)),
                ((false, false), (true, false)),
                "after flush {n} and a read of the second, round {round}"
            );
            poke(PAGE, 2);
            assert_eq!(
                space.accessed_dirty(PAGE),
                (true, true),
                "after flush {n} and a write, round {round}"
            );
        }
    }
}

fn main() -> u8 {
    let user = User::new();
    let space = user.space;
    for page in [PAGE, NEIGHBOUR] {
        space.map(page, alloc_frame(), pte::WRITE | pte::USER);
    }

    for round in 0..3 {
        clear(space, PAGE, 1);
        clear(space, NEIGHBOUR, 1);
        peek(PAGE);
        assert_eq!(
            space.accessed_dirty(PAGE),
            (true, false),
            "after a read, round {round}"
        );
        for level in 2..=4 {
            assert!(
                has(space, PAGE, level, pte::ACCESSED),
                "A in level {level} after a read"
            );
        }
        poke(PAGE, 1);
        assert_eq!(
            space.accessed_dirty(PAGE),
            (true, true),
            "after a write, round {round}"
        );
        assert_eq!(
            space.accessed_dirty(NEIGHBOUR),
            (false, false),
            "the page nobody touched"
        );

        clear(space, PAGE, 1);
        poke(PAGE, 2);
        assert_eq!(
            space.accessed_dirty(PAGE),
            (true, true),
            "after a write as the first access"
        );
    }

    kept_over_a_flush(space);

    clear(space, PAGE, 1);
    user.run(code!("movb 0x40000000, %al"));
    assert_eq!(
        space.accessed_dirty(PAGE),
        (true, false),
        "after a read from user mode"
    );
    user.run(code!("movb %al, 0x40000000"));
    assert_eq!(
        space.accessed_dirty(PAGE),
        (true, true),
        "after a write from user mode"
    );
    clear(space, CODE, 1);
    user.run(code!("nop"));
    assert_eq!(space.accessed_dirty(CODE), (true, false), "after a fetch");

    // An access that faults leaves the page clean.
    space.map(PAGE, alloc_frame(), pte::USER);
    clear(space, PAGE, 1);
    user.run(code!("movb %al, 0x40000000"));
    assert!(
        !space.accessed_dirty(PAGE).1,
        "D after a write that was not allowed"
    );
    space.map(PAGE, alloc_frame(), pte::WRITE);
    clear(space, PAGE, 1);
    user.run(code!("movb %al, 0x40000000"));
    assert!(
        !space.accessed_dirty(PAGE).1,
        "D after a write from user mode to a kernel page"
    );

    // Large pages have theirs in level 2.
    space.map_large(LARGE, alloc_frames(2 << 20), pte::WRITE | pte::USER);
    peek(LARGE + 0x12340);
    assert!(
        has(space, LARGE, 2, pte::ACCESSED) && !has(space, LARGE, 2, pte::DIRTY),
        "large, after a read"
    );
    poke(LARGE + 0x1f_f000, 1);
    assert!(has(space, LARGE, 2, pte::DIRTY), "large, after a write");
    clear(space, LARGE, 2);
    poke(LARGE + 0x12340, 1);
    assert!(
        has(space, LARGE, 2, pte::DIRTY),
        "large, after clear, flush and write elsewhere"
    );
    println!("A and D are as the SDM says");
    0
}
