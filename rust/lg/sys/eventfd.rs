// SPDX-License-Identifier: GPL-2.0

//! eventfds, by which a queue notify reaches the Launcher's device thread.

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*, //
};

/// A reference to an eventfd.
///
/// # Invariants
///
/// The pointer holds one reference, which `drop` gives back.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

// SAFETY: An eventfd context is reference counted and locks itself.
unsafe impl Send for EventFd {}
// SAFETY: As above.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// The eventfd behind file descriptor `fd` of the caller. `EBADF`, or `EINVAL` when it is
    /// something else.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: Has no preconditions beyond process context.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;
        // INVARIANT: `eventfd_ctx_fdget` took a reference for us.
        NonNull::new(ctx).map(Self).ok_or(EINVAL)
    }

    /// Adds 1 to it, and wakes who waits. Any context.
    pub(crate) fn signal(&self) {
        // SAFETY: By the type invariant the context is alive.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we have a reference to give back.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}
