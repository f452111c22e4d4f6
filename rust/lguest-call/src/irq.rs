// SPDX-License-Identifier: GPL-2.0
//! Virtual interrupts: on and off are memory writes, and waiting is a hypercall.

use crate::hypercall;
use crate::{shared_read, shared_write};

/// The interrupt flag, in RFLAGS and in `irq_enabled`.
pub const FLAG_IF: u64 = 1 << 9;

/// Are virtual interrupts on?
pub fn enabled() -> bool {
    shared_read!(irq_enabled) & FLAG_IF != 0
}

/// Turns virtual interrupts on. What was pending arrives before this returns.
pub fn enable() {
    shared_write!(irq_enabled, FLAG_IF);
    // An interrupt that comes after the store is delivered by itself; one that came before it left its mark.
    if shared_read!(irq_pending) != 0 {
        hypercall::irq_window();
    }
}

/// Turns virtual interrupts off.
pub fn disable() {
    shared_write!(irq_enabled, 0);
}

/// Turns virtual interrupts on and waits for one. Call it with them off: an interrupt that is already there is not lost.
pub fn halt() {
    hypercall::halt();
}

/// The time stamp counter, which runs at `lguest_shared.tsc_khz`.
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC reads no memory, and no Guest may turn it off.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds that `ticks` of the time stamp counter take.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(shared_read!(tsc_khz))) as u64
}
