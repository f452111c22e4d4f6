// SPDX-License-Identifier: GPL-2.0
//! Monitors that are none: bad entry points, bad roots, bad tables.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_guest::abi::{LGUEST_FLUSH_ALL, LHCALL_COUNT, LHCALL_SET_MONITOR};
use lguest_guest::event::{set_handler, vector};
use lguest_guest::hypercall::{flush_tlb, hypercall, set_entries, set_monitor};
use lguest_guest::paging::{
    alloc_frame, current_root, gpa_of, gpa_to_ptr, pte, ram_end, AddressSpace, PAGE,
};
use lguest_guest::{entry, println, shared_read};
use lguest_guest_tests::{code, in_kernel_with, monitor, peek, Random};
use lguest_hostile_guests::commit;

entry!(main);

const EBUSY: i64 = -16;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;

/// Slot 256, 260, and the one behind the last.
const FIRST: u64 = 0xffff_8000_0000_0000;
const MIDDLE: u64 = 0xffff_8200_0000_0000;
const BEHIND: u64 = 0xffff_8780_0000_0000;
/// An address of the kernel's where nothing is.
const KERNEL_NOTHING: u64 = 0xffff_a000_0000_0000;

fn main() -> u8 {
    commit(&[
        ("bad-arguments", bad_arguments),
        ("twice", twice),
        ("entry-not-mapped", || {
            no_events();
            set(alloc_frame());
        }),
        ("entry-appears", entry_appears),
        ("root-becomes-zeros", root_becomes_zeros),
        ("root-of-garbage", root_of_garbage),
        ("reserved-bits", || entry_of_root(1 << 50)),
        ("table-outside", || entry_of_root(1 << 37)),
        ("table-at-the-end-of-addresses", || {
            entry_of_root(((1 << 46) - 1) & pte::ADDRESS)
        }),
        ("code-at-a-device", || code_at(1 << 37)),
        ("table-is-itself", table_is_itself),
        ("calls-itself-for-ever", calls_itself),
        ("the-switcher's-slot", the_switchers_slot),
        ("map-over-the-shared-page", map_over_the_shared_page),
    ])
}

/// From here on, an event is the end.
fn no_events() {
    assert_eq!(
        set_entries(KERNEL_NOTHING, KERNEL_NOTHING, KERNEL_NOTHING),
        0
    );
}

/// Has the monitor at `root`, and calls it.
fn set(root: u64) {
    assert_eq!(set_monitor(monitor::entry(), root), 0, "SET_MONITOR");
    hypercall(u64::from(LHCALL_COUNT), [0; 5]);
}

fn bad_arguments() {
    let (entry, root) = (monitor::entry(), monitor::tables().0);
    let image = main as *const u8 as u64;
    for bad in [
        0,
        1,
        image,
        FIRST - 1,
        FIRST & ((1 << 48) - 1),
        FIRST ^ (1 << 63),
        BEHIND,
        BEHIND + PAGE,
        u64::MAX,
        1 << 63,
        1 << 47,
    ] {
        assert_eq!(set_monitor(bad, root), EINVAL, "entry point {bad:#x}");
    }
    for bad in [
        root + 1,
        root + 8,
        root | (1 << 63),
        ram_end(),
        ram_end() - 8,
        0xd000_0000,
        1 << 37,
        1 << 38,
        1 << 52,
        pte::ADDRESS,
        u64::MAX,
    ] {
        assert_eq!(set_monitor(entry, bad), EINVAL, "root {bad:#x}");
    }
    let mut random = Random(11);
    for _ in 0..5000 {
        // RAM of 128 MiB at the bottom of 2^52: a number that is right is rare, but not one of these.
        let arguments = [random.number() | (1 << 62), random.number() | 8, 0, 0, 0];
        assert_eq!(
            hypercall(u64::from(LHCALL_SET_MONITOR), arguments),
            EINVAL,
            "{arguments:x?}"
        );
    }
    // There is none: this is the Host's answer.
    assert_eq!(hypercall(u64::from(LHCALL_COUNT), [0; 5]), ENOSYS);
    assert_eq!(monitor::calls(), 0);
}

fn twice() {
    let root = monitor::tables().0;
    set(root);
    for (entry, root) in [
        (monitor::entry(), root + PAGE),
        (FIRST, alloc_frame()),
        (0, 0),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(set_monitor(entry, root), EBUSY, "a second one");
    }
    for entry in [0, BEHIND, u64::MAX] {
        assert_eq!(set_monitor(entry, root), EINVAL, "entry point {entry:#x}");
    }
    assert_eq!(set_monitor(monitor::entry(), root), 0, "the same one");
    assert_eq!(monitor::calls(), 9);
}

/// The fault is an event like any other, which the kernel survives if it takes the call for lost: what the shared page had
/// of it is overwritten.
fn entry_appears() {
    static ROOT: AtomicU64 = AtomicU64::new(0);
    static BEHIND_THE_CALL: AtomicU64 = AtomicU64::new(0);
    ROOT.store(alloc_frame(), Relaxed);
    set_handler(
        vector::PAGE_FAULT,
        Some(|frame| {
            assert_eq!(
                (shared_read!(cr2), frame.rip, frame.error_code),
                (monitor::entry(), monitor::entry(), 0x10)
            );
            // SAFETY: entries of our own tables.
            unsafe {
                let slot = gpa_to_ptr::<u64>(ROOT.load(Relaxed) + 270 * 8);
                let tables = gpa_to_ptr::<u64>(monitor::tables().0 + 270 * 8);
                slot.write_volatile(tables.read_volatile());
            }
            frame.rip = BEHIND_THE_CALL.load(Relaxed);
        }),
    );
    assert_eq!(set_monitor(monitor::entry(), ROOT.load(Relaxed)), 0);
    // SAFETY: the handler, which keeps all registers, goes on behind the call.
    unsafe {
        asm!(
            "lea 2f(%rip), %rcx",
            "mov %rcx, ({where})",
            "syscall",
            "2:",
            where = in(reg) BEHIND_THE_CALL.as_ptr(),
            in("rax") u64::from(LHCALL_COUNT), out("rcx") _, out("r11") _,
            options(att_syntax)
        );
    }
    // The handler's return, and this.
    assert_eq!(hypercall(u64::from(LHCALL_COUNT), [0; 5]), ENOSYS);
    assert_eq!(monitor::calls(), 2);
}

fn root_becomes_zeros() {
    let root = monitor::tables();
    set(root.0);
    no_events();
    // SAFETY: none of this is safe: it takes away what serves the kernel.
    unsafe { gpa_to_ptr::<u8>(root.0).write_bytes(0, PAGE as usize) };
    flush_tlb(LGUEST_FLUSH_ALL, 0);
    flush_tlb(LGUEST_FLUSH_ALL, 0);
}

fn root_of_garbage() {
    let root = alloc_frame();
    let mut random = Random(12);
    for i in 0..512 {
        // SAFETY: a frame of ours.
        unsafe {
            gpa_to_ptr::<u64>(root)
                .add(i)
                .write_volatile(random.number())
        };
    }
    no_events();
    set(root);
}

/// A root whose entry for the code is `entry`.
fn entry_of_root(entry: u64) {
    let root = alloc_frame();
    no_events();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<u64>(root + 270 * 8).write_volatile(entry | pte::PRESENT) };
    set(root);
}

/// The code is on a page at `gpa`.
fn code_at(gpa: u64) {
    let root = AddressSpace(alloc_frame());
    root.map(monitor::entry() & !(PAGE - 1), gpa, 0);
    set(root.0);
}

/// The root is its own level 3, 2 and 1: the kernel changes the monitor's tables by the monitor's slots.
fn table_is_itself() {
    let root = monitor::tables();
    let itself = (0xffff << 48) | (256 << 39) | (256 << 30) | (256 << 21) | (256 << 12);
    // SAFETY: an entry of our own tables.
    unsafe {
        gpa_to_ptr::<u64>(root.0 + 256 * 8).write_volatile(root.0 | pte::PRESENT | pte::WRITE)
    };
    set(root.0);
    assert_eq!(peek(itself + 256 * 8) & pte::ADDRESS, root.0);
    let frame = alloc_frame();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<u64>(frame).write_volatile(0x4444) };
    root.map(MIDDLE, frame, 0);
    assert_eq!(peek(MIDDLE), 0x4444);
    lguest_guest_tests::poke(itself + 260 * 8, 0);
    flush_tlb(LGUEST_FLUSH_ALL, 0);
    assert!(in_kernel_with(code!("mov (%rsi), %rax"), MIDDLE).is_some());
}

/// Its first instruction is a SYSCALL from outside of the slot of its code.
fn calls_itself() {
    let root = AddressSpace(alloc_frame());
    let frame = alloc_frame();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<[u8; 2]>(frame).write_volatile([0x0f, 0x05]) };
    root.map(MIDDLE, frame, 0);
    println!("spinning");
    assert_eq!(set_monitor(MIDDLE, root.0), 0, "SET_MONITOR");
    hypercall(u64::from(LHCALL_COUNT), [0; 5]);
}

fn the_switchers_slot() {
    let root = monitor::tables();
    for at in (0..PAGE).step_by(0x1000) {
        root.map(BEHIND + at, gpa_of(main as *const u8), pte::WRITE);
    }
    set(root.0);
    peek(BEHIND);
}

/// The contract's page stays where it is, whatever the monitor's tables say.
fn map_over_the_shared_page() {
    let root = monitor::tables();
    let frame = alloc_frame();
    root.map(
        lguest_guest::abi::LGUEST_SHARED_VA as u64,
        frame,
        pte::WRITE,
    );
    set(root.0);
    assert_eq!(
        shared_read!(abi_version),
        lguest_guest::abi::LGUEST_ABI_VERSION
    );
    AddressSpace(current_root()).activate();
    flush_tlb(LGUEST_FLUSH_ALL, 0);
    assert_eq!(
        shared_read!(abi_version),
        lguest_guest::abi::LGUEST_ABI_VERSION
    );
}
