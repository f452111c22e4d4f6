// SPDX-License-Identifier: GPL-2.0
//! A flush of everything does not make the Guest fault for each page again that it goes on to use: neither where it
//! switches between address spaces by loads of CR3 that flush, as a kernel without PCIDs does, nor where it flushes for a
//! change of few pages.
//!
//! Says how many ticks that takes; on a machine whose ticks are instructions (`scripts/testhost --icount`) that is what
//! it costs.

#![no_std]
#![no_main]

use lguest_guest::abi::{LGUEST_FLUSH_ALL, LGUEST_FLUSH_USER};
use lguest_guest::paging::{AddressSpace, PAGE};
use lguest_guest::{entry, hypercall, irq, println};
use lguest_guest_tests::{peek, poke};

entry!(main);

/// A program's text, its data, its heap, two libraries and the stack, each in a table of its own.
const PLACES: [u64; 6] = [
    0x40_0000,
    0x5555_5560_0000,
    0x5555_5580_0000,
    0x7fff_f7c0_0000,
    0x7fff_f7e0_0000,
    0x7fff_ffe0_0000,
];
/// Pages in use of each, so far apart that the Host finds no two by one fault.
const PAGES: u64 = 10;
const APART: u64 = 16 * PAGE;

fn pages() -> impl Iterator<Item = u64> {
    PLACES
        .into_iter()
        .flat_map(|place| (0..PAGES).map(move |n| place + n * APART))
}

fn ticks(f: impl FnOnce()) -> u64 {
    let start = irq::rdtsc();
    f();
    irq::rdtsc() - start
}

fn main() -> u8 {
    let spaces = [(); 2].map(|()| {
        let space = AddressSpace::new();
        pages().for_each(|gva| {
            space.map_new_user(gva);
        });
        space
    });
    let touch = |value: u64| pages().for_each(|gva| poke(gva, value));
    let check = |value: u64| pages().for_each(|gva| assert_eq!(peek(gva), value, "{gva:#x}"));

    // The first time each is a fault, of which the Host knows the memory already.
    let mut first = u64::MAX;
    for space in spaces {
        space.activate();
        touch(0);
        hypercall::drop_root(space.0);
        first = first.min(ticks(|| touch(1)));
    }

    let flush = |what| assert_eq!(hypercall::flush_tlb(what, 0), 0, "FLUSH_TLB");
    let mut turn = 0;
    let ways: [(&str, &mut dyn FnMut()); 3] = [
        ("load CR3", &mut || {
            turn += 1;
            spaces[turn % 2].activate();
        }),
        ("flush user", &mut || flush(LGUEST_FLUSH_USER)),
        ("flush all", &mut || flush(LGUEST_FLUSH_ALL)),
    ];
    for (name, way) in ways {
        spaces.iter().for_each(|space| {
            space.activate();
            touch(7);
        });
        // The best of several: the Host's own interrupts may take their time in between.
        let best = (0..16).map(|_| {
            ticks(|| {
                way();
                check(7);
            })
        });
        let best = best.min().expect("sixteen times");
        println!("{name}, then 60 pages: {best} ticks; at first they took {first}");
        assert!(
            best < first / 3,
            "{name}: the pages have to be faulted in again"
        );
    }
    0
}
