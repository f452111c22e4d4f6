// SPDX-License-Identifier: GPL-2.0
//! What all vCPUs have in common.

use crate::memory::{handover, Once};
use crate::vcpu::VCPUS;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use core::sync::atomic::{Ordering::Acquire, Ordering::Release, Ordering::SeqCst};
use lguest_call::irq::rdtsc;
use xen_core::clock::Clock;
use xen_core::ports::Ports;

/// A spin lock. Interrupts are off in the shim, so its holder goes on, as long as it has a CPU of the Host's: it makes no
/// hypercall, at which the Host might take that away.
struct Lock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: one at a time has the value.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The right to a value.
pub(crate) struct Guard<'a, T>(&'a Lock<T>);

impl<T> Lock<T> {
    const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    fn lock(&self) -> Guard<'_, T> {
        while self.taken.swap(true, Acquire) {
            core::hint::spin_loop();
        }
        Guard(self)
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is ours.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is ours.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.taken.store(false, Release);
    }
}

static PORTS: Lock<Ports> = Lock::new(Ports::new());
static CLOCK: Once<Clock> = Once::new(Clock::new(0, 1));
/// The vCPUs that have a state to begin with.
static INITIALISED: Lock<u64> = Lock::new(1);
static RUNSTATES: [AtomicU64; VCPUS] = [const { AtomicU64::new(0) }; VCPUS];
/// The vCPUs that poll, and for which port.
static POLLERS: AtomicU64 = AtomicU64::new(0);
static POLLED: [AtomicU32; VCPUS] = [const { AtomicU32::new(0) }; VCPUS];

/// The event channels.
pub(crate) fn ports() -> Guard<'static, Ports> {
    PORTS.lock()
}

/// The kernel's pointer to the runstate of vCPU `id`, or 0. The vCPU itself writes it.
pub(crate) fn runstate(id: u32) -> &'static AtomicU64 {
    &RUNSTATES[id as usize]
}

/// The vCPUs that have a state to begin with, a bit for each.
pub(crate) fn initialised() -> Guard<'static, u64> {
    INITIALISED.lock()
}

/// All vCPUs that there are, as a set of lg's hypercalls.
pub(crate) fn all() -> u64 {
    (1 << handover().vcpus) - 1
}

/// For [`begin_poll`]: any port.
pub(crate) const ANY_PORT: u32 = u32::MAX;

/// vCPU `id` looks whether `port` is pending after this, and if not sleeps until an interrupt.
pub(crate) fn begin_poll(id: u32, port: u32) {
    POLLED[id as usize].store(port, SeqCst);
    POLLERS.fetch_or(1 << id, SeqCst);
}

pub(crate) fn end_poll(id: u32) {
    POLLERS.fetch_and(!(1 << id), SeqCst);
}

/// The vCPUs that poll for `port`, which is pending since before this call.
pub(crate) fn pollers_of(port: u32) -> u64 {
    let all = POLLERS.load(SeqCst);
    let polls = |id: &usize| matches!(POLLED[*id].load(SeqCst), polled if polled == port || polled == ANY_PORT);
    match all {
        0 => 0,
        _ => (0..VCPUS)
            .filter(|id| all & (1 << id) != 0)
            .filter(polls)
            .fold(0, |set, id| set | (1 << id)),
    }
}

/// How TSC becomes system time.
pub(crate) fn clock() -> Clock {
    *CLOCK.get()
}

/// Starts the clock. For the boot CPU's first instructions.
pub(crate) fn start_clock(clock: Clock) {
    // SAFETY: nobody reads the clock yet.
    unsafe { CLOCK.set(clock) };
}

/// System time now.
pub(crate) fn now() -> u64 {
    clock().at(rdtsc())
}
