// SPDX-License-Identifier: GPL-2.0
//! Event channels (event_channel.h of Xen's public headers).

#![allow(missing_docs)]

/// Commands of hypercall EVENT_CHANNEL_OP.
pub mod op {
    pub const BIND_INTERDOMAIN: u64 = 0;
    pub const BIND_VIRQ: u64 = 1;
    pub const BIND_PIRQ: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const SEND: u64 = 4;
    pub const STATUS: u64 = 5;
    pub const ALLOC_UNBOUND: u64 = 6;
    pub const BIND_IPI: u64 = 7;
    pub const BIND_VCPU: u64 = 8;
    pub const UNMASK: u64 = 9;
}

/// The timer's virtual interrupt.
pub const VIRQ_TIMER: u32 = 0;
/// Virtual interrupts that there are.
pub const VIRQS: u32 = 24;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AllocUnbound {
    pub dom: u16,
    pub remote_dom: u16,
    pub port: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BindVirq {
    pub virq: u32,
    pub vcpu: u32,
    pub port: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BindIpi {
    pub vcpu: u32,
    pub port: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BindPirq {
    pub pirq: u32,
    pub flags: u32,
    pub port: u32,
}

/// Argument of `CLOSE`, `SEND` and `UNMASK`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Port {
    pub port: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BindVcpu {
    pub port: u32,
    pub vcpu: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Status {
    pub dom: u16,
    pub pad: u16,
    pub port: u32,
    /// One of [`status`].
    pub status: u32,
    pub vcpu: u32,
    /// The pirq, the virq, or the domain.
    pub what: u32,
    /// The port in that domain.
    pub remote_port: u32,
}

/// What a port may be.
pub mod status {
    pub const CLOSED: u32 = 0;
    pub const UNBOUND: u32 = 1;
    pub const INTERDOMAIN: u32 = 2;
    pub const PIRQ: u32 = 3;
    pub const VIRQ: u32 = 4;
    pub const IPI: u32 = 5;
}
