// SPDX-License-Identifier: GPL-2.0
//! Bad roots and bad page tables.

#![no_std]
#![no_main]

use lguest_guest::abi::{LGUEST_FLUSH_ALL, LGUEST_FLUSH_USER};
use lguest_guest::event::vector;
use lguest_guest::paging::{
    alloc_frame, current_root, gpa_to_ptr, pte, ram_end, AddressSpace, PAGE,
};
use lguest_guest::{entry, hypercall, irq, println, shared_read};
use lguest_guest_tests::{code, in_kernel_with, peek, poke, Random, User};
use lguest_hostile_guests::commit;

entry!(main);

/// Bit 63 of CR3: what is cached for the root stays.
const KEEP: u64 = 1 << 63;

fn main() -> u8 {
    commit(&[
        ("root-outside", || load(1 << 37)),
        ("root-past-the-end", || load(ram_end())),
        ("root-at-a-device", || load(0xd000_0000)),
        ("root-at-the-end-of-addresses", || load(pte::ADDRESS)),
        ("root-three-calls-deep", three_calls_deep),
        ("root-of-zeros", || load_and_flush(alloc_frame())),
        ("root-of-garbage", root_of_garbage),
        ("root-becomes-zeros", root_becomes_zeros),
        ("table-outside", || table(1 << 37)),
        ("table-at-a-device", || table(0xd000_0000)),
        ("table-is-itself", table_is_itself),
        ("reserved-bits", reserved_bits),
        ("hole", hole),
        ("drop-the-current-root", drop_the_current_root),
        ("many-roots", many_roots),
        ("many-flushes", many_flushes),
        ("many-tables", many_tables),
        ("drop-a-thousand", drop_a_thousand),
        ("garbage-in-use", garbage_in_use),
    ])
}

fn load(root: u64) {
    hypercall::write_cr3(root);
}

/// Functions whose names and order lg finds on the stack when the last of them has killed the Guest.
fn three_calls_deep() {
    core::hint::black_box(deep_outer(1 << 37));
}

#[no_mangle]
#[inline(never)]
extern "C" fn deep_outer(root: u64) -> u64 {
    1 + core::hint::black_box(deep_middle(root))
}

#[no_mangle]
#[inline(never)]
extern "C" fn deep_middle(root: u64) -> u64 {
    1 + core::hint::black_box(deep_inner(root))
}

#[no_mangle]
#[inline(never)]
extern "C" fn deep_inner(root: u64) -> u64 {
    load(root);
    core::hint::black_box(root)
}

/// The kernel half stays cached over a change of roots, and the Guest lives on it until a flush.
fn load_and_flush(root: u64) {
    load(root);
    hypercall::flush_tlb(LGUEST_FLUSH_ALL, 0);
}

fn fill_with_garbage(frame: u64, seed: u64) {
    let mut random = Random(seed);
    for i in 0..512 {
        // SAFETY: a frame of ours.
        unsafe {
            gpa_to_ptr::<u64>(frame)
                .add(i)
                .write_volatile(random.number())
        };
    }
}

fn root_of_garbage() {
    let root = alloc_frame();
    fill_with_garbage(root, 1);
    load_and_flush(root);
}

fn root_becomes_zeros() {
    let space = AddressSpace::new();
    space.activate();
    // SAFETY: none of this is safe: it takes away the code that is running.
    unsafe { gpa_to_ptr::<u8>(space.0).write_bytes(0, PAGE as usize) };
    hypercall::flush_tlb(LGUEST_FLUSH_ALL, 0);
}

/// A level-3 entry that points to a table at `gpa`.
fn table(gpa: u64) {
    let space = AddressSpace::new();
    // SAFETY: an entry of our own tables.
    unsafe {
        space
            .entry(0x4000_0000, 3)
            .write_volatile(gpa | pte::PRESENT | pte::WRITE | pte::USER)
    };
    space.activate();
    peek(0x4000_0000);
}

/// A recursive mapping, as some kernels have: the top level is its own level 3, 2 and 1.
fn table_is_itself() {
    const SLOT: u64 = 5;
    let space = AddressSpace::new();
    let frame = space.map_new_user(0x4000_0000);
    // SAFETY: an entry of our own tables.
    unsafe {
        gpa_to_ptr::<u64>(space.0 + SLOT * 8)
            .write_volatile(space.0 | pte::PRESENT | pte::WRITE | pte::USER)
    };
    space.activate();
    let itself = (SLOT << 39) | (SLOT << 30) | (SLOT << 21) | (SLOT << 12);
    for _ in 0..100 {
        assert_eq!(
            peek(itself + SLOT * 8) & pte::ADDRESS,
            space.0,
            "the root, seen through itself"
        );
        // The entry that maps 0x40000000, seen as memory; a change there, and a flush, changes the mapping.
        let entry = (SLOT << 39) | (0x4000_0000 >> 9);
        let other = if peek(entry) & pte::ADDRESS == frame {
            alloc_frame()
        } else {
            frame
        };
        poke(entry, other | pte::PRESENT | pte::WRITE | pte::USER);
        hypercall::flush_tlb(LGUEST_FLUSH_USER, 0);
        poke(0x4000_0000, other);
        assert_eq!(peek(0x4000_0000), other);
        // SAFETY: a frame of ours.
        let word = unsafe { gpa_to_ptr::<u64>(other).read_volatile() };
        assert_eq!(word, other, "the page it maps now");
    }
    // Tables that are pages, accessed and dirty bits that are data: the Host must only stay sane.
    for i in 0..512 {
        in_kernel_with(code!("mov (%rsi), %rax"), (SLOT << 39) | (i << 30));
        in_kernel_with(
            code!("mov (%rsi), %rax"),
            (SLOT << 39) | (SLOT << 30) | (i << 21),
        );
    }
}

fn reserved_bits() {
    let user = User::new();
    user.space
        .map(0x4000_0000, alloc_frame() | (1 << 50), pte::USER);
    let frame = user.run(code!("mov 0x40000000, %eax"));
    assert_eq!(
        (frame.vector, frame.error_code),
        (vector::PAGE_FAULT, 0xd),
        "a reserved bit in level 1"
    );
    // SAFETY: an entry of our own tables.
    unsafe {
        *user.space.entry(0x8000_0000, 2) = (0x1000 << 1) | pte::PRESENT | pte::USER | pte::LARGE
    };
    let frame = user.run(code!("mov $0x80000000, %eax", "mov (%rax), %eax"));
    assert_eq!(
        (frame.vector, frame.error_code),
        (vector::PAGE_FAULT, 0xd),
        "a reserved bit in level 2"
    );
    assert_eq!(shared_read!(cr2), 0x8000_0000);
}

/// The Guest maps something where the switcher is.
fn hole() {
    let space = AddressSpace::new();
    let frame = alloc_frame();
    for slot in 256..=271u64 {
        space.map((0xffff << 48) | (slot << 39), frame, pte::WRITE | pte::USER);
    }
    space.activate();
    for slot in 256..=269u64 {
        poke((0xffff << 48) | (slot << 39), slot);
        assert_eq!(
            peek((0xffff << 48) | (slot << 39)),
            slot,
            "the rest of the hole is the guest's"
        );
    }
    peek(0xffff_8780_0000_0000);
}

fn drop_the_current_root() {
    let user = User::new();
    for _ in 0..1000 {
        assert_eq!(hypercall::drop_root(current_root()), 0);
        assert_eq!(user.run(code!("nop")).vector, vector::INVALID_OPCODE);
        hypercall::drop_root(1 << 50);
        hypercall::drop_root(u64::MAX);
    }
}

/// More roots than the Host keeps contexts for.
fn many_roots() {
    let start = irq::rdtsc();
    for _ in 0..4000 {
        let space = AddressSpace::new();
        assert_eq!(hypercall::write_cr3(space.0 | (1 << 63)), 0);
    }
    let us = irq::ticks_to_ns(irq::rdtsc() - start) / 1000;
    println!("4000 roots in {us} us");
}

fn many_flushes() {
    let user = User::new();
    let mut random = Random(3);
    for _ in 0..20_000 {
        hypercall::flush_tlb(random.number() as u32 % 4, random.number());
    }
    assert_eq!(user.run(code!("nop")).vector, vector::INVALID_OPCODE);
}

/// An address space with one table behind all entries of the tables above it: a lot of shadow for little RAM.
fn one_page_everywhere() -> AddressSpace {
    let space = AddressSpace::new();
    space.map_new_user(0x4000_0000);
    // SAFETY: two entries of our own tables.
    let (level3, level2) = unsafe { (*space.entry(0x4000_0000, 3), *space.entry(0x4000_0000, 2)) };
    let table = |entry: u64| gpa_to_ptr::<u64>(entry & pte::ADDRESS);
    let top = gpa_to_ptr::<u64>(space.0);
    // SAFETY: our own tables.
    let level3_table = unsafe { table(*top) };
    for i in 0..512 {
        // SAFETY: as above.
        unsafe {
            *level3_table.add(i) = level3;
            *table(level3).add(i) = level2;
        }
    }
    space
}

fn many_tables() {
    one_page_everywhere().activate();
    for i in 0..30_000 {
        let gva = i << 21;
        poke(gva, i);
        assert_eq!(peek(0x4000_0000), i, "one page behind all of them");
    }
}

/// Whatever the Guest forgets at once, its Host, whose interrupts are off meanwhile, is done with it in far less time than
/// it took to make. For a machine on which the ticks are instructions (`scripts/testhost --icount`); elsewhere they are time,
/// and whatever else happens meanwhile is in them.
fn drop_a_thousand() {
    const TABLES: u64 = 1000;
    let space = one_page_everywhere();
    let top = gpa_to_ptr::<u64>(space.0);
    // SAFETY: the lower half of our own table.
    unsafe { (1..256).for_each(|i| *top.add(i) = *top) };
    // As many roots as the Host keeps, more or less.
    let others = [(); 120].map(|()| AddressSpace::new());
    let flush = |what| {
        hypercall::flush_tlb(what, 0);
    };
    let ways: [(&str, &dyn Fn()); 5] = [
        ("flush all", &|| flush(LGUEST_FLUSH_ALL)),
        ("flush user", &|| flush(LGUEST_FLUSH_USER)),
        ("load CR3", &|| load(space.0)),
        ("drop the root", &|| {
            hypercall::drop_root(space.0);
        }),
        ("drop another root", &|| {
            load(others[0].0 | KEEP);
            hypercall::drop_root(space.0);
        }),
    ];
    for (name, way) in ways {
        let once = |_| {
            others.iter().for_each(|other| load(other.0 | KEEP));
            load(space.0 | KEEP);
            let start = irq::rdtsc();
            // Spread as far as they go.
            (0..TABLES).for_each(|i| poke(((i % 256) << 39) | ((i / 256) << 21), i));
            let made = irq::rdtsc();
            way();
            let dropped = irq::rdtsc();
            (dropped - made, made - start)
        };
        // The best of several: the Host's own interrupts may take their time in between.
        let (drop, make) = (0..8).map(once).min().expect("eight times");
        println!("{name}: {TABLES} tables made in {make} ticks, dropped in {drop}");
        assert!(drop < make / 50, "{name}: that takes too long");
    }
}

/// Random flags, and all the bits that mean nothing, in every level of tables that are used.
fn garbage_in_use() {
    const PAGE: u64 = 0x4000_0000;
    let user = User::new();
    let space = user.space;
    let mut random = Random(4);
    space.map_new_user(PAGE);
    let good = [1, 2, 3].map(|level| space.entry(PAGE, level));
    // SAFETY: entries of our own tables.
    let values = good.map(|entry| unsafe { entry.read_volatile() });
    for round in 0..2000 {
        for (entry, value) in good.iter().zip(values) {
            let flags = random.number() & !pte::ADDRESS & !pte::LARGE;
            // SAFETY: as above; nothing else is mapped by them.
            unsafe {
                entry.write_volatile(value & pte::ADDRESS | flags | random.number() & pte::PRESENT)
            };
        }
        hypercall::flush_tlb(round % 3, PAGE);
        user.run(code!("mov 0x40000000, %eax"));
        user.run(code!("mov %eax, 0x40000000"));
        user.run(code!("mov $0x40000000, %eax", "jmp *%rax"));
    }
}
