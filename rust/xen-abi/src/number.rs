// SPDX-License-Identifier: GPL-2.0
//! Numbers of the hypercalls, which go in RAX (linux:include/xen/interface/xen.h), of their commands, and of errors.

#![allow(missing_docs)]

/// What a hypercall returns (`-errno`).
pub mod error {
    pub const ENOENT: i64 = -2;
    pub const ESRCH: i64 = -3;
    pub const ENOMEM: i64 = -12;
    pub const EACCES: i64 = -13;
    pub const EFAULT: i64 = -14;
    pub const EEXIST: i64 = -17;
    pub const EINVAL: i64 = -22;
    pub const ENOSPC: i64 = -28;
    pub const ENOSYS: i64 = -38;
}

pub const SET_TRAP_TABLE: u32 = 0;
pub const MMU_UPDATE: u32 = 1;
pub const SET_GDT: u32 = 2;
pub const STACK_SWITCH: u32 = 3;
pub const FPU_TASKSWITCH: u32 = 5;
pub const SET_DEBUGREG: u32 = 8;
pub const GET_DEBUGREG: u32 = 9;
pub const UPDATE_DESCRIPTOR: u32 = 10;
pub const MEMORY_OP: u32 = 12;
pub const MULTICALL: u32 = 13;
pub const UPDATE_VA_MAPPING: u32 = 14;
pub const SET_TIMER_OP: u32 = 15;
pub const XEN_VERSION: u32 = 17;
pub const CONSOLE_IO: u32 = 18;
pub const GRANT_TABLE_OP: u32 = 20;
pub const VM_ASSIST: u32 = 21;
pub const IRET: u32 = 23;
pub const VCPU_OP: u32 = 24;
pub const SET_SEGMENT_BASE: u32 = 25;
pub const MMUEXT_OP: u32 = 26;
pub const SCHED_OP: u32 = 29;
pub const CALLBACK_OP: u32 = 30;
pub const EVENT_CHANNEL_OP: u32 = 32;
pub const PHYSDEV_OP: u32 = 33;

/// Commands of [`XEN_VERSION`].
pub mod version {
    pub const VERSION: u64 = 0;
    pub const EXTRAVERSION: u64 = 1;
    pub const GET_FEATURES: u64 = 6;
}

/// Commands of [`CONSOLE_IO`].
pub mod console {
    pub const WRITE: u64 = 0;
    pub const READ: u64 = 1;
}

/// Commands of [`SET_SEGMENT_BASE`].
pub mod segment {
    pub const FS: u64 = 0;
    pub const GS_USER: u64 = 1;
    pub const GS_KERNEL: u64 = 2;
    pub const GS_USER_SELECTOR: u64 = 3;
}

/// Commands of [`VM_ASSIST`], and what may be switched.
pub mod assist {
    pub const ENABLE: u64 = 0;
    pub const WRITABLE_PAGE_TABLES: u64 = 2;
}

/// Commands of [`PHYSDEV_OP`].
pub mod physdev {
    /// I/O ports that there are.
    pub const IO_PORTS: u32 = 1 << 16;

    #[derive(Clone, Copy, Debug, Default)]
    #[repr(C)]
    pub struct SetIopl {
        pub iopl: u32,
    }

    /// A bit for each port, which is 0 if user mode may have it.
    #[derive(Clone, Copy, Debug, Default)]
    #[repr(C)]
    pub struct SetIobitmap {
        pub bitmap: u64,
        pub nr_ports: u32,
        pub pad: u32,
    }

    pub const IRQ_STATUS_QUERY: u64 = 5;
    pub const SET_IOPL: u64 = 6;
    pub const SET_IOBITMAP: u64 = 7;
}
