// SPDX-License-Identifier: GPL-2.0
//! Ticks of the time stamp counter. Under QEMU's `-icount shift=0` a tick is an instruction. Or else, walks of page tables.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::atomic::{AtomicBool, Ordering};

/// Are ticks thousandths of a walk?
static WALKS: AtomicBool = AtomicBool::new(false);

/// How often the CPU has walked page tables, if it is the one of selftests/bochs, which tells everybody.
fn walks() -> Option<u64> {
    // SAFETY: Every x86-64 processor has it, and has some answer to leaves that it does not know.
    let told = unsafe { __cpuid(0x4c47_0000) };
    let is_elephant = [told.ebx, told.ecx].map(u32::to_le_bytes) == [*b"elep", *b"hant"];
    is_elephant.then_some((u64::from(told.edx) << 32) | u64::from(told.eax))
}

/// Counts walks from now on. False if this CPU does not tell how many there were.
pub(crate) fn count_walks() -> bool {
    WALKS.store(true, Ordering::Relaxed);
    walks().is_some()
}

fn ticks() -> u64 {
    if WALKS.load(Ordering::Relaxed) {
        return 1000 * walks().unwrap_or_default();
    }
    // SAFETY: Every x86-64 processor has it, and Linux lets user mode use it.
    unsafe { _rdtsc() }
}

/// A no-op, by which count.rs sees that a measurement begins or ends.
fn mark() {
    // SAFETY: A `nopl 0x626d676c(%rax)` touches nothing.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x80, 0x6c, 0x67, 0x6d, 0x62",
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Ticks for `rounds` calls of `f`, after some calls that are not counted. Each path is so run until
/// it is warm, then measured as a whole, so that the loop costs nothing much.
pub(crate) fn measure_all(rounds: u64, mut f: impl FnMut()) -> u64 {
    (0..rounds.div_ceil(10)).for_each(|_| f());
    count(|| (0..rounds).for_each(|_| f()))
}

/// Ticks for one call of `f`, on the average of `rounds`.
pub(crate) fn measure(rounds: u64, f: impl FnMut()) -> u64 {
    measure_all(rounds, f) / rounds
}

/// Ticks for one call of `f`.
pub(crate) fn count(f: impl FnOnce()) -> u64 {
    mark();
    let start = ticks();
    f();
    let taken = ticks() - start;
    mark();
    taken
}
