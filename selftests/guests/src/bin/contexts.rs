// SPDX-License-Identifier: GPL-2.0
//! Many address spaces: each shows its own pages after every switch, a switch with bit 63 may keep what was cached and one
//! without may not, and the kernel half is common.

#![no_std]
#![no_main]

use core::arch::asm;
use lguest_guest::abi::{LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE};
use lguest_guest::paging::{alloc_frame, gpa_to_ptr, pte, AddressSpace};
use lguest_guest::{entry, hypercall, println};
use lguest_guest_tests::{peek, poke};

entry!(main);

const PAGE: u64 = 0x4000_0000;
const KERNEL_PAGE: u64 = 0xffff_a000_0000_0000;
const NO_FLUSH: u64 = 1 << 63;
const SPACES: usize = 200;

fn frame_with(value: u64) -> u64 {
    let frame = alloc_frame();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<u64>(frame).write_volatile(value) };
    frame
}

fn switch(space: AddressSpace, bits: u64) {
    assert_eq!(hypercall::write_cr3(space.0 | bits), 0, "WRITE_CR3");
}

fn main() -> u8 {
    // The kernel page's table must exist before its top-level entry is copied.
    let boot = AddressSpace::current();
    boot.map(KERNEL_PAGE, frame_with(1_000_000), pte::WRITE);
    let spaces: [AddressSpace; SPACES] = core::array::from_fn(|i| {
        let space = AddressSpace::new();
        space.map(PAGE, frame_with(i as u64), pte::WRITE);
        space
    });

    for round in 0..3 {
        for (i, space) in spaces.iter().enumerate() {
            // A PCID in the low bits, as Linux puts one there, means nothing.
            switch(*space, NO_FLUSH | (i as u64 & 7));
            assert_eq!(
                peek(PAGE),
                i as u64 + round,
                "the page of space {i} in round {round}"
            );
            assert_eq!(
                peek(KERNEL_PAGE),
                1_000_000,
                "the kernel's page in space {i}"
            );
            poke(PAGE, i as u64 + round + 1);
        }
    }
    for (i, space) in spaces.iter().enumerate() {
        switch(*space, 0);
        assert_eq!(peek(PAGE), i as u64 + 3);
    }

    // A change in a space that is not the current one.
    let (here, there) = (spaces[0], spaces[1]);
    for value in 0..20 {
        switch(there, NO_FLUSH);
        let before = peek(PAGE);
        switch(here, NO_FLUSH);
        there.map(PAGE, frame_with(5000 + value), pte::WRITE);
        switch(there, NO_FLUSH);
        assert!(
            [before, 5000 + value].contains(&peek(PAGE)),
            "neither the old page nor the new one"
        );
        switch(here, NO_FLUSH);
        switch(there, 0);
        assert_eq!(
            peek(PAGE),
            5000 + value,
            "a switch without bit 63 forgets the old page"
        );
    }

    // A change of the kernel half is flushed in all.
    for (value, kind) in [(1, LGUEST_FLUSH_ALL), (2, LGUEST_FLUSH_ONE)] {
        boot.map(KERNEL_PAGE, frame_with(value), pte::WRITE);
        hypercall::flush_tlb(kind, KERNEL_PAGE);
        for space in spaces {
            switch(space, NO_FLUSH);
            assert_eq!(
                peek(KERNEL_PAGE),
                value,
                "a changed page of the kernel half"
            );
        }
    }

    // A root that is dropped, and made into another one.
    for value in 0..10 {
        switch(spaces[2], NO_FLUSH);
        peek(PAGE);
        switch(here, NO_FLUSH);
        assert_eq!(hypercall::drop_root(spaces[2].0), 0, "DROP_ROOT");
        // SAFETY: nobody uses this root's lower half.
        unsafe { gpa_to_ptr::<u64>(spaces[2].0).write_bytes(0, 256) };
        spaces[2].map(PAGE, frame_with(7000 + value), 0);
        switch(spaces[2], NO_FLUSH);
        assert_eq!(peek(PAGE), 7000 + value, "a root made anew");
    }

    // MOV to CR3, which the Host emulates, is the same as the hypercall.
    for space in [spaces[3], spaces[4]] {
        let cr3: u64;
        // SAFETY: every space here has the kernel's half.
        unsafe { asm!("mov cr3, {}", "mov {}, cr3", in(reg) space.0, out(reg) cr3) };
        assert_eq!(cr3, space.0, "CR3 after MOV to CR3");
    }
    assert_eq!(peek(PAGE), 4 + 3);
    println!("{SPACES} address spaces keep apart");
    0
}
