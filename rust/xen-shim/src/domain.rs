// SPDX-License-Identifier: GPL-2.0
//! What all vCPUs have in common.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use lguest_call::irq::rdtsc;
use xen_core::clock::Clock;
use xen_core::ports::Ports;

/// A spin lock. Interrupts are off in the shim, so its holder goes on.
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
static CLOCK: Lock<Clock> = Lock::new(Clock::new(0, 1));

/// The event channels.
pub(crate) fn ports() -> Guard<'static, Ports> {
    PORTS.lock()
}

/// How TSC becomes system time.
pub(crate) fn clock() -> Clock {
    *CLOCK.lock()
}

/// Starts the clock.
pub(crate) fn start_clock(clock: Clock) {
    *CLOCK.lock() = clock;
}

/// System time now.
pub(crate) fn now() -> u64 {
    clock().at(rdtsc())
}
