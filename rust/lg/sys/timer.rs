// SPDX-License-Identifier: GPL-2.0

//! A one-shot timer of the Host's, with a callback in hard interrupt context.
//!
//! The `kernel` crate's `HrTimer` hands out a new handle at each start and cancels when that is
//! dropped; a Guest re-arms its timer thousands of times a second, so this wraps the C interface,
//! where arming again is one call.

use super::compat;
use core::marker::PhantomPinned;
use kernel::{
    bindings,
    prelude::*,
    types::Opaque, //
};

/// Called when the timer fires, in hard interrupt context.
pub(crate) trait Expired: Sync {
    fn expired(&self);
}

/// The timer, and the object that hears of it.
#[pin_data(PinnedDrop)]
pub(crate) struct Timer<T: Expired> {
    #[pin]
    inner: Opaque<bindings::hrtimer>,
    owner: T,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: An hrtimer locks itself, and the owner is `Sync`; it is dropped once, by anyone.
unsafe impl<T: Expired + Send> Send for Timer<T> {}
// SAFETY: As above.
unsafe impl<T: Expired> Sync for Timer<T> {}

impl<T: Expired> Timer<T> {
    pub(crate) fn new(owner: T) -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::hrtimer| {
                // SAFETY: `slot` is the memory the timer will stay in, since it is pinned.
                unsafe {
                    bindings::hrtimer_setup(
                        slot,
                        Some(Self::callback),
                        bindings::CLOCK_MONOTONIC as i32,
                        bindings::hrtimer_mode_HRTIMER_MODE_REL_HARD,
                    )
                }
            }),
            owner,
            _pin: PhantomPinned,
        })
    }

    /// The object that hears of it.
    pub(crate) fn owner(&self) -> &T {
        &self.owner
    }

    /// Fires in `ns` nanoseconds; what it was armed for before is forgotten.
    pub(crate) fn arm(&self, ns: i64) {
        // SAFETY: The timer was set up, and lives as long as `self`.
        unsafe {
            bindings::hrtimer_start_range_ns(
                self.inner.get(),
                ns,
                0,
                bindings::hrtimer_mode_HRTIMER_MODE_REL_HARD,
            )
        };
    }

    /// It will not fire any more. Waits for a callback that runs right now; IRQs on.
    pub(crate) fn disarm(&self) {
        // SAFETY: As above.
        unsafe { bindings::hrtimer_cancel(self.inner.get()) };
    }

    /// # Safety
    ///
    /// `timer` is the `inner` of a live `Timer<T>`.
    unsafe extern "C" fn callback(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
        // SAFETY: As the kernel promises: only `new` gives it this function, and `drop` waits for
        // us.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(timer), Self, inner) };
        this.owner.expired();
        compat::no_restart()
    }
}

#[pinned_drop]
impl<T: Expired> PinnedDrop for Timer<T> {
    fn drop(self: Pin<&mut Self>) {
        self.disarm();
    }
}
