// SPDX-License-Identifier: GPL-2.0
//! The few system calls that the standard library does not have, behind functions that panic when they fail.

use std::io::Error;
use std::ptr;

/// The size of a page.
pub(crate) const PAGE: usize = 4096;
/// Read and write.
pub(crate) const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Panics with errno if `result` is negative.
pub(crate) fn check(what: &str, result: impl Into<i64>) -> i64 {
    let result = result.into();
    assert!(result >= 0, "{what}: {}", Error::last_os_error());
    result
}

/// Forks; `child` runs in the child and gives its exit status. The child's number.
pub(crate) fn spawn(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: tests fork while they have one thread.
    match unsafe { libc::fork() } {
        0 => {
            let status =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends the child without the parent's destructors.
            unsafe { libc::_exit(status) }
        }
        pid => check("fork", pid) as i32,
    }
}

/// Waits for a child; its raw status.
pub(crate) fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: writes the status.
    check("waitpid", unsafe { libc::waitpid(pid, &mut status, 0) });
    status
}

/// Runs `child` in a child; its exit status, or 128 and the signal that ended it.
pub(crate) fn in_child(child: impl FnOnce() -> i32) -> i32 {
    let status = wait(spawn(child));
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    }
}

/// Memory from mmap, given back when dropped.
pub(crate) struct Map {
    start: *mut u8,
    len: usize,
}

impl Map {
    /// Anonymous private memory.
    pub(crate) fn private(len: usize) -> Self {
        Self::new(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Anonymous memory that children share.
    pub(crate) fn shared(len: usize) -> Self {
        Self::new(len, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    /// Readable and writable memory of a file, or of none.
    pub(crate) fn new(len: usize, flags: i32, fd: i32) -> Self {
        // SAFETY: a new mapping overlaps nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, RW, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
        Self {
            start: start.cast(),
            len,
        }
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// The word at byte `offset`.
    pub(crate) fn get(&self, offset: usize) -> u64 {
        assert!(offset + 8 <= self.len);
        // SAFETY: inside; volatile, for other processes and the kernel change it.
        unsafe { self.start.add(offset).cast::<u64>().read_volatile() }
    }

    /// Stores a word at byte `offset`.
    pub(crate) fn set(&self, offset: usize, value: u64) {
        assert!(offset + 8 <= self.len);
        // SAFETY: as in `get`.
        unsafe { self.start.add(offset).cast::<u64>().write_volatile(value) }
    }

    /// Changes the protection of `len` bytes at `offset`.
    pub(crate) fn protect(&self, offset: usize, len: usize, protection: i32) {
        // SAFETY: our own mapping; accesses that are not allowed any more are the tests' business.
        check("mprotect", unsafe {
            libc::mprotect(self.start.add(offset).cast(), len, protection)
        });
    }

    /// madvise for `len` bytes at `offset`.
    pub(crate) fn advise(&self, offset: usize, len: usize, advice: i32) {
        // SAFETY: our own mapping, which only this object's methods read.
        check("madvise", unsafe {
            libc::madvise(self.start.add(offset).cast(), len, advice)
        });
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: ours, and unused from here on.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Installs a handler with the context of the interrupted code, to run on the alternate stack if there is one.
pub(crate) fn handle(
    signal: i32,
    handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t),
) {
    // SAFETY: all zeros is an empty action; the handlers do what is allowed in handlers.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        check(
            "sigaction",
            libc::sigaction(signal, &action, ptr::null_mut()),
        );
    }
}

/// Numbers that look random (xorshift64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Is this a kernel that runs by Xen's ABI?
pub(crate) fn on_xen() -> bool {
    std::fs::read("/sys/hypervisor/type").is_ok_and(|kind| kind == b"xen\n")
}
