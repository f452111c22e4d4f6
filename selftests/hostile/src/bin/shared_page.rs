// SPDX-License-Identifier: GPL-2.0
//! The shared page under a Guest that writes anything anywhere in it.

#![no_std]
#![no_main]

use core::mem::offset_of;
use core::sync::atomic::Ordering::Relaxed;
use lguest_guest::abi::{lguest_shared, LGUEST_EVENT_VALID, LGUEST_FLUSH_ALL, LGUEST_SHARED_VA};
use lguest_guest::event::{set_handler, take_spurious_faults, vector, Frame, Handler};
use lguest_guest::paging::{AddressSpace, PAGE};
use lguest_guest::{entry, hypercall, irq, shared_read, shared_write};
use lguest_guest_tests::{arm, code, in_kernel, poke, Random, User, FIRED};
use lguest_hostile_guests::commit;

entry!(main);

const NON_CANONICAL: u64 = 0x8000_0000_0000;
const KERNEL_NOTHING: u64 = 0xffff_a000_0000_0000;
/// The switcher's.
const SLOT: u64 = 0xffff_8780_0000_0000;
/// Pages of which the Host notes that they are not there when one of them faults.
const FORESEEN: u64 = 0x4000_0000;
const FORESEEN_PAGES: u64 = 16;

fn main() -> u8 {
    commit(&[
        ("garbage-everywhere", garbage_everywhere),
        ("garbage-from-a-handler", garbage_from_a_handler),
        ("garbage-interrupt-flag", garbage_interrupt_flag),
        ("execute-the-shared-page", execute_the_shared_page),
        ("map-over-the-shared-page", map_over_the_shared_page),
        ("beyond-the-shared-page", beyond_the_shared_page),
        ("foreseen-garbage", foreseen_garbage),
        ("foreseen-without-stack", || {
            foreseen(|_| shared_write!(kernel_rsp, KERNEL_NOTHING))
        }),
        ("foreseen-with-non-canonical-stack", || {
            foreseen(|_| shared_write!(kernel_rsp, NON_CANONICAL))
        }),
        ("foreseen-with-stack-in-the-slot", || {
            foreseen(|_| shared_write!(kernel_rsp, SLOT + 0x2000))
        }),
        ("foreseen-without-entry", || {
            foreseen(|_| {
                let entries =
                    hypercall::set_entries(KERNEL_NOTHING, KERNEL_NOTHING, KERNEL_NOTHING);
                assert_eq!(entries, 0, "SET_ENTRIES");
            })
        }),
        ("foreseen-behind-another-event", || {
            foreseen(|_| shared_write!(event, u64::from(LGUEST_EVENT_VALID)))
        }),
    ])
}

/// Random numbers into all words but the two that a Guest needs to stay alive: `event` and `kernel_rsp`.
fn scribble(random: &mut Random) {
    const KEPT: [usize; 2] = [
        offset_of!(lguest_shared, event),
        offset_of!(lguest_shared, kernel_rsp),
    ];
    for offset in (0..4096).step_by(8).filter(|offset| !KEPT.contains(offset)) {
        poke(LGUEST_SHARED_VA as u64 + offset as u64, random.number());
    }
}

fn exercise(user: &User) {
    assert_eq!(user.run(code!("nop")).vector, vector::INVALID_OPCODE);
    assert_eq!(user.run(code!("syscall")).vector, vector::SYSCALL);
    assert!(in_kernel(code!("int3")).is_some());
    hypercall::flush_tlb(0, 0);
    irq::disable();
    arm(0);
    irq::enable();
    while !FIRED.load(Relaxed) {
        core::hint::spin_loop();
    }
}

fn garbage_everywhere() {
    let user = User::new();
    let mut random = Random(9);
    set_handler(
        u64::from(lguest_guest::abi::LGUEST_VECTOR_TIMER),
        Some(|_| ()),
    );
    for _ in 0..200 {
        scribble(&mut random);
        exercise(&user);
    }
}

fn garbage_from_a_handler() {
    let user = User::new();
    for vector in [vector::BREAKPOINT, vector::SYSCALL] {
        set_handler(
            vector,
            Some(|frame: &mut Frame| scribble(&mut Random(frame.rdx | 1))),
        );
    }
    for round in 0..200 {
        let mut frame = user.load(code!("int3", "syscall", "int3"));
        frame.rdx = round;
        lguest_guest::user::run(&mut frame);
        assert_eq!(frame.vector, vector::INVALID_OPCODE);
    }
}

/// Only bit 9 counts.
fn garbage_interrupt_flag() {
    arm(0);
    for bit in (0..64).filter(|bit| *bit != 9) {
        shared_write!(irq_enabled, 1 << bit);
        hypercall::irq_window();
        assert!(
            !FIRED.load(Relaxed),
            "an interrupt came with bit {bit} set alone"
        );
    }
    shared_write!(irq_enabled, u64::MAX);
    while !FIRED.load(Relaxed) {
        hypercall::irq_window();
    }
    assert_eq!(shared_read!(event), 0);
}

fn execute_the_shared_page() {
    set_handler(vector::PAGE_FAULT, None);
    poke(LGUEST_SHARED_VA as u64 + 2048, 0xc3);
    // SAFETY: ends in an event, or in the RET just stored.
    let frame = in_kernel(code!("movabs $0xffff870000000800, %rax", "call *%rax"));
    assert!(
        frame.is_some_and(|frame| frame.vector == vector::PAGE_FAULT),
        "the shared page is not executable"
    );
}

/// A mapping of the Guest's own at that address does not hide it.
fn map_over_the_shared_page() {
    let user = User::new();
    let shared = LGUEST_SHARED_VA as u64;
    let frame = lguest_guest::paging::alloc_frame();
    let tables = lguest_guest::paging::alloc_frame();
    // A level-4 entry of our own: no table of the boot root is touched.
    // SAFETY: an entry of our own root.
    unsafe {
        lguest_guest::paging::gpa_to_ptr::<u64>(user.space.0 + 270 * 8).write_volatile(tables | 7)
    };
    user.space.map(shared, frame, 6);
    hypercall::flush_tlb(lguest_guest::abi::LGUEST_FLUSH_ALL, 0);
    for round in 0..100 {
        shared_write!(cr2, round);
        assert_eq!(shared_read!(cr2), round);
        exercise(&user);
    }
    // SAFETY: a frame of ours.
    let word = unsafe { lguest_guest::paging::gpa_to_ptr::<u64>(frame).read_volatile() };
    assert_eq!(word, 0, "the guest's own page is hidden");
}

/// What comes after the one shared page is the Guest's own business: nothing is there.
fn beyond_the_shared_page() {
    let frame = in_kernel(code!(
        "movabs $0xffff870000001000, %rax",
        "mov (%rax), %rax"
    ));
    assert!(frame.is_some_and(|frame| frame.vector == vector::PAGE_FAULT));
    let frame = in_kernel(code!(
        "movabs $0xffff870000000ffc, %rax",
        "mov (%rax), %rax"
    ));
    assert!(frame.is_some_and(|frame| frame.vector == vector::PAGE_FAULT));
}

fn map_what_faulted(_: &mut Frame) {
    AddressSpace::current().map_new_user(shared_read!(cr2) & !(PAGE - 1));
}

/// A page fault that the switcher gives to the kernel by itself, when the kernel has done `crime` just before.
fn foreseen(crime: Handler) {
    take_spurious_faults(true);
    set_handler(vector::PAGE_FAULT, Some(map_what_faulted));
    set_handler(vector::BREAKPOINT, Some(crime));
    User::new().run_with(
        code!("mov (%rsi), %rax", "int3", "mov 0x1000(%rsi), %rax"),
        FORESEEN,
    );
}

/// Faults with garbage in the page before each of them and in its handler.
fn foreseen_garbage() {
    let user = User::new();
    set_handler(
        vector::PAGE_FAULT,
        Some(|frame: &mut Frame| {
            map_what_faulted(frame);
            scribble(&mut Random(frame.rdx | 1));
        }),
    );
    set_handler(
        vector::SYSCALL,
        Some(|frame: &mut Frame| scribble(&mut Random(frame.rdx | 2))),
    );
    for round in 0..200 {
        let mut frame = user.load(code!(
            "6: incl (%rsi)",
            "add $0x1000, %rsi",
            "syscall",
            "dec %edi",
            "jnz 6b"
        ));
        (frame.rdx, frame.rsi, frame.rdi) = (round << 2, FORESEEN, FORESEEN_PAGES);
        lguest_guest::user::run(&mut frame);
        assert_eq!(frame.vector, vector::INVALID_OPCODE);
        for n in 0..FORESEEN_PAGES {
            assert_eq!(lguest_guest_tests::peek32(FORESEEN + n * PAGE), 1);
            user.space.unmap(FORESEEN + n * PAGE);
        }
        assert_eq!(hypercall::flush_tlb(LGUEST_FLUSH_ALL, 0), 0);
    }
}
