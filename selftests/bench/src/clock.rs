// SPDX-License-Identifier: GPL-2.0
//! Ticks of the time stamp counter. Under QEMU's `-icount shift=0` a tick is an instruction.

use std::arch::asm;

/// Reads the time stamp counter.
fn ticks() -> u64 {
    // SAFETY: Every x86-64 processor has it, and Linux lets user mode use it.
    unsafe { std::arch::x86_64::_rdtsc() }
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
