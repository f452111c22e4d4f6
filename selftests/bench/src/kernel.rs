// SPDX-License-Identifier: GPL-2.0
//! Common paths of the kernel.

use std::io;
use std::time::Duration;

use crate::clock::{count, measure};

fn getppid() {
    // SAFETY: Has no preconditions. Not libc's function, which may not ask the kernel.
    unsafe { libc::syscall(libc::SYS_getppid) };
}

/// First touches of anonymous pages, and what their mapping and unmapping costs per page.
fn page_faults(pages: usize) -> u64 {
    const PAGE: usize = 4096;
    let len = pages * PAGE;
    // SAFETY: A new private mapping, which nothing else knows of.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
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
    let taken = count(|| {
        for page in 0..pages {
            // SAFETY: Inside of the mapping.
            unsafe { start.cast::<u8>().add(page * PAGE).write_volatile(1) };
        }
    });
    // SAFETY: Our own mapping, to which no reference is left.
    unsafe { libc::munmap(start, len) };
    taken / pages as u64
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

fn exec() -> ! {
    let arguments = [
        c"/proc/self/exe".as_ptr(),
        c"exit".as_ptr(),
        std::ptr::null(),
    ];
    // SAFETY: The strings and the array end as they should.
    unsafe {
        libc::execv(arguments[0], arguments.as_ptr());
        libc::_exit(1)
    }
}

/// Two processes pass a byte back and forth; half a round trip is one switch.
fn context_switch(rounds: u64) -> u64 {
    let pipe = || {
        let mut ends = [0; 2];
        // SAFETY: There is room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        ends
    };
    let (there, back) = (pipe(), pipe());
    let pass = |from: i32, to: i32| {
        let mut byte = 0u8;
        // SAFETY: The buffer is one byte of ours.
        unsafe {
            libc::read(from, (&raw mut byte).cast(), 1) == 1
                && libc::write(to, (&raw const byte).cast(), 1) == 1
        }
    };
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
    println!("page-fault {}", page_faults(4096));
    println!("context-switch {}", context_switch(2_000));
    println!("fork-exit-wait {}", measure(100, || fork(exit)));
    println!("fork-exec-wait {}", measure(50, || fork(exec)));
}
