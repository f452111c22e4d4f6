// SPDX-License-Identifier: GPL-2.0
//! Several CPUs: each runs what it is told to, and all see memory alike.

use crate::sys::{check, in_child, spawn, wait, Map, PAGE, RW};
use crate::Test;
use std::hint::spin_loop;
use std::ptr;
use std::sync::atomic::{
    compiler_fence, AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst,
};
use std::sync::Barrier;
use std::thread;

pub(crate) const TESTS: &[Test] = &[
    ("each CPU runs what it is told to", each_runs),
    ("a process that goes from CPU to CPU", migrating),
    ("a futex between CPUs", futex_between_cpus),
    ("all run at a time", all_run),
    ("pages that move under writers", pages_that_move),
    (
        "pages that are protected under writers",
        pages_that_are_protected,
    ),
    ("pages that come and go on all CPUs", pages_on_all),
    ("forks under threads that write", forks_under_writers),
    ("processes that come and go on all CPUs", processes_on_all),
    ("signals from CPU to CPU", signals),
    ("barriers on other CPUs", barriers),
];

/// The CPUs that are there: two at least.
fn cpus() -> usize {
    let cpus = thread::available_parallelism().unwrap().get();
    assert!(cpus >= 2, "there are several CPUs");
    cpus
}

/// Has this thread run on `cpu` and no other.
fn run_on(cpu: usize) {
    // SAFETY: zeros are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set has more bits.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: reads the set.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    check("sched_setaffinity", result);
}

/// Word `n` of the page at `page`, which can be read, and where others may write.
fn word_at(page: usize, n: usize) -> u64 {
    assert!(n < PAGE / 8);
    // SAFETY: callers have the page, and the word is in it.
    unsafe { (page as *const u64).add(n).read_volatile() }
}

fn current() -> usize {
    // SAFETY: asks, and no more.
    check("sched_getcpu", unsafe { libc::sched_getcpu() }) as usize
}

/// Runs `work`, with the number of the CPU, on each at a time.
fn on_each(work: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for cpu in 0..cpus() {
            let work = &work;
            scope.spawn(move || {
                run_on(cpu);
                work(cpu);
            });
        }
    });
}

/// What the vDSO tells of the CPU, without asking the kernel, is what the kernel knows.
fn each_runs() {
    on_each(|cpu| {
        for _ in 0..1000 {
            assert_eq!(current(), cpu);
        }
        let (mut told, mut node) = (u32::MAX, u32::MAX);
        // SAFETY: writes both numbers.
        check("getcpu", unsafe {
            libc::syscall(libc::SYS_getcpu, &mut told, &mut node, 0)
        });
        assert_eq!((told as usize, node), (cpu, 0));
    });
}

fn migrating() {
    let cpus = cpus();
    let map = Map::private(64 * PAGE);
    let word = |page: usize| map.start().wrapping_add(page * PAGE).cast::<u64>();
    for round in 0..500 {
        run_on(round % cpus);
        assert_eq!(current(), round % cpus);
        for page in 0..64 {
            // SAFETY: a word of the map, and no other thread.
            unsafe {
                assert_eq!(
                    word(page).read(),
                    if round == 0 {
                        0
                    } else {
                        (round - 1 + page) as u64
                    }
                );
                word(page).write((round + page) as u64);
            }
        }
        if round % 50 == 0 {
            assert_eq!(in_child(|| 7), 7);
        }
    }
}

fn futex(word: &AtomicU32, operation: i32, value: u32) -> i64 {
    // SAFETY: the word lives as long as the call, which needs no more.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, 0) }
}

/// Two CPUs take turns, and sleep meanwhile.
fn futex_between_cpus() {
    const TURNS: u32 = 4000;
    let turn = AtomicU32::new(0);
    thread::scope(|scope| {
        for me in 0..2 {
            let turn = &turn;
            scope.spawn(move || {
                run_on(me as usize);
                loop {
                    match turn.load(SeqCst) {
                        TURNS => break,
                        now if now % 2 == me => {
                            turn.store(now + 1, SeqCst);
                            futex(turn, libc::FUTEX_WAKE, 1);
                        }
                        now => {
                            futex(turn, libc::FUTEX_WAIT, now);
                        }
                    }
                }
                futex(turn, libc::FUTEX_WAKE, 1);
            });
        }
    });
}

/// Nobody gets there alone.
fn all_run() {
    let there = AtomicU64::new(0);
    let cpus = cpus() as u64;
    on_each(|_| {
        for round in 1..=100 {
            there.fetch_add(1, SeqCst);
            while there.load(SeqCst) < round * cpus {
                spin_loop();
            }
        }
    });
}

/// All other CPUs write into a page while this one moves it: to its new place nobody writes.
fn pages_that_move() {
    let done = AtomicBool::new(false);
    let others = cpus() - 1;
    let place = Map::private(PAGE);
    let address = place.start() as usize;
    thread::scope(|scope| {
        for other in 0..others {
            let done = &done;
            scope.spawn(move || {
                run_on(other + 1);
                let word = (address + 8 * other) as *mut u64;
                let mut n = 0;
                while !done.load(SeqCst) {
                    n += 1;
                    // SAFETY: something is mapped there at any time but for an instant, when the kernel has us wait.
                    unsafe { word.write_volatile(n) };
                }
            });
        }
        run_on(0);
        for _ in 0..500 {
            let to = Map::private(PAGE);
            // SAFETY: both are this test's; MREMAP_DONTUNMAP leaves the old place mapped, with nothing in it.
            let moved = unsafe {
                libc::mremap(
                    place.start().cast(),
                    PAGE,
                    PAGE,
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP,
                    to.start(),
                )
            };
            assert_eq!(moved, to.start().cast());
            let read = || {
                let address = to.start() as usize;
                (0..others).map(|n| word_at(address, n)).collect::<Vec<_>>()
            };
            let first = read();
            for _ in 0..20 {
                assert_eq!(read(), first, "somebody still writes there");
            }
        }
        done.store(true, SeqCst);
    });
}

/// A page is taken from writers, copied, and given back: none of them has written meanwhile.
fn pages_that_are_protected() {
    static WAITING: AtomicU64 = AtomicU64::new(0);
    static GO_ON: AtomicBool = AtomicBool::new(true);
    extern "C" fn wait_for_it(_: i32) {
        WAITING.fetch_add(1, SeqCst);
        while !GO_ON.load(SeqCst) {
            spin_loop();
        }
        WAITING.fetch_sub(1, SeqCst);
    }
    let handler = wait_for_it as extern "C" fn(i32) as usize;
    // SAFETY: the handler uses atomics alone.
    unsafe { libc::signal(libc::SIGSEGV, handler) };
    let done = AtomicBool::new(false);
    let others = cpus() - 1;
    let place = Map::private(PAGE);
    let address = place.start() as usize;
    let protect = |protection| {
        // SAFETY: who writes there meanwhile waits in the handler.
        check("mprotect", unsafe {
            libc::mprotect(address as *mut _, PAGE, protection)
        })
    };
    thread::scope(|scope| {
        for other in 0..others {
            let done = &done;
            scope.spawn(move || {
                run_on(other + 1);
                let word = (address + 8 * other) as *mut u64;
                let mut n = 0;
                while !done.load(SeqCst) {
                    n += 1;
                    // SAFETY: mapped, and if it may not be written, the handler waits until it may.
                    unsafe { word.write_volatile(n) };
                }
            });
        }
        run_on(0);
        for _ in 0..300 {
            GO_ON.store(false, SeqCst);
            protect(libc::PROT_READ);
            let read = || (0..others).map(|n| word_at(address, n));
            let first: Vec<_> = read().collect();
            for _ in 0..20 {
                assert!(
                    read().eq(first.iter().copied()),
                    "somebody still writes there"
                );
            }
            protect(RW);
            GO_ON.store(true, SeqCst);
        }
        done.store(true, SeqCst);
    });
    assert_eq!(WAITING.load(SeqCst), 0);
}

/// Threads of one process map, touch, and unmap.
fn pages_on_all() {
    on_each(|cpu| {
        for round in 1..100 {
            let pages = 1 + (round * 7 + cpu) % 100;
            let map = Map::private(pages * PAGE);
            for page in 0..pages {
                // SAFETY: a word of the map, which is this thread's.
                unsafe {
                    let word = map.start().add(page * PAGE).cast::<u64>();
                    assert_eq!(word.read(), 0, "a new page is empty");
                    word.write(u64::MAX);
                }
            }
        }
    });
}

/// A child has the page as it was at some time, and what threads of its parent write then is not the child's.
fn forks_under_writers() {
    let done = AtomicBool::new(false);
    let others = cpus() - 1;
    let map = Map::private(PAGE);
    let address = map.start() as usize;
    thread::scope(|scope| {
        for other in 0..others {
            let done = &done;
            scope.spawn(move || {
                run_on(other + 1);
                let word = (address + 8 * other) as *mut u64;
                while !done.load(SeqCst) {
                    // SAFETY: this thread's word.
                    unsafe { word.write_volatile(word.read_volatile() + 1) };
                }
            });
        }
        for _ in 0..100 {
            let status = in_child(|| {
                let word = |n: usize| word_at(address, n);
                let first: [u64; 8] = std::array::from_fn(word);
                i32::from((0..50).any(|_| std::array::from_fn::<u64, 8, _>(word) != first))
            });
            assert_eq!(status, 0, "a thread of the parent's writes in the child");
        }
        done.store(true, SeqCst);
    });
}

/// Forks and executions everywhere.
fn processes_on_all() {
    let parents: Vec<_> = (0..2 * cpus())
        .map(|parent| {
            spawn(move || {
                for round in 0..20 {
                    let status = (parent + round) as i32 % 100;
                    let child = spawn(|| {
                        let argument = format!("{status}\0");
                        let program = c"/proc/self/exe";
                        let arguments = [
                            program.as_ptr(),
                            c"--exec".as_ptr(),
                            argument.as_ptr().cast(),
                            ptr::null(),
                        ];
                        // SAFETY: strings that end, and an array that does.
                        unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
                        101
                    });
                    let ended = wait(child);
                    assert!(libc::WIFEXITED(ended) && libc::WEXITSTATUS(ended) == status);
                }
                0
            })
        })
        .collect();
    for parent in parents {
        assert_eq!(wait(parent), 0);
    }
}

/// A thread that computes is interrupted from another CPU.
fn signals() {
    static GOT: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count(_: i32) {
        GOT.fetch_add(1, SeqCst);
    }
    // SAFETY: the handler uses an atomic alone.
    unsafe { libc::signal(libc::SIGUSR1, count as extern "C" fn(i32) as usize) };
    let thread_of = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            run_on(1);
            // SAFETY: asks, and no more.
            thread_of.store(unsafe { libc::gettid() } as u32, SeqCst);
            while !done.load(SeqCst) {
                spin_loop();
            }
        });
        run_on(0);
        while thread_of.load(SeqCst) == 0 {
            spin_loop();
        }
        for n in 1..=500 {
            let thread = thread_of.load(SeqCst);
            // SAFETY: a signal for a thread of this process, which has a handler.
            check("tgkill", unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1)
            });
            while GOT.load(SeqCst) < n {
                spin_loop();
            }
        }
        done.store(true, SeqCst);
    });
}

/// Who stores, has the others go through a barrier and loads, and who stores and loads without any: one of them sees the
/// other.
fn barriers() {
    const REGISTER: i32 = 1 << 4;
    const PRIVATE: i32 = 1 << 3;
    const ROUNDS: usize = 500;
    let membarrier = |command: i32| {
        // SAFETY: takes no memory.
        let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
        check("membarrier", result)
    };
    membarrier(REGISTER);
    let words: Vec<[AtomicU32; 4]> = (0..ROUNDS).map(|_| Default::default()).collect();
    let meet = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            run_on(1);
            for [slow, fast, _, seen] in &words {
                meet.wait();
                fast.store(1, Relaxed);
                compiler_fence(SeqCst);
                seen.store(slow.load(Relaxed), SeqCst);
            }
        });
        run_on(0);
        for [slow, fast, seen, _] in &words {
            meet.wait();
            slow.store(1, Relaxed);
            membarrier(PRIVATE);
            seen.store(fast.load(Relaxed), SeqCst);
        }
    });
    for [_, _, slow, fast] in &words {
        assert!(
            slow.load(SeqCst) == 1 || fast.load(SeqCst) == 1,
            "neither sees the other"
        );
    }
}
