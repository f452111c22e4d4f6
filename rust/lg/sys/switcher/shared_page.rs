// SPDX-License-Identifier: GPL-2.0

//! The page that Guest and Host share, field by field. The Guest may write any of it at any moment: each
//! call reads or writes one field, once.

use super::super::page::HostPage;
use crate::abi::{
    lguest_nmi,
    lguest_shared, //
};

/// The shared page of one vCPU.
///
/// # Invariants
///
/// The pointer is that of a page which is there as long as this object is, and of which no Rust reference
/// exists.
pub(crate) struct SharedPage(*mut lguest_shared);

// SAFETY: The page has no tie to a thread.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// The caller keeps `page` alive as long as the result.
    pub(super) fn new(page: &HostPage) -> Self {
        // INVARIANT: As the caller promises; a `HostPage` gives out no references.
        Self(page.as_ptr())
    }
}

macro_rules! read {
    ($($field:ident),*) => {
        impl SharedPage {
            $(pub(crate) fn $field(&self) -> u64 {
                // SAFETY: By the type invariant the field is there.
                unsafe { (&raw const (*self.0).$field).read_volatile() }
            })*
        }
    };
}

impl SharedPage {
    /// What an NMI has interrupted. All of it is read once.
    pub(crate) fn nmi(&self) -> lguest_nmi {
        // SAFETY: By the type invariant the field is there; it is integers.
        unsafe { (&raw const (*self.0).nmi).read_volatile() }
    }
}

macro_rules! write {
    ($($set:ident: $field:ident $type:ty),*) => {
        impl SharedPage {
            $(pub(crate) fn $set(&mut self, value: $type) {
                // SAFETY: By the type invariant the field is there.
                unsafe { (&raw mut (*self.0).$field).write_volatile(value) }
            })*
        }
    };
}

read!(
    irq_enabled,
    cr2,
    event,
    rip,
    cs,
    rflags,
    rsp,
    rax,
    rcx,
    r11,
    user_gs_base,
    kernel_rsp,
    takes_spurious,
    nmi_rsp
);
write!(
    set_irq_enabled: irq_enabled u64,
    set_irq_pending: irq_pending u64,
    set_cr2: cr2 u64,
    set_event: event u64,
    set_error_code: error_code u64,
    set_rip: rip u64,
    set_cs: cs u64,
    set_rflags: rflags u64,
    set_rsp: rsp u64,
    set_ss: ss u64,
    set_rax: rax u64,
    set_user_gs_base: user_gs_base u64,
    set_abi_version: abi_version u32,
    set_vcpu: vcpu u32,
    set_tsc_khz: tsc_khz u64,
    set_wall_ns: wall_ns u64,
    set_wall_tsc: wall_tsc u64,
    set_host_features: host_features u64,
    set_preempted: preempted u64,
    set_steal_ns: steal_ns u64,
    set_nmi: nmi lguest_nmi
);
