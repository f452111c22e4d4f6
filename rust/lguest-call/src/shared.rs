// SPDX-License-Identifier: GPL-2.0
//! The page that Guest and Host share: `struct lguest_shared`.

use crate::abi::{lguest_shared, LGUEST_SHARED_VA};

/// GVA of the shared page of vCPU 0, in Guest kernel mode of every root.
pub const SHARED: *mut lguest_shared = LGUEST_SHARED_VA as *mut lguest_shared;

/// GVA of the shared page of the vCPU that asks.
#[cfg(not(feature = "smp"))]
pub const fn page() -> *mut lguest_shared {
    SHARED
}

/// GVA of the shared page of the vCPU that asks.
#[cfg(feature = "smp")]
pub fn page() -> *mut lguest_shared {
    page_of(vcpu())
}

/// Not 0 once there is more than one vCPU. Until then nobody asks which one it is, and the limit of CPUNODE may be
/// anything. (The stubs of `lguest-guest` read it.)
#[cfg(feature = "smp")]
#[no_mangle]
pub static LGUEST_SEVERAL: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// The number of the vCPU that asks.
#[cfg(feature = "smp")]
pub fn vcpu() -> u32 {
    /// Of the segment whose limit is the number, as START_VCPU sets it.
    const CPUNODE: u32 = 0x7b;
    if LGUEST_SEVERAL.load(core::sync::atomic::Ordering::Relaxed) == 0 {
        return 0;
    }
    let limit: u32;
    // SAFETY: LSL reads a descriptor, which is there.
    unsafe {
        core::arch::asm!("lsl {:e}, {:e}", out(reg) limit, in(reg) CPUNODE,
            options(nomem, nostack))
    };
    limit
}

/// GVA of the shared page of vCPU `id`, which is below `LGUEST_MAX_VCPUS`.
pub const fn page_of(id: u32) -> *mut lguest_shared {
    SHARED.cast::<u8>().wrapping_add(id as usize * 4096).cast()
}

/// Reads a field of the shared page; with `of id`, of that of vCPU `id`, which there must be.
#[macro_export]
macro_rules! shared_read {
    ($field:ident) => {
        $crate::shared_read!(@ $crate::shared::page(), $field)
    };
    (of $id:expr, $field:ident) => {
        $crate::shared_read!(@ $crate::shared::page_of($id), $field)
    };
    (@ $page:expr, $field:ident) => {{
        let page = $page;
        // SAFETY: the page is always there in Guest kernel mode; the Host writes it behind our back, hence volatile.
        unsafe { core::ptr::addr_of!((*page).$field).read_volatile() }
    }};
}

/// Writes a field of the shared page; `of id` as for [`shared_read`].
#[macro_export]
macro_rules! shared_write {
    ($field:ident, $value:expr) => {
        $crate::shared_write!(@ $crate::shared::page(), $field, $value)
    };
    (of $id:expr, $field:ident, $value:expr) => {
        $crate::shared_write!(@ $crate::shared::page_of($id), $field, $value)
    };
    (@ $page:expr, $field:ident, $value:expr) => {{
        let (page, value) = ($page, $value);
        // SAFETY: as for `shared_read`; no Rust reference to the page exists.
        unsafe { core::ptr::addr_of_mut!((*page).$field).write_volatile(value) }
    }};
}
