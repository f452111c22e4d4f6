// SPDX-License-Identifier: GPL-2.0
//! Makes page tables that are known, and waits: `lg pagetable` looks at them from outside.

#![no_std]
#![no_main]

use lguest_guest::paging::{alloc_frame, alloc_frames, pte, AddressSpace};
use lguest_guest::{entry, hypercall, println};
use lguest_guest_tests::{peek, poke};

entry!(main);

/// For both modes, never written, not to be executed.
const READ: u64 = 0x4000_2000;
/// For kernel mode, and written.
const WRITTEN: u64 = 0x4000_3000;
/// A large page of both modes, which nobody has touched.
const LARGE: u64 = 0x6000_0000;

fn main() -> u8 {
    let space = AddressSpace::new();
    let (read, written) = (alloc_frame(), alloc_frame());
    let large = alloc_frames(2 << 20);
    space.map(READ, read, pte::USER | pte::NX);
    space.map(WRITTEN, written, pte::WRITE);
    space.map_large(LARGE, large, pte::WRITE | pte::USER);
    space.activate();
    peek(READ + 8);
    poke(WRITTEN, 1);
    println!("read {read:#x} written {written:#x} large {large:#x}");
    loop {
        hypercall::halt();
    }
}
