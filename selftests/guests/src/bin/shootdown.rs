// SPDX-License-Identifier: GPL-2.0
//! When FLUSH_VCPUS has returned, no vCPU uses an old translation any more, in either half, while they all flush each
//! other or sleep.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use lguest_guest::abi::{
    LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE, LGUEST_FLUSH_RANGE, LGUEST_FLUSH_USER,
};
use lguest_guest::event::set_handler;
use lguest_guest::paging::{alloc_frame, gpa_to_ptr, pte, AddressSpace, PAGE};
use lguest_guest::{abi, entry, hypercall, irq, println, smp};
use lguest_guest_tests::several::wait_until;

entry!(main);

const MAX: usize = smp::MAX as usize;
/// A page for each vCPU, in both halves.
const LOWER: u64 = 0x4000_0000;
const UPPER: u64 = 0xffff_a000_0000_0000;
/// What is in a page that is no longer this one's.
const POISON: u64 = 0xbad0_bad0_bad0_bad0;
const GOOD: u64 = 1;

static READS: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];
static DONE: AtomicBool = AtomicBool::new(false);
static READY: AtomicU32 = AtomicU32::new(0);
/// A page that alternates between two frames, at each address.
static FRAMES: [[AtomicU64; 2]; 2 * MAX] = [const { [const { AtomicU64::new(0) }; 2] }; 2 * MAX];

fn page(n: usize) -> u64 {
    (if n < MAX { LOWER } else { UPPER }) + (n % MAX) as u64 * PAGE
}

fn write_frame(frame: u64, value: u64) {
    // SAFETY: a frame of ours, in the direct map.
    unsafe { gpa_to_ptr::<u64>(frame).write_volatile(value) };
}

/// Makes page `n` lead to the other of its frames, flushes that, and poisons the frame that it led to.
fn change(space: AddressSpace, n: usize, round: u64, flush: impl Fn(u64)) {
    let [old, new] = [round, round + 1].map(|r| FRAMES[n][r as usize % 2].load(SeqCst));
    write_frame(new, GOOD);
    space.map(page(n), new, pte::WRITE);
    flush(page(n));
    write_frame(old, POISON);
}

fn check(n: usize) {
    // SAFETY: the page is mapped all the time.
    let value = unsafe { (page(n) as *const u64).read_volatile() };
    assert_eq!(value, GOOD, "vCPU {} at {:#x}", smp::vcpu(), page(n));
}

fn flush(set: u64, kind: u32, gva: u64) {
    let result = hypercall::flush_vcpus(set, kind, gva, gva + 1);
    assert_eq!(result, 0, "FLUSH_VCPUS {kind}");
}

fn wait_for_others() {
    wait_until(|| others().all(|id| !smp::is_on(id)));
}

/// Where many vCPUs read on few CPUs, each of these takes a turn of all.
fn rounds() -> u64 {
    u64::from((100 / smp::count()).max(5))
}

fn others() -> impl Iterator<Item = u32> {
    1..smp::count()
}

fn main() -> u8 {
    let space = AddressSpace::current();
    assert!(smp::count() >= 2, "this needs lg run --smp");
    for (n, frames) in FRAMES.iter().enumerate() {
        for frame in frames {
            frame.store(alloc_frame(), SeqCst);
        }
        write_frame(frames[0].load(SeqCst), GOOD);
        space.map(page(n), frames[0].load(SeqCst), pte::WRITE);
    }
    let kinds = [
        ("FLUSH_ONE", LGUEST_FLUSH_ONE),
        ("FLUSH_RANGE", LGUEST_FLUSH_RANGE),
        ("FLUSH_ALL", LGUEST_FLUSH_ALL),
        ("FLUSH_USER", LGUEST_FLUSH_USER),
    ];
    for (name, kind) in kinds {
        for n in [0, MAX] {
            if kind != LGUEST_FLUSH_USER || n == 0 {
                one_changes_others_read(space, n, kind);
            }
        }
        println!("{name}");
    }
    everybody_changes();
    println!("all flush each other");
    one_sleeps();
    println!("one sleeps");
    0
}

/// The others spin, reading. Each of them has to read the page many times after it was changed, before it is changed
/// again.
fn one_changes_others_read(space: AddressSpace, n: usize, kind: u32) {
    DONE.store(false, SeqCst);
    for id in others() {
        let read = |n| {
            while !DONE.load(SeqCst) {
                check(n as usize);
                READS[smp::vcpu() as usize].fetch_add(1, SeqCst);
            }
        };
        smp::start(id, read, n as u64).unwrap();
    }
    let reads = |id: u32| READS[id as usize].load(SeqCst);
    let each_has_read = || {
        for id in others() {
            let before = reads(id);
            wait_until(|| reads(id) >= before + 100);
        }
    };
    for round in 0..rounds() {
        each_has_read();
        change(space, n, round, |gva| flush(smp::all(), kind, gva));
        check(n);
    }
    each_has_read();
    DONE.store(true, SeqCst);
    wait_for_others();
}

/// Each vCPU changes a page of its own in each half, and reads those of all.
fn everybody_changes() {
    READY.store(0, SeqCst);
    let run = |_| {
        let (space, me) = (AddressSpace::current(), smp::vcpu() as usize);
        READY.fetch_add(1, SeqCst);
        wait_until(|| READY.load(SeqCst) == smp::count());
        for round in 0..rounds() {
            for n in [me, MAX + me] {
                change(space, n, round, |gva| smp::flush_page(smp::all(), gva));
                (0..smp::count() as usize).for_each(|id| check(n / MAX * MAX + id));
            }
        }
    };
    for id in others() {
        smp::start(id, run, 0).unwrap();
    }
    run(0);
    wait_for_others();
}

/// One flushes, while the others sleep most of the time: nothing is waited for that does not come.
fn one_sleeps() {
    let space = AddressSpace::current();
    set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(|_| {}));
    DONE.store(false, SeqCst);
    for id in others() {
        let sleep = |_| {
            while !DONE.load(SeqCst) {
                irq::disable();
                hypercall::set_timer(50_000);
                irq::halt();
                check(0);
            }
            irq::disable();
        };
        smp::start(id, sleep, 0).unwrap();
    }
    for round in 0..500 {
        change(space, 0, round, |gva| smp::flush_page(smp::all(), gva));
    }
    DONE.store(true, SeqCst);
    wait_for_others();
}
