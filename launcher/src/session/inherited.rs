// SPDX-License-Identifier: GPL-2.0
//! What a process gets from whoever starts it, and a command in a Guest is to get as well: descriptors
//! that are closed, signals that are ignored, limits.
//!
//! They are looked at before `main`: by then, Rust's runtime has opened /dev/null in the place of a
//! stream that is closed, and ignores SIGPIPE; and lg is about to raise its own limits.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};

use nix::libc;

/// The number of limits that there are (`RLIM_NLIMITS` of `linux:include/uapi/asm-generic/resource.h`).
const LIMITS: usize = 16;

/// The descriptors 0 to 2 that are closed, a set.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// The signals that are ignored: bit 0 is signal 1.
static IGNORED: AtomicU64 = AtomicU64::new(0);
/// The limits of resources by their numbers, each now, and at most.
static LIMIT: [[AtomicU64; 2]; LIMITS] =
    [const { [const { AtomicU64::new(libc::RLIM_INFINITY) }; 2] }; LIMITS];

/// The C library calls what is in this section before `main`, while there is one thread.
#[used]
#[link_section = ".init_array"]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    for descriptor in 0..3 {
        // SAFETY: F_GETFD takes no argument and writes no memory.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << descriptor, Ordering::Relaxed);
        }
    }
    for signal in 1..=64 {
        // SAFETY: all bits of the struct may be 0, and the call fills it, and changes nothing.
        let ignored = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        };
        if ignored {
            IGNORED.fetch_or(1 << (signal - 1), Ordering::Relaxed);
        }
    }
    for (resource, [now, most]) in LIMIT.iter().enumerate() {
        let mut limit = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the call fills a struct rlimit. What it does not know, it leaves.
        unsafe { libc::getrlimit(resource as _, &mut limit) };
        now.store(limit.rlim_cur, Ordering::Relaxed);
        most.store(limit.rlim_max, Ordering::Relaxed);
    }
}

/// Was this descriptor, one of 0 to 2, closed when lg was started?
pub fn was_closed(descriptor: u8) -> bool {
    CLOSED.load(Ordering::Relaxed) & (1 << descriptor) != 0
}

/// The signals that were ignored when lg was started: bit 0 is signal 1.
pub fn ignored() -> u64 {
    IGNORED.load(Ordering::Relaxed)
}

/// The limits of resources by their numbers when lg was started: what each was, and to what it could
/// be raised. lg raises some of its own.
pub fn limits() -> [[u64; 2]; LIMITS] {
    let values = |limit: &[AtomicU64; 2]| limit.each_ref().map(|of| of.load(Ordering::Relaxed));
    LIMIT.each_ref().map(values)
}
