// SPDX-License-Identifier: GPL-2.0
//! A monitor below the kernel: its memory in every root, the kernel's SYSCALLs that it gets, and its own that the Host
//! gets. This Guest is both. On the command line, "stepped" is for a debugger that steps it: less of it, then.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_guest::event::{set_handler, vector};
use lguest_guest::paging::{
    alloc_frame, current_root, gpa_of, gpa_to_ptr, pte, ram_end, AddressSpace,
};
use lguest_guest::{
    abi, command_line, entry, hypercall, irq, println, shared_read, shared_write, user,
};
use lguest_guest_tests::monitor::{self, MONITOR, NOTE};
use lguest_guest_tests::{
    code, in_kernel, in_kernel_with, peek, poke, Code, User, CODE as USER_CODE, STACK_TOP,
};

entry!(main);

const MIB: u64 = 1 << 20;
/// The trap flag, which shows where a debugger steps over a PUSHF.
const TF: u64 = 1 << 8;
/// Where it sees all of RAM, without code.
const ALIAS: u64 = 0xffff_8080_0000_0000;
/// A page that nobody may write.
const READ_ONLY: u64 = 0xffff_8000_0000_0000;
/// A slot that the monitor has nothing in.
const EMPTY: u64 = 0xffff_8200_0000_0000;

fn main() -> u8 {
    // In the root that is current: slots which will not be looked at any more, and are cached now.
    let before = AddressSpace::current();
    for slot in [ALIAS, EMPTY] {
        let frame = alloc_frame();
        before.map(slot, frame, pte::WRITE);
        poke(slot, 0x1111);
    }
    let tables = make_tables();
    assert_eq!(
        hypercall::set_monitor(monitor::entry(), tables.0),
        0,
        "SET_MONITOR"
    );

    assert_eq!(monitor::calls(), 0, "SET_MONITOR was a hypercall still");
    registers();
    forwards(tables);
    if command_line() == "stepped" {
        println!("stepped");
        return 0;
    }
    memory(tables);
    every_root(tables);
    let user = User::new();
    user_mode(&user);
    system_calls(&user);
    events_of_the_monitor();
    events_of_the_kernel(&user);
    println!("{} calls of the monitor", monitor::calls());
    0
}

/// The monitor's tables: nothing but its slots. All in large pages but one.
fn make_tables() -> AddressSpace {
    let root = monitor::tables();
    for gpa in (0..ram_end()).step_by(2 * MIB as usize) {
        root.map_large(ALIAS + gpa, gpa, pte::WRITE | pte::NX);
    }
    let frame = alloc_frame();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<u64>(frame).write_volatile(0x2222) };
    root.map(READ_ONLY, frame, pte::NX);
    root
}

/// What the monitor finds at its entry point, and the kernel after it.
fn registers() {
    const GS_BASE: u64 = 0xffff_8123_4567_8000;
    // SAFETY: nothing of Rust's is reached through GS.
    unsafe { asm!("wrgsbase {}", in(reg) GS_BASE) };
    for (flags, interrupts) in [(0, false), (0x8d5, true), (1 << 10, false), (1 << 21, true)] {
        let enabled = if interrupts { irq::FLAG_IF } else { 0 };
        shared_write!(irq_enabled, enabled);
        let (rsp, rip, rax, rcx, r11, rflags): (u64, u64, u64, u64, u64, u64);
        // SAFETY: the monitor keeps all registers but RAX, RCX and R11. RFLAGS are put back.
        unsafe {
            asm!(
                "pushfq",
                "push {flags}",
                "popfq",
                "mov %rsp, {rsp}",
                "lea 2f(%rip), {rip}",
                "syscall",
                "2: pushfq",
                "pop {flags}",
                "popfq",
                flags = inout(reg) flags | 2 | irq::FLAG_IF => rflags,
                rsp = out(reg) rsp,
                rip = out(reg) rip,
                inlateout("rax") NOTE => rax,
                in("rdi") 0xd1u64, in("rsi") 0x51u64, in("rdx") 0xd2u64,
                lateout("rcx") rcx, lateout("r11") r11,
                options(att_syntax)
            );
        }
        assert_eq!(
            shared_read!(irq_enabled),
            enabled,
            "virtual IF after the call"
        );
        shared_write!(irq_enabled, 0);
        let found = monitor::noted();
        assert_eq!(
            (rax, rcx, r11),
            (NOTE, 0x1234, 0x5678),
            "what the monitor returned"
        );
        assert_eq!(
            rflags & !TF,
            flags | 2 | irq::FLAG_IF,
            "RFLAGS after the call"
        );
        assert_eq!(found.saved_rip, rip, "RIP behind the SYSCALL");
        assert_eq!(
            found.saved_rflags,
            flags | 2 | enabled,
            "RFLAGS, with the virtual IF"
        );
        assert_eq!(found.rsp, rsp, "the kernel's RSP");
        assert_eq!(found.gs_base, GS_BASE);
        assert_eq!(found.irq_enabled, 0, "virtual interrupts are off");
        assert_eq!(
            found.rflags & !(0x8d5 | TF),
            2 | irq::FLAG_IF,
            "RFLAGS there"
        );
        assert_eq!((found.rdi, found.rsi, found.rdx), (0xd1, 0x51, 0xd2));
        assert_eq!(found.at, monitor::entry());
        assert_ne!((found.rcx, found.r11), (rip, flags), "RCX and R11 are lost");
    }
    assert_eq!(monitor::calls(), 4);
}

/// A SYSCALL of the monitor's own is a hypercall, from the direct return to those that the Host has to see.
fn forwards(tables: AddressSpace) {
    let before = monitor::calls();
    assert_eq!(
        hypercall::set_monitor(monitor::entry(), current_root()),
        -16,
        "a second monitor is EBUSY"
    );
    assert_eq!(
        hypercall::set_monitor(monitor::entry(), tables.0),
        0,
        "the entry point of the first"
    );
    assert_eq!(hypercall::hypercall(0x999, [0; 5]), -38, "ENOSYS");
    assert_eq!(monitor::calls(), before + 3);
}

/// What the monitor has in its slots, the kernel sees with the rights that its tables give.
fn memory(tables: AddressSpace) {
    // No flush but that of SET_MONITOR has been since the kernel's own pages were there.
    let image = gpa_of(main as *const u8);
    assert_eq!(
        peek(ALIAS + image),
        peek(main as *const u8 as u64),
        "the alias of RAM"
    );
    assert_eq!(peek(READ_ONLY), 0x2222);
    let kernel = |what: &str, code: Code, at: u64, error: u64| {
        let frame = in_kernel_with(code, at).unwrap_or_else(|| panic!("{what} was allowed"));
        assert_eq!(
            (frame.vector, frame.error_code, shared_read!(cr2)),
            (vector::PAGE_FAULT, error, at),
            "{what}"
        );
    };
    kernel(
        "a read where the monitor has nothing",
        code!("mov (%rsi), %rax"),
        EMPTY,
        0,
    );
    kernel("a write", code!("movb $1, (%rsi)"), READ_ONLY, 3);
    kernel("a fetch from the alias", code!("call *%rsi"), ALIAS, 0x11);

    // Its tables are cached like all tables.
    tables.unmap(READ_ONLY);
    hypercall::flush_tlb(abi::LGUEST_FLUSH_ONE, READ_ONLY);
    kernel(
        "a read of what is gone",
        code!("mov (%rsi), %rax"),
        READ_ONLY,
        0,
    );
    let frame = alloc_frame();
    // SAFETY: a frame of ours.
    unsafe { gpa_to_ptr::<u64>(frame).write_volatile(0x3333) };
    tables.map(READ_ONLY, frame, pte::NX);
    assert_eq!(peek(READ_ONLY), 0x3333);
    assert_eq!(
        tables.accessed_dirty(READ_ONLY),
        (true, false),
        "accessed, and not dirty"
    );
}

/// The slots are the monitor's whatever CR3 is, and whatever the root says there.
fn every_root(tables: AddressSpace) {
    let first = current_root();
    for _ in 0..3 {
        let space = AddressSpace::new();
        for slot in 256..=270 {
            // SAFETY: an entry of a root of ours.
            unsafe { gpa_to_ptr::<u64>(space.0).add(slot).write_volatile(0) };
        }
        space.activate();
        assert_eq!(peek(READ_ONLY), 0x3333);
        let other = alloc_frame();
        space.map(READ_ONLY, other, pte::WRITE);
        space.map(EMPTY, other, pte::WRITE);
        hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
        assert_eq!(peek(READ_ONLY), 0x3333);
        assert!(
            in_kernel_with(code!("mov (%rsi), %rax"), EMPTY).is_some(),
            "the root's own entry was looked at"
        );
    }
    hypercall::drop_root(tables.0);
    AddressSpace(first).activate();
    assert_eq!(
        peek(READ_ONLY),
        0x3333,
        "after DROP_ROOT of the monitor's root"
    );
}

/// User mode has nothing there.
fn user_mode(user: &User) {
    for at in [
        MONITOR,
        ALIAS,
        READ_ONLY,
        EMPTY,
        abi::LGUEST_SHARED_VA as u64,
    ] {
        for (code, error) in [
            (code!("mov (%rsi), %rax"), 4),
            (code!("movb $1, (%rsi)"), 6),
            (code!("jmp *%rsi"), 0x14),
        ] {
            let frame = user.run_with(code, at);
            assert_eq!(
                (
                    frame.vector,
                    frame.error_code & !1,
                    frame.from_user(),
                    shared_read!(cr2)
                ),
                (vector::PAGE_FAULT, error, true, at),
                "user mode at {at:#x}"
            );
        }
    }
}

/// Those of user mode go to the kernel, and the monitor sees but the return.
fn system_calls(user: &User) {
    for n in 1..100 {
        let mut frame = user.load(code!("syscall"));
        frame.rax = n;
        let before = monitor::calls();
        user::run(&mut frame);
        assert_eq!(
            (frame.vector, frame.rip, frame.rax, frame.rsp),
            (vector::SYSCALL, USER_CODE + 2, n, STACK_TOP)
        );
        assert_eq!(monitor::calls(), before + 1, "the kernel's ERET");
    }
}

/// An exception in the monitor is one of kernel mode.
fn events_of_the_monitor() {
    let frame = in_kernel_with(
        code!("mov %rsi, %rdi", "mov $0x1001, %eax", "syscall"),
        EMPTY,
    );
    let frame = frame.expect("the monitor's load was allowed");
    assert_eq!(
        (frame.vector, frame.error_code, frame.from_user()),
        (vector::PAGE_FAULT, 0, false)
    );
    assert_eq!(frame.rip >> 39, MONITOR >> 39, "RIP is the monitor's");
    let frame = in_kernel_with(
        code!("mov %rsi, %rdi", "mov $0x1001, %eax", "syscall"),
        READ_ONLY,
    );
    assert!(frame.is_none());
    // A trap flag that SYSCALL saved goes on behind the return.
    let frame = in_kernel(code!(
        "mov $0x1000, %eax",
        "pushfq",
        "orq $0x100, (%rsp)",
        "popfq",
        "syscall",
        "nop" =>
        "nop"
    ));
    let frame = frame.expect("there was no #DB");
    assert_eq!(frame.vector, vector::DEBUG);
}

/// Interrupts come while the kernel runs, and wait while the monitor does.
fn events_of_the_kernel(user: &User) {
    static TICKS: AtomicU64 = AtomicU64::new(0);
    static IN_MONITOR: AtomicU64 = AtomicU64::new(0);
    const CALLS: u64 = 30_000;
    set_handler(
        u64::from(abi::LGUEST_VECTOR_TIMER),
        Some(|frame| {
            TICKS.fetch_add(1, Relaxed);
            if !frame.from_user() && frame.rip >> 39 == MONITOR >> 39 {
                IN_MONITOR.fetch_add(1, Relaxed);
            }
            hypercall::set_timer(300_000);
        }),
    );
    hypercall::set_timer(300_000);
    irq::enable();
    for n in 0..CALLS {
        assert_eq!(hypercall::hypercall(NOTE, [n; 5]), NOTE as i64);
    }
    let ticks = TICKS.load(Relaxed);
    assert!(ticks > 3, "the timer ticked {ticks} times in the kernel");
    assert_eq!(
        IN_MONITOR.load(Relaxed),
        0,
        "an interrupt came in the monitor"
    );

    let mut frame = user.load(code!("6: dec %rsi", "jnz 6b"));
    frame.rsi = 20_000_000;
    user::run(&mut frame);
    assert_eq!(frame.vector, vector::INVALID_OPCODE);
    assert!(TICKS.load(Relaxed) > ticks + 3, "it ticked in user mode");

    // HALT lets them in: there, the monitor is what an interrupt finds.
    irq::disable();
    let ticks = TICKS.load(Relaxed);
    while TICKS.load(Relaxed) < ticks + 3 {
        irq::halt();
        irq::disable();
    }
    assert!(
        IN_MONITOR.load(Relaxed) >= 3,
        "who halts is interrupted there"
    );
    hypercall::set_timer(u64::MAX);
}
