// SPDX-License-Identifier: GPL-2.0
//! Page faults of user mode which are foreseen come without an exit, and a kernel cannot tell them from others. It gets
//! one too many for a page only if it takes such, and once; never in its own mode, for 32-bit code, in another address
//! space or behind a flush.
//!
//! Says how many came from the switcher, which `lg run --stats` has counted as well.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_guest::abi::{
    LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE, LGUEST_FLUSH_RANGE, LGUEST_FLUSH_USER,
};
use lguest_guest::event::{take_spurious_faults, vector, Frame, USER32_CS, USER_CS, USER_SS};
use lguest_guest::paging::{alloc_frame, pte, AddressSpace, PAGE};
use lguest_guest::{abi, entry, hypercall, irq, println, shared_read, shared_write, user};
use lguest_guest_tests::{code, peek, User, CODE, STACK_TOP};

entry!(main);

/// Pages that the Host looks at together, from a multiple of their size.
const PAGES: u64 = 16;
const FIRST: u64 = 0x4000_0000;
const KERNEL_GS_BASE: u64 = 0xffff_8123_4567_8000;
const USER_GS_BASE: u64 = 0x7123_4567_8000;
/// Error codes (SDM volume 3, figure 5-12).
const ABSENT: u64 = 4;
const WRITE: u64 = 2;
const READ_ONLY: u64 = 7;

/// Faults that the switcher must have given us.
static DIRECT: AtomicU64 = AtomicU64::new(0);

fn direct(count: u64) -> u64 {
    DIRECT.fetch_add(count, Relaxed);
    count
}

fn page(n: u64) -> u64 {
    FIRST + n * PAGE
}

fn gs_base() -> u64 {
    let base;
    // SAFETY: reads a register.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack)) };
    base
}

fn main() -> u8 {
    // 32-bit code cannot use a null segment, as 64-bit code can.
    // SAFETY: 64-bit code does not care what these are.
    unsafe { asm!("mov {0:e}, %ds", "mov {0:e}, %es", in(reg) USER_SS, options(att_syntax)) };
    // SAFETY: nothing of Rust's is reached through GS.
    unsafe { asm!("wrgsbase {}", in(reg) KERNEL_GS_BASE) };
    shared_write!(user_gs_base, USER_GS_BASE);
    let user = User::new();
    for asked in [false, true, false] {
        take_spurious_faults(asked);
        first_touch(&user, asked);
        mapped_meanwhile(&user, asked);
        written(&user, asked);
    }
    take_spurious_faults(true);
    flushed(&user);
    other_space(&user);
    not_from_user_mode_of_64_bits(&user);
    let direct = DIRECT.load(Relaxed);
    println!("page faults that were foreseen: {direct}");
    0
}

/// A program that touches `gva` once and is done. Each page fault is looked at, and then `fault` sees to it; says how many
/// there were.
fn touch(user: &User, gva: u64, code: u64, fault: impl Fn()) -> u64 {
    let mut start = user.load(if code & WRITE != 0 {
        code!("mov %rax, (%rsi)")
    } else {
        code!("mov (%rsi), %rax")
    });
    let registers = [
        &mut start.rax,
        &mut start.rbx,
        &mut start.rcx,
        &mut start.rdx,
        &mut start.rdi,
        &mut start.rbp,
        &mut start.r8,
        &mut start.r9,
        &mut start.r10,
        &mut start.r11,
        &mut start.r12,
        &mut start.r13,
        &mut start.r14,
        &mut start.r15,
    ];
    for (n, register) in registers.into_iter().enumerate() {
        *register = 0x1111_1111_1111_1111 * (n as u64 + 1);
    }
    start.rsi = gva;
    // DF and ID, and the results of arithmetic.
    start.rflags |= 0x20_0cd5;
    let mut frame = start;
    for count in 0.. {
        irq::enable();
        user::run(&mut frame);
        irq::disable();
        if frame.vector == vector::INVALID_OPCODE {
            return count;
        }
        let expected = Frame {
            vector: vector::PAGE_FAULT,
            error_code: code,
            // The CPU may say "resume" in the RFLAGS of a fault.
            rflags: start.rflags | frame.rflags & (1 << 16),
            ..start
        };
        assert_eq!(frame, expected, "fault {count} at {gva:#x}");
        assert_eq!((frame.rip, frame.cs, frame.rsp), (CODE, USER_CS, STACK_TOP));
        assert_eq!(shared_read!(cr2), gva);
        assert_eq!(
            (gs_base(), shared_read!(user_gs_base)),
            (KERNEL_GS_BASE, USER_GS_BASE)
        );
        fault();
    }
    0
}

/// Takes the pages out, and whatever is known of them.
fn forget(space: AddressSpace) {
    (0..PAGES).for_each(|n| space.unmap(page(n)));
    assert_eq!(hypercall::flush_tlb(LGUEST_FLUSH_ALL, 0), 0, "FLUSH_TLB");
}

/// Maps all pages when the program touches the first one. From here on the Host knows only that they were not there.
fn map_all_at_the_first(user: &User) {
    forget(user.space);
    let map = || {
        (0..PAGES).for_each(|n| {
            user.space.map_new_user(page(n));
        });
    };
    assert_eq!(touch(user, page(0), ABSENT, map), 1, "the first page");
}

/// Each page is mapped when it faults: that is once.
fn first_touch(user: &User, asked: bool) {
    for code in [ABSENT, ABSENT | WRITE] {
        forget(user.space);
        for n in 0..PAGES {
            // In an order in which no page is the one behind the last.
            let gva = page(n * 7 % PAGES) + 0x123;
            let count = touch(user, gva, code, || {
                user.space.map_new_user(gva & !(PAGE - 1));
            });
            assert_eq!(count, 1, "{gva:#x}");
        }
        direct(if asked { PAGES - 1 } else { 0 });
    }
}

/// All are mapped when one faults. Who takes a fault too many gets it once.
fn mapped_meanwhile(user: &User, asked: bool) {
    map_all_at_the_first(user);
    for n in 1..PAGES {
        let expected = direct(asked.into());
        // What is written last is the program's.
        assert_eq!(
            touch(user, page(n), ABSENT | WRITE, || ()),
            expected,
            "page {n}"
        );
        assert_eq!(peek(page(n)), 0x1111_1111_1111_1111);
        assert_eq!(touch(user, page(n), ABSENT, || ()), 0, "page {n} again");
    }
}

/// Copy on write: pages that are present, and may not be written.
fn written(user: &User, asked: bool) {
    forget(user.space);
    let map = |flags| {
        let frame = alloc_frame();
        (0..PAGES).for_each(|n| user.space.map(page(n), frame, pte::USER | flags));
    };
    map(0);
    (0..PAGES).for_each(|n| assert_eq!(touch(user, page(n), ABSENT, || ()), 0, "a read"));
    for n in [0, 1] {
        let flush = || {
            user.space.map_new_user(page(n));
            assert_eq!(hypercall::flush_tlb(LGUEST_FLUSH_ONE, page(n)), 0);
        };
        assert_eq!(touch(user, page(n), READ_ONLY, flush), 1, "a write");
    }
    direct(asked.into());
    map(pte::WRITE);
    for n in 2..PAGES {
        let expected = direct(asked.into());
        assert_eq!(touch(user, page(n), READ_ONLY, || ()), expected, "page {n}");
        assert_eq!(touch(user, page(n), READ_ONLY, || ()), 0, "page {n} again");
    }
}

/// Its name, how it is done, and which pages it is of.
type Way<'a> = (&'static str, &'a dyn Fn(), &'a dyn Fn(u64) -> bool);

/// What is flushed is not foreseen any more.
fn flushed(user: &User) {
    let ways: [Way; 6] = [
        ("FLUSH_ONE", &|| flush(LGUEST_FLUSH_ONE, page(3), 0), &|n| {
            n == 3
        }),
        (
            "FLUSH_RANGE",
            &|| flush(LGUEST_FLUSH_RANGE, page(3), page(5)),
            &|n| n == 3 || n == 4,
        ),
        ("FLUSH_USER", &|| flush(LGUEST_FLUSH_USER, 0, 0), &|_| true),
        ("FLUSH_ALL", &|| flush(LGUEST_FLUSH_ALL, 0, 0), &|_| true),
        ("WRITE_CR3", &|| user.space.activate(), &|_| true),
        (
            "INVLPG",
            &|| {
                // SAFETY: forgets a translation.
                unsafe { asm!("invlpg ({})", in(reg) page(3), options(att_syntax)) }
            },
            &|n| n == 3,
        ),
    ];
    for (name, way, forgets) in ways {
        map_all_at_the_first(user);
        way();
        for n in 1..PAGES {
            let expected = direct((!forgets(n)).into());
            assert_eq!(
                touch(user, page(n), ABSENT, || ()),
                expected,
                "page {n} after {name}"
            );
        }
    }
}

fn flush(what: u32, first: u64, end: u64) {
    let arguments = [what.into(), first, end, 0, 0];
    let result = hypercall::hypercall(abi::LHCALL_FLUSH_TLB.into(), arguments);
    assert_eq!(result, 0, "FLUSH_TLB");
}

/// What is known of one address space is not of another, even if that is loaded without a flush.
fn other_space(user: &User) {
    const NO_FLUSH: u64 = 1 << 63;
    let other = User::new();
    (0..PAGES).for_each(|n| {
        other.space.map_new_user(page(n));
    });
    user.space.activate();
    map_all_at_the_first(user);
    assert_eq!(
        hypercall::write_cr3(other.space.0 | NO_FLUSH),
        0,
        "WRITE_CR3"
    );
    for n in 1..PAGES {
        assert_eq!(
            touch(&other, page(n), ABSENT, || ()),
            0,
            "page {n} of another space"
        );
    }
    user.space.activate();
}

fn not_from_user_mode_of_64_bits(user: &User) {
    map_all_at_the_first(user);
    // It would be an event without a handler.
    peek(page(1));
    for n in 2..PAGES {
        let code = user.load(code!(".code32", "mov (%esi), %eax", "ud2", ".code64"));
        let mut frame = Frame {
            cs: USER32_CS,
            rsi: page(n),
            ..code
        };
        user::run(&mut frame);
        assert_eq!(
            frame.vector,
            vector::INVALID_OPCODE,
            "page {n} in 32-bit code"
        );
    }
}
