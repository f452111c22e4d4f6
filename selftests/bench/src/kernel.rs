// SPDX-License-Identifier: GPL-2.0
//! Common paths of the kernel.

use std::ffi::CStr;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::clock::{count, measure};

fn getppid() {
    // SAFETY: Has no preconditions. Not libc's function, which may not ask the kernel.
    unsafe { libc::syscall(libc::SYS_getppid) };
}

const PAGE: usize = 4096;

/// Maps as many pages of new memory.
fn map(pages: usize) -> *mut u8 {
    // SAFETY: A new private mapping, which nothing else knows of.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(
        start,
        libc::MAP_FAILED,
        "mmap: {}",
        io::Error::last_os_error()
    );
    start.cast()
}

/// Writes to each page of a mapping of [`map`]'s.
fn touch(start: *mut u8, pages: usize) {
    for page in 0..pages {
        // SAFETY: Inside of the mapping.
        unsafe { start.add(page * PAGE).write_volatile(1) };
    }
}

fn unmap(start: *mut u8, pages: usize) {
    // SAFETY: Our own mapping, to which no reference is left.
    unsafe { libc::munmap(start.cast(), pages * PAGE) };
}

/// First touches of anonymous pages, and what their mapping and unmapping costs per page.
fn page_faults(pages: usize) -> u64 {
    let start = map(pages);
    let taken = count(|| touch(start, pages));
    unmap(start, pages);
    taken / pages as u64
}

/// Memory that comes, is used and goes: with more than 33 pages the kernel flushes the whole process.
fn map_and_unmap(pages: usize) {
    let start = map(pages);
    touch(start, pages);
    unmap(start, pages);
}

/// Forks, lets the child do `then`, which does not return, and waits for it.
fn fork(then: fn() -> !) {
    // SAFETY: This program has one thread.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => then(),
        child => {
            let mut status = 0;
            // SAFETY: `status` is ours to write.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(status, 0, "the child failed");
        }
    }
}

fn exit() -> ! {
    // SAFETY: Ends the process.
    unsafe { libc::_exit(0) }
}

/// Becomes another program.
fn become_program<const N: usize>(arguments: [&CStr; N]) -> ! {
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: The strings and the array end as they should.
    unsafe {
        libc::execv(pointers[0], pointers.as_ptr());
        libc::_exit(1)
    }
}

fn exec() -> ! {
    become_program([c"/proc/self/exe", c"exit"])
}

fn shell() -> ! {
    become_program([c"/bin/sh", c"-c", c"true"])
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: There is room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    ends
}

/// Passes a byte on; false at the end.
fn pass(from: i32, to: i32) -> bool {
    let mut byte = 0u8;
    // SAFETY: The buffer is one byte of ours.
    unsafe {
        libc::read(from, (&raw mut byte).cast(), 1) == 1
            && libc::write(to, (&raw const byte).cast(), 1) == 1
    }
}

/// A pipe's two ends in one process.
fn pipe_transfer(rounds: u64) -> u64 {
    let [from, to] = pipe();
    let taken = measure(rounds, || {
        // SAFETY: One byte from us.
        unsafe { libc::write(to, [0u8].as_ptr().cast(), 1) };
        let mut byte = 0u8;
        // SAFETY: One byte of ours.
        unsafe { libc::read(from, (&raw mut byte).cast(), 1) };
    });
    // SAFETY: Our own descriptors.
    unsafe { (libc::close(from), libc::close(to)) };
    taken
}

extern "C" fn caught(_signal: i32) {}

/// A signal to this process, and its handler.
fn signal(rounds: u64) -> u64 {
    let handler: extern "C" fn(i32) = caught;
    // SAFETY: The handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    // SAFETY: There is a handler.
    measure(rounds, || unsafe {
        libc::kill(libc::getpid(), libc::SIGUSR1);
    })
}

/// Sleeps while the word is `value`.
fn futex_wait(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        // SAFETY: The word outlives the call.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                value,
                std::ptr::null::<libc::timespec>(),
            );
        }
    }
}

fn futex_set_and_wake(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    // SAFETY: The word outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        );
    }
}

/// Two threads wake each other in turn; half a round is one wake-up and one switch between threads.
fn futex_wake(rounds: u64) -> u64 {
    const OURS: u32 = 0;
    const THEIRS: u32 = 1;
    const END: u32 = 2;
    let turn = AtomicU32::new(OURS);
    std::thread::scope(|scope| {
        scope.spawn(|| loop {
            futex_wait(&turn, OURS);
            if turn.load(Ordering::Acquire) == END {
                break;
            }
            futex_set_and_wake(&turn, OURS);
        });
        let taken = measure(rounds, || {
            futex_set_and_wake(&turn, THEIRS);
            futex_wait(&turn, THEIRS);
        });
        futex_set_and_wake(&turn, END);
        taken / 2
    })
}

/// As many processes as there are in a ring hand a byte on; a round has a switch for each. With more than the
/// kernel has PCIDs for, each switch would have to flush.
fn ring(processes: usize, rounds: u64) -> u64 {
    let first = pipe();
    let mut before = first[0];
    let mut children = Vec::new();
    for _ in 1..processes {
        let [from, to] = pipe();
        // SAFETY: This program has one thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: The child's own descriptors; so it sees the end when the process before it leaves.
            unsafe { (libc::close(from), libc::close(first[1])) };
            while pass(before, to) {}
            exit();
        }
        children.push(child);
        // SAFETY: Our own descriptors, which the child has now.
        unsafe { (libc::close(to), libc::close(before)) };
        before = from;
    }
    // SAFETY: One byte from us.
    unsafe { libc::write(first[1], [0u8].as_ptr().cast(), 1) };
    let taken = measure(rounds, || assert!(pass(before, first[1])));
    // SAFETY: Our own descriptors; the first child leaves when it reads the end, and so on.
    unsafe { (libc::close(first[1]), libc::close(before)) };
    for child in children {
        // SAFETY: Nothing is written.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    taken / processes as u64
}

/// Two processes pass a byte back and forth; half a round trip is one switch.
fn context_switch(rounds: u64) -> u64 {
    let (there, back) = (pipe(), pipe());
    // SAFETY: This program has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: The child's own descriptor; so it sees the end when the parent closes its own.
        unsafe { libc::close(there[1]) };
        while pass(there[0], back[1]) {}
        exit();
    }
    // SAFETY: One byte from us.
    unsafe { libc::write(there[1], [0u8].as_ptr().cast(), 1) };
    let taken = measure(rounds, || assert!(pass(back[0], there[1])));
    // SAFETY: Our own descriptors; the child leaves when it reads the end.
    unsafe {
        libc::close(there[1]);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    taken / 2
}

/// Prints a line for each path: its name, and ticks for one time.
pub(crate) fn paths() {
    // Right after boot the kernel's own threads still take most of the time.
    std::thread::sleep(Duration::from_secs(5));
    println!("getppid {}", measure(20_000, getppid));
    // The second time the Guest kernel hands out memory that the Host has seen already.
    println!("page-fault-new {}", page_faults(4096));
    // Not all of that comes back at once, so the Host does not know each page yet.
    page_faults(4096);
    println!("page-fault {}", page_faults(4096));
    println!("context-switch {}", context_switch(2_000));
    println!("context-switch-20 {}", ring(20, 200));
    println!("fork-exit-wait {}", measure(100, || fork(exit)));
    println!("fork-exec-wait {}", measure(50, || fork(exec)));
    println!("sh-c-true {}", measure(50, || fork(shell)));
    println!("mmap-munmap-1m {}", measure(100, || map_and_unmap(256)));
    println!("mmap-munmap-64k {}", measure(500, || map_and_unmap(16)));
    println!("signal {}", signal(2_000));
    println!("pipe {}", pipe_transfer(2_000));
    println!("futex-wake {}", futex_wake(2_000));
}
