// SPDX-License-Identifier: GPL-2.0
//! Signals from faults, from timers and from others, at any moment, with every register as it was.

use crate::sys::{check, handle, in_child, spawn, wait, Map, PAGE};
use crate::Test;
use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::Relaxed};

pub(crate) const TESTS: &[Test] = &[
    ("a fault's signal and code", faults),
    ("registers over a signal", registers),
    ("a timer that interrupts arithmetic", timer),
    ("a handler on its own stack", alternate_stack),
    ("signals between processes", between_processes),
    ("nested signals", nested),
    ("system calls interrupted and restarted", restarted),
];

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static SKIP: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Notes the signal, and goes on `SKIP` bytes further.
extern "C" fn skip(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    SIGNAL.store(signal, Relaxed);
    // SAFETY: the kernel's structures for this handler.
    unsafe {
        CODE.store((*info).si_code, Relaxed);
        (*context).uc_mcontext.gregs[libc::REG_RIP as usize] += SKIP.load(Relaxed) as i64;
    }
}

extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    COUNT.fetch_add(1, Relaxed);
}

/// The signal that `instruction` (of `len` bytes) causes, and its code.
macro_rules! signal_of {
    ($len:literal, $($instruction:literal),*) => {{
        SIGNAL.store(0, Relaxed);
        SKIP.store($len, Relaxed);
        // SAFETY: the handler goes on behind the instruction.
        unsafe { asm!($($instruction),*, out("rax") _, out("rcx") _, out("rdx") _, options(att_syntax)) };
        (SIGNAL.load(Relaxed), CODE.load(Relaxed))
    }};
}

fn faults() {
    const ILL_ILLOPN: i32 = 2;
    const FPE_INTDIV: i32 = 1;
    const SI_KERNEL: i32 = 0x80;
    const SEGV_MAPERR: i32 = 1;
    for signal in [
        libc::SIGSEGV,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
        libc::SIGBUS,
    ] {
        handle(signal, skip);
    }
    assert_eq!(signal_of!(2, "ud2"), (libc::SIGILL, ILL_ILLOPN));
    assert_eq!(
        signal_of!(2, "xor %ecx, %ecx", "xor %edx, %edx", "div %ecx"),
        (libc::SIGFPE, FPE_INTDIV)
    );
    assert_eq!(signal_of!(0, "int3").0, libc::SIGTRAP);
    assert_eq!(signal_of!(1, "hlt"), (libc::SIGSEGV, SI_KERNEL));
    assert_eq!(signal_of!(1, "cli"), (libc::SIGSEGV, SI_KERNEL));
    assert_eq!(signal_of!(2, "rdmsr"), (libc::SIGSEGV, SI_KERNEL));
    assert_eq!(signal_of!(2, "int $0x21"), (libc::SIGSEGV, SI_KERNEL));
    assert_eq!(
        signal_of!(2, "mov $8, %eax", "mov (%rax), %ecx"),
        (libc::SIGSEGV, SEGV_MAPERR)
    );
    assert_eq!(
        signal_of!(2, "movabs $0x800000000000, %rax", "mov (%rax), %ecx"),
        (libc::SIGSEGV, SI_KERNEL)
    );
}

/// A fault in the middle of code that uses all registers.
fn registers() {
    handle(libc::SIGILL, skip);
    SKIP.store(2, Relaxed);
    for i in 0..2000u64 {
        let seed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let sum: u64;
        // SAFETY: the handler goes on behind UD2.
        unsafe {
            asm!(
                "mov {seed}, %r8", "lea 1({seed}), %r9", "lea 2({seed}), %r10", "lea 3({seed}), %r11",
                "lea 4({seed}), %r12", "lea 5({seed}), %r13", "lea 6({seed}), %r14", "lea 7({seed}), %r15",
                "movq %r8, %xmm7", "movq %r15, %xmm15",
                "stc", "ud2", "adc $0, %r8",
                "add %r9, %r8", "add %r10, %r8", "add %r11, %r8", "add %r12, %r8", "add %r13, %r8",
                "add %r14, %r8", "add %r15, %r8", "movq %xmm7, %r9", "add %r9, %r8", "movq %xmm15, %r9",
                "add %r9, %r8", "mov %r8, {sum}",
                seed = in(reg) seed, sum = lateout(reg) sum,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _,
                out("r14") _, out("r15") _, out("xmm7") _, out("xmm15") _, options(att_syntax)
            );
        }
        assert_eq!(
            sum,
            seed.wrapping_mul(10).wrapping_add(28 + 7 + 1),
            "round {i}"
        );
    }
}

fn set_timer(us: i64) {
    let time = libc::timeval {
        tv_sec: 0,
        tv_usec: us,
    };
    let timer = libc::itimerval {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: reads the structure.
    check("setitimer", unsafe {
        libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut())
    });
}

fn arithmetic() -> f64 {
    (1..200_000).fold(0.0, |sum: f64, i| {
        (sum + f64::from(i).sqrt()).mul_add(0.5, 1.0 / f64::from(i))
    })
}

fn timer() {
    handle(libc::SIGALRM, count);
    let expected = arithmetic();
    set_timer(1000);
    for _ in 0..30 {
        assert_eq!(
            arithmetic().to_bits(),
            expected.to_bits(),
            "arithmetic under a timer"
        );
    }
    set_timer(0);
    assert!(
        COUNT.load(Relaxed) > 10,
        "the timer fired {} times",
        COUNT.load(Relaxed)
    );
}

fn alternate_stack() {
    let stack = Map::private(16 * PAGE);
    let alternate = libc::stack_t {
        ss_sp: stack.start().cast(),
        ss_flags: 0,
        ss_size: 16 * PAGE,
    };
    static STACK: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn where_am_i(_: i32, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
        let local = 0u8;
        STACK.store(&raw const local as usize, Relaxed);
        // SAFETY: ends the process as the test wants.
        unsafe { libc::_exit(if STACK.load(Relaxed) != 0 { 42 } else { 1 }) };
    }
    let status = in_child(|| {
        // SAFETY: the stack outlives the process; RSP is spoilt on purpose, for good.
        unsafe {
            check(
                "sigaltstack",
                libc::sigaltstack(&alternate, ptr::null_mut()),
            );
            handle(libc::SIGSEGV, where_am_i);
            asm!("xor %esp, %esp", "push %rax", options(att_syntax, noreturn));
        }
    });
    assert_eq!(status, 42, "a handler for a fault without a stack");
}

fn between_processes() {
    handle(libc::SIGUSR1, count);
    // SAFETY: takes nothing.
    let parent = unsafe { libc::getpid() };
    let enough = Map::shared(PAGE);
    let child = spawn(|| {
        // Signals that come before the last one is handled are one with it: nobody knows how many it takes.
        let mut sent = 0;
        while sent < 1000 || enough.get(0) == 0 {
            // SAFETY: a signal that its receiver handles.
            unsafe { libc::kill(parent, libc::SIGUSR1) };
            std::thread::yield_now();
            sent += 1;
        }
        0
    });
    let expected = arithmetic();
    while COUNT.load(Relaxed) < 20 {
        assert_eq!(arithmetic().to_bits(), expected.to_bits());
    }
    enough.set(0, 1);
    let mut status = 0;
    // SAFETY: writes the status; a signal may interrupt it.
    while unsafe { libc::waitpid(child, &mut status, 0) } != child {}
    assert_eq!(status, 0);
    // And a process that never makes a system call can be killed.
    let child = spawn(|| loop {
        std::hint::spin_loop();
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    // SAFETY: a child of ours.
    unsafe { libc::kill(child, libc::SIGKILL) };
    assert_eq!(libc::WTERMSIG(wait(child)), libc::SIGKILL);
}

fn nested() {
    extern "C" fn deeper(_: i32, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
        let depth = COUNT.fetch_add(1, Relaxed);
        if depth < 20 {
            let signal = if depth % 2 == 0 {
                libc::SIGUSR2
            } else {
                libc::SIGUSR1
            };
            // SAFETY: unblocks the signal that is being handled, then raises the other one.
            unsafe {
                let mut set = std::mem::zeroed();
                libc::sigfillset(&mut set);
                libc::sigprocmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
                libc::raise(signal);
            }
        }
    }
    // Twenty-one frames with all vector registers are too much for the stack that the standard library has set up.
    let none = libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    // SAFETY: handlers run on the ordinary stack from here on.
    check("sigaltstack", unsafe {
        libc::sigaltstack(&none, ptr::null_mut())
    });
    handle(libc::SIGUSR1, deeper);
    handle(libc::SIGUSR2, deeper);
    // SAFETY: handled above.
    unsafe { libc::raise(libc::SIGUSR1) };
    assert_eq!(COUNT.load(Relaxed), 21);
}

fn restarted() {
    handle(libc::SIGALRM, count);
    set_timer(2000);
    for round in 0..50 {
        // So long that a busy Host does not end it before the timer.
        let time = libc::timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        // SAFETY: reads the structure.
        let result = unsafe { libc::nanosleep(&time, ptr::null_mut()) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((result, error), (-1, Some(libc::EINTR)), "sleep {round}");
    }
    set_timer(0);
}
