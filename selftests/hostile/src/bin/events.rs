// SPDX-License-Identifier: GPL-2.0
//! Events that cannot be delivered, Guests that never stop, and garbage in the state to resume.

#![no_std]
#![no_main]

use core::arch::asm;
use lguest_guest::abi::LGUEST_EVENT_VALID;
use lguest_guest::event::{self, set_handler, vector, Frame, KERNEL_CS, USER32_CS, USER_CS};
use lguest_guest::{entry, hypercall, irq, println, shared_read, shared_write, user};
use lguest_guest_tests::{arm, code, in_kernel, Random, User, CODE, NOTHING};
use lguest_hostile_guests::commit;

entry!(main);

const NON_CANONICAL: u64 = 0x8000_0000_0000;
const KERNEL_NOTHING: u64 = 0xffff_a000_0000_0000;
const EINVAL: i64 = -22;

fn main() -> u8 {
    commit(&[
        ("event-not-taken", event_not_taken),
        ("event-not-taken-by-a-handler", event_not_taken_by_a_handler),
        ("no-stack", no_stack),
        ("non-canonical-stack", non_canonical_stack),
        ("stack-overflow", stack_overflow),
        ("entry-not-mapped", entry_not_mapped),
        ("bad-entries", bad_entries),
        ("spin-with-interrupts-off", || {
            irq::disable();
            loop {
                core::hint::spin_loop();
            }
        }),
        // For who must know when it spins.
        ("tell-and-spin-with-interrupts-off", || {
            println!("spinning");
            irq::disable();
            loop {
                core::hint::spin_loop();
            }
        }),
        // Most of its time is the switcher's.
        ("system-calls-for-ever", || {
            set_handler(vector::SYSCALL, Some(|_| ()));
            println!("spinning");
            User::new().run(code!("6: syscall", "jmp 6b"));
        }),
        // Each of them carries a single step over the border: the switcher itself gets a #DB (on Bochs; QEMU
        // drops it).
        ("single-steps-for-ever", || {
            set_handler(vector::SYSCALL, Some(|_| ()));
            set_handler(vector::DEBUG, Some(|_| ()));
            println!("spinning");
            User::new().run(code!("push $0x102", "popf", "6: syscall", "jmp 6b"));
        }),
        ("hypercalls-for-ever", || {
            println!("spinning");
            loop {
                hypercall::flush_tlb(99, 0);
            }
        }),
        ("spin-in-user-mode", || {
            User::new().run(code!("6: jmp 6b"));
        }),
        ("fault-for-ever", fault_for_ever),
        ("fault-for-ever-in-the-kernel", fault_for_ever_in_the_kernel),
        ("halt-for-ever", irq::halt),
        ("halt-with-interrupts-off", halt_with_interrupts_off),
        ("interrupt-storm", interrupt_storm),
        ("eret-flags", eret_flags),
        ("eret-cs", eret_cs),
        ("eret-rip", eret_rip),
        ("eret-rsp", eret_rsp),
        ("eret-gs-base", eret_gs_base),
        ("eret-garbage", eret_garbage),
    ])
}

fn event_not_taken() {
    shared_write!(event, u64::from(LGUEST_EVENT_VALID));
    // SAFETY: ends the Guest.
    unsafe { asm!("ud2") };
}

fn event_not_taken_by_a_handler() {
    set_handler(
        vector::BREAKPOINT,
        Some(|_| {
            shared_write!(event, u64::from(LGUEST_EVENT_VALID) | 3);
            // SAFETY: ends the Guest.
            unsafe { asm!("int3") };
        }),
    );
    // SAFETY: as above.
    unsafe { asm!("int3") };
}

fn no_stack() {
    // SAFETY: ends the Guest.
    unsafe { asm!("mov {}, %rsp", "ud2", in(reg) KERNEL_NOTHING, options(att_syntax)) };
}

fn non_canonical_stack() {
    // SAFETY: as above.
    unsafe { asm!("mov {}, %rsp", "ud2", in(reg) NON_CANONICAL + 0x1000, options(att_syntax)) };
}

/// The page below the stack is not there, as in a kernel with guard pages.
fn stack_overflow() {
    let user = User::new();
    user.space.map_new_user(NOTHING);
    // SAFETY: ends the Guest.
    unsafe {
        asm!("mov {}, %rsp", "6: push %rax", "jmp 6b", in(reg) NOTHING + 4096, options(att_syntax))
    };
}

fn entry_not_mapped() {
    assert_eq!(
        hypercall::set_entries(KERNEL_NOTHING, KERNEL_NOTHING, KERNEL_NOTHING),
        0
    );
    // SAFETY: ends the Guest.
    unsafe { asm!("ud2") };
}

fn bad_entries() {
    let good = main as usize as u64;
    for bad in [
        0,
        CODE,
        NON_CANONICAL,
        !NON_CANONICAL & 0xffff_7fff_ffff_ffff,
        1 << 63,
    ] {
        for [a, b, c] in [[bad, good, good], [good, bad, good], [good, good, bad]] {
            assert_eq!(
                hypercall::set_entries(a, b, c),
                EINVAL,
                "SET_ENTRIES with {bad:#x}"
            );
        }
    }
    assert!(
        in_kernel(code!("ud2")).is_some(),
        "the old entries are still there"
    );
}

fn fault_for_ever() {
    set_handler(vector::PAGE_FAULT, Some(|_| ()));
    User::new().run(code!("mov 0x800000, %eax"));
}

fn fault_for_ever_in_the_kernel() {
    set_handler(vector::INVALID_OPCODE, Some(|_| ()));
    // SAFETY: never goes on.
    unsafe { asm!("ud2") };
}

fn halt_with_interrupts_off() {
    irq::disable();
    // SAFETY: ends the Guest.
    unsafe { asm!("hlt") };
}

/// A handler that arms the timer for at once: the Guest gets nowhere, the Host does.
fn interrupt_storm() {
    set_handler(
        u64::from(lguest_guest::abi::LGUEST_VECTOR_TIMER),
        Some(|_| {
            hypercall::set_timer(0);
        }),
    );
    irq::enable();
    hypercall::set_timer(0);
    loop {
        core::hint::spin_loop();
    }
}

/// Bits of RFLAGS that only a real kernel may set: IOPL, VM, VIF, VIP and the reserved ones; for the
/// Guest kernel, whose IRET it would fail, NT too.
fn eret_flags() {
    const NT: u64 = 1 << 14;
    const FORBIDDEN: u64 =
        !(0x8d5 | 2 | (1 << 8) | irq::FLAG_IF | (1 << 10) | NT | (1 << 16) | (1 << 18) | (1 << 21));
    const TF: u64 = 1 << 8;
    let user = User::new();
    for bit in 0..64 {
        let flags = 1 << bit;
        let mut frame = user.load(code!("pushf", "pop %rax", "nop"));
        frame.rflags = flags;
        user::run(&mut frame);
        if flags == TF {
            assert_eq!(frame.vector, vector::DEBUG, "TF in user mode traps");
            continue;
        }
        assert_eq!(
            frame.vector,
            vector::INVALID_OPCODE,
            "after ERET with flag {bit}: {frame:x?}"
        );
        assert_eq!(
            frame.rax & FORBIDDEN,
            0,
            "RFLAGS that user mode sees after ERET with flag {bit}"
        );
        assert_eq!(
            frame.rflags & FORBIDDEN,
            0,
            "RFLAGS in the frame after ERET with flag {bit}"
        );
    }
    for bit in (0..64).filter(|bit| 1 << bit != TF) {
        static FLAGS: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
        FLAGS.store(1 << bit, core::sync::atomic::Ordering::Relaxed);
        set_handler(
            vector::BREAKPOINT,
            Some(|frame: &mut Frame| {
                frame.rflags = FLAGS.load(core::sync::atomic::Ordering::Relaxed);
            }),
        );
        let flags: u64;
        // SAFETY: the handler resumes after INT3, with a flag that is put back to 0 at once.
        unsafe {
            asm!("int3", "pushf", "pop {}", "push $2", "popf", out(reg) flags, options(att_syntax))
        };
        // The Guest kernel may not have AC either: its memory accesses would fault.
        assert_eq!(
            flags & (FORBIDDEN | NT | (1 << 18)),
            0,
            "RFLAGS in the kernel after ERET with flag {bit}"
        );
        set_handler(vector::BREAKPOINT, None);
    }
    irq::disable();
}

/// Writes the state to resume and calls ERET, which must refuse it.
fn assert_refused(rip: u64, cs: u64) {
    shared_write!(rip, rip);
    shared_write!(cs, cs);
    shared_write!(rflags, 2);
    let code = code!("mov $0, %eax" => "syscall");
    let frame = in_kernel(code).expect("ERET with a bad frame");
    let expected = (
        vector::GENERAL_PROTECTION,
        0,
        KERNEL_CS,
        code.start as u64 + code.rip,
    );
    let found = (frame.vector, frame.error_code, frame.cs, frame.rip);
    assert_eq!(found, expected, "ERET with CS {cs:#x}, RIP {rip:#x}");
}

fn eret_cs() {
    let refused = |cs: u64| assert_refused(main as usize as u64, cs);
    (0..0x100)
        .filter(|cs| ![KERNEL_CS, USER_CS, USER32_CS].contains(cs))
        .for_each(refused);
    for bit in 8..64 {
        refused(USER_CS | (1 << bit));
        refused(KERNEL_CS | (1 << bit));
    }
}

fn eret_rip() {
    for rip in [NON_CANONICAL, 1 << 63, 0xffff_7fff_ffff_ffff] {
        assert_refused(rip, KERNEL_CS);
        assert_refused(rip, USER_CS);
    }
    assert_refused(1 << 32, USER32_CS);
}

fn eret_rsp() {
    let user = User::new();
    for rsp in [NON_CANONICAL, 1 << 63, u64::MAX, 0, 7] {
        let mut frame = user.load(code!("nop", "mov %rsp, %rax", "push %rax"));
        frame.rsp = rsp;
        user::run(&mut frame);
        assert_eq!(frame.rax, rsp, "any RSP is loaded");
        assert_ne!(frame.vector, vector::INVALID_OPCODE, "and not useful");
    }
}

fn eret_gs_base() {
    let user = User::new();
    for base in [NON_CANONICAL, 1 << 63, 0xdead_beef_dead_beef] {
        shared_write!(user_gs_base, base);
        let frame = user.run(code!("rdgsbase %rax"));
        assert_eq!(frame.vector, vector::INVALID_OPCODE, "{frame:x?}");
        assert_eq!(
            (frame.rax as i64) << 16 >> 16,
            frame.rax as i64,
            "user mode's GS base is canonical"
        );
    }
}

/// Random frames into user mode.
fn eret_garbage() {
    let user = User::new();
    let mut random = Random(5);
    let state = user.load(code!(
        "pushf",
        "popf",
        "push %rax",
        "pop %rax",
        "mov (%rax), %rbx",
        "int3"
    ));
    arm(u64::MAX);
    for round in 0..5000 {
        let mut frame = state;
        frame.rflags = random.number();
        frame.rsp = if round % 2 == 0 {
            random.number()
        } else {
            frame.rsp
        };
        frame.ss = random.number();
        frame.cs = if round % 3 == 0 { USER32_CS } else { USER_CS };
        frame.rip = match round % 4 {
            0 if frame.cs == USER_CS => random.number() >> 17,
            0 => random.number() >> 32,
            _ => frame.rip,
        };
        frame.rax = random.number();
        shared_write!(user_gs_base, random.number());
        user::run(&mut frame);
        assert!(frame.from_user(), "{frame:x?}");
        assert_eq!(shared_read!(event), 0);
    }
    event::init();
}
