// SPDX-License-Identifier: GPL-2.0
//! The Host's shadow is a TLB: an old translation may be used until the Guest flushes it, and never afterwards; what was
//! not there is never remembered, and more rights need no flush.

#![no_std]
#![no_main]

use lguest_guest::abi::{
    LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE, LGUEST_FLUSH_RANGE, LGUEST_FLUSH_USER, LHCALL_FLUSH_TLB,
};
use lguest_guest::event::vector;
use lguest_guest::paging::{alloc_frame, alloc_frames, gpa_to_ptr, pte, AddressSpace, PAGE};
use lguest_guest::{entry, hypercall, println};
use lguest_guest_tests::{code, in_kernel, peek, poke, User, NOTHING};

entry!(main);

const USER_PAGE: u64 = 0x4000_0000;
/// In a slot of the upper half that the Launcher's tables do not use.
const KERNEL_PAGE: u64 = 0xffff_a000_0000_0000;

fn frame_with(value: u64) -> u64 {
    let frame = alloc_frame();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<u64>(frame).write_volatile(value) };
    frame
}

/// Its name, whether it reaches the kernel half, and how it is done.
type Flush<'a> = (&'static str, bool, &'a dyn Fn(u64));

fn flush(kind: u32, gva: u64) {
    assert_eq!(hypercall::flush_tlb(kind, gva), 0, "FLUSH_TLB");
}

fn range(first: u64, end: u64) {
    let arguments = [LGUEST_FLUSH_RANGE.into(), first, end, 0, 0];
    let result = hypercall::hypercall(LHCALL_FLUSH_TLB.into(), arguments);
    assert_eq!(result, 0, "FLUSH_RANGE");
}

fn main() -> u8 {
    let user = User::new();
    let space = user.space;
    let (one, two) = (frame_with(1), frame_with(2));

    let flushes: [Flush; 6] = [
        ("FLUSH_ONE", true, &|gva| flush(LGUEST_FLUSH_ONE, gva)),
        ("FLUSH_RANGE", true, &|gva| range(gva - PAGE, gva + 1)),
        ("FLUSH_RANGE of many", true, &|gva| {
            range(gva - 100 * PAGE, gva + PAGE)
        }),
        ("FLUSH_ALL", true, &|_| flush(LGUEST_FLUSH_ALL, 0)),
        ("FLUSH_USER", false, &|_| flush(LGUEST_FLUSH_USER, 0)),
        ("WRITE_CR3", false, &|_| space.activate()),
    ];
    for (name, kernel_half, flush) in flushes {
        for gva in [USER_PAGE, KERNEL_PAGE] {
            if gva == KERNEL_PAGE && !kernel_half {
                continue;
            }
            for (old, new, value) in [(one, two, 2), (two, one, 1), (one, two, 2)] {
                space.map(gva, old, pte::WRITE | pte::USER);
                flush(gva);
                peek(gva);
                space.map(gva, new, pte::WRITE | pte::USER);
                assert!(
                    [1, 2].contains(&peek(gva)),
                    "a translation that is neither the old nor the new one"
                );
                flush(gva);
                assert_eq!(
                    peek(gva),
                    value,
                    "a changed mapping at {gva:#x} after {name}"
                );
            }
            space.map(gva, one, 0);
            flush(gva);
            assert_write_faults(gva, name);
            space.unmap(gva);
            flush(gva);
            let frame = in_kernel(touch(gva)).expect(name);
            assert_eq!(
                (frame.vector, frame.error_code),
                (vector::PAGE_FAULT, 0),
                "an unmapped page after {name}"
            );
        }
    }
    user_mode_sees_it(&user, one, two);
    no_flush_needed(space, one);
    tables(space, one, two);
    large_pages(space);
    every_page(space);
    ranges(space);
    working_set(space);
    println!("nothing stale survives a flush");
    0
}

/// Code that reads `gva`, one of the two pages.
fn touch(gva: u64) -> lguest_guest_tests::Code {
    if gva == USER_PAGE {
        code!("mov 0x40000000, %eax")
    } else {
        code!("movabs $0xffffa00000000000, %rax", "mov (%rax), %eax")
    }
}

fn assert_write_faults(gva: u64, name: &str) {
    let code = if gva == USER_PAGE {
        code!("mov %eax, 0x40000000")
    } else {
        code!("movabs $0xffffa00000000000, %rax", "mov %eax, (%rax)")
    };
    let frame = in_kernel(code).expect("a write to a page that is read-only now");
    assert_eq!(
        (frame.vector, frame.error_code),
        (vector::PAGE_FAULT, 3),
        "a write after {name}"
    );
}

/// Both modes share the user half.
fn user_mode_sees_it(user: &User, one: u64, two: u64) {
    for (frame, value) in [(one, 1), (two, 2)] {
        user.space.map(USER_PAGE, frame, pte::USER);
        flush(LGUEST_FLUSH_ONE, USER_PAGE);
        assert_eq!(
            user.run(code!("mov 0x40000000, %eax")).rax,
            value,
            "a changed mapping in user mode"
        );
    }
    user.space.unmap(USER_PAGE);
    flush(LGUEST_FLUSH_USER, 0);
    let frame = user.run(code!("mov 0x40000000, %eax"));
    assert_eq!(
        (frame.vector, frame.error_code),
        (vector::PAGE_FAULT, 4),
        "an unmapped page in user mode"
    );
}

/// From nothing to something, and from less to more, hardware needs no flush.
fn no_flush_needed(space: AddressSpace, one: u64) {
    assert!(in_kernel(code!("mov 0x800000, %eax")).is_some());
    space.map(NOTHING, one, 0);
    assert_eq!(peek(NOTHING), 1, "a page that was not there before");
    space.map(NOTHING, one, pte::WRITE);
    poke(NOTHING, 1);
    space.map(NOTHING, one, pte::WRITE | pte::USER);
    peek(NOTHING);
}

/// A changed entry of a higher level, and a large page that becomes small ones.
fn tables(space: AddressSpace, one: u64, two: u64) {
    const A: u64 = 0x5000_0000;
    const B: u64 = 0x5020_0000;
    space.map(A, one, pte::WRITE);
    space.map(B, two, pte::WRITE);
    assert_eq!((peek(A), peek(B)), (1, 2));
    let (a, b) = (space.entry(A, 2), space.entry(B, 2));
    // SAFETY: swaps two entries of our own tables.
    unsafe { a.swap(b) };
    flush(LGUEST_FLUSH_USER, 0);
    assert_eq!((peek(A), peek(B)), (2, 1), "tables that changed places");

    let large = alloc_frames(2 << 20);
    // SAFETY: frames of ours.
    unsafe { gpa_to_ptr::<u64>(large + PAGE).write_volatile(77) };
    space.map_large(A, large, pte::WRITE);
    flush(LGUEST_FLUSH_USER, 0);
    assert_eq!(
        (peek(A), peek(A + PAGE)),
        (0, 77),
        "a large page instead of a table"
    );
    // SAFETY: an entry of our own tables.
    unsafe { space.entry(A, 2).write_volatile(0) };
    space.map(A, two, 0);
    flush(LGUEST_FLUSH_USER, 0);
    assert_eq!(peek(A), 2, "a table instead of a large page");
    let frame =
        in_kernel(code!("mov 0x50001000, %eax")).expect("a page of the large page that is no more");
    assert_eq!(frame.vector, vector::PAGE_FAULT);
}

/// One FLUSH_ONE anywhere in a large page drops all of it, as INVLPG does, and no page beside it.
fn large_pages(space: AddressSpace) {
    const AT: u64 = 0x8000_0000;
    const LARGE: u64 = 2 << 20;
    let pages = [0, 5 * PAGE, LARGE - PAGE];
    let (old, new) = (alloc_frames(LARGE), alloc_frames(LARGE));
    for (frames, value) in [(old, 1u64), (new, 2)] {
        for page in pages {
            // SAFETY: frames of ours.
            unsafe { gpa_to_ptr::<u64>(frames + page).write_volatile(value) };
        }
    }
    let beside = frame_with(3);
    space.map(AT + LARGE, beside, pte::WRITE);
    // Also at a page that was never touched.
    for flushed in [0, 5 * PAGE, LARGE - PAGE, 99 * PAGE] {
        space.map_large(AT, old, pte::WRITE);
        flush(LGUEST_FLUSH_USER, 0);
        assert_eq!(peek(AT + LARGE), 3);
        assert_eq!(pages.map(|page| peek(AT + page)), [1; 3]);
        space.map_large(AT, new, pte::WRITE);
        flush(LGUEST_FLUSH_ONE, AT + flushed);
        assert_eq!(
            pages.map(|page| peek(AT + page)),
            [2; 3],
            "a large page after FLUSH_ONE at {flushed:#x}"
        );
        assert_eq!(peek(AT + LARGE), 3);
    }

    // RAM by a page of 1 GiB, then by smaller ones, with `new` where `old` was.
    const HUGE: u64 = 0x1_0000_0000;
    let entry = space.entry(HUGE, 3);
    // SAFETY: an entry of our own tables.
    unsafe { entry.write_volatile(pte::PRESENT | pte::WRITE | pte::LARGE) };
    assert_eq!((peek(HUGE + old), peek(HUGE + new)), (1, 2));
    // SAFETY: as above.
    unsafe { entry.write_volatile(0) };
    space.map_large(HUGE + old, new, pte::WRITE);
    flush(LGUEST_FLUSH_ONE, HUGE);
    assert_eq!(peek(HUGE + old), 2, "a page of 1 GiB after FLUSH_ONE");
}

/// FLUSH_USER and FLUSH_ALL reach all pages, not only recent ones.
fn every_page(space: AddressSpace) {
    const START: u64 = 0x6000_0000;
    const PAGES: u64 = 1024;
    let at = |i: u64| START + i * PAGE;
    let frames = alloc_frames(PAGES * PAGE);
    for kind in [LGUEST_FLUSH_USER, LGUEST_FLUSH_ALL] {
        for i in 0..PAGES {
            space.map(at(i), frames + i * PAGE, pte::WRITE);
        }
        flush(kind, 0);
        for i in 0..PAGES {
            poke(at(i), i);
        }
        for i in 0..PAGES {
            space.map(at(i), frames + (PAGES - 1 - i) * PAGE, pte::WRITE);
        }
        flush(kind, 0);
        for i in 0..PAGES {
            assert_eq!(peek(at(i)), PAGES - 1 - i, "page {i} after flush {kind}");
        }
    }
}

/// FLUSH_RANGE reaches each of its pages, small ones and large ones.
fn ranges(space: AddressSpace) {
    const START: u64 = 0x7000_0000;
    const PAGES: u64 = 33;
    let at = |i: u64| START + i * PAGE;
    let (old, new) = (alloc_frames(PAGES * PAGE), alloc_frames(PAGES * PAGE));
    for (frames, value) in [(old, 1), (new, 2)] {
        for i in 0..PAGES {
            // SAFETY: frames of ours.
            unsafe { gpa_to_ptr::<u64>(frames + i * PAGE).write_volatile(value) };
        }
    }
    for (frames, value) in [(old, 1), (new, 2)] {
        for i in 0..PAGES {
            space.map(at(i), frames + i * PAGE, pte::WRITE);
        }
        range(at(0), at(PAGES));
        for i in 0..PAGES {
            assert_eq!(peek(at(i)), value, "page {i} after FLUSH_RANGE");
        }
    }
    // Across a table's end, where a large page begins.
    const LARGE: u64 = 2 << 20;
    const AT: u64 = 0x9000_0000;
    let large = [alloc_frames(LARGE), alloc_frames(LARGE)];
    for (n, frames) in large.into_iter().enumerate() {
        // SAFETY: frames of ours.
        unsafe { gpa_to_ptr::<u64>(frames + 9 * PAGE).write_volatile(n as u64) };
        space.map(AT - PAGE, [old, new][n], pte::WRITE);
        space.map_large(AT, frames, pte::WRITE);
        range(AT - PAGE, AT + 1);
        assert_eq!(
            (peek(AT - PAGE), peek(AT + 9 * PAGE)),
            (n as u64 + 1, n as u64),
            "a small and a large page after FLUSH_RANGE"
        );
    }
}

/// What is used between one flush and the next stays right, also if it changes meanwhile, or loses rights, or comes to
/// be used only later. Flush after flush, so that what the Host has kept of it is of any age.
fn working_set(space: AddressSpace) {
    const START: u64 = 0x40_0000_0000;
    // Each in a table of its own.
    let at = |i: u64| START + (i << 21);
    const PAGES: u64 = 8;
    let frames = alloc_frames(2 * PAGES * PAGE);
    for i in 0..2 * PAGES {
        // SAFETY: frames of ours.
        unsafe { gpa_to_ptr::<u64>(frames + i * PAGE).write_volatile(i) };
    }
    let mut mapped = [0; PAGES as usize];
    for round in 0..64 {
        for i in 0..PAGES {
            if (round + i) % 3 == 0 {
                mapped[i as usize] = (round * 5 + i * 3) % (2 * PAGES);
                space.map(at(i), frames + mapped[i as usize] * PAGE, pte::WRITE);
            }
        }
        match round % 4 {
            0 => flush(LGUEST_FLUSH_ALL, 0),
            1 => space.activate(),
            _ => flush(LGUEST_FLUSH_USER, 0),
        }
        // Some are not used for several rounds.
        for i in (0..PAGES).filter(|i| (round >> (i % 4)) & 1 == 0) {
            if round < 2 && mapped[i as usize] == 0 {
                continue;
            }
            assert_eq!(peek(at(i)), mapped[i as usize], "page {i} in round {round}");
        }
    }
}
