// SPDX-License-Identifier: GPL-2.0
//! The page that Guest and Host share: `struct lguest_shared`.

use crate::abi::{lguest_shared, LGUEST_SHARED_VA};

/// GVA of the shared page of vCPU 0, in Guest kernel mode of every root.
pub const SHARED: *mut lguest_shared = LGUEST_SHARED_VA as *mut lguest_shared;

/// Reads a field of the shared page.
#[macro_export]
macro_rules! shared_read {
    ($field:ident) => {{
        // SAFETY: the page is always there in Guest kernel mode; the Host writes it behind our back, hence volatile.
        unsafe { core::ptr::addr_of!((*$crate::shared::SHARED).$field).read_volatile() }
    }};
}

/// Writes a field of the shared page.
#[macro_export]
macro_rules! shared_write {
    ($field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: as for `shared_read`; no Rust reference to the page exists.
        unsafe { core::ptr::addr_of_mut!((*$crate::shared::SHARED).$field).write_volatile(value) }
    }};
}
