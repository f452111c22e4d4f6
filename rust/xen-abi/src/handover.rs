// SPDX-License-Identifier: GPL-2.0
//! What the Launcher tells the shim, and where both of them look.
//!
//! # Guest physical memory
//!
//! | from | to | |
//! |---|---|---|
//! | 0 | `ram_pages` | the RAM that the kernel knows of: its image, its first tables, the initrd |
//! | `ram_pages`, rounded up to 2 MiB | `all_pages` | the shim's area, of which the kernel is told by address only |
//! | above | | windows of devices |
//!
//! There is no hole below 4 GiB: Linux would begin to remap frames.
//!
//! # The monitor's virtual memory
//!
//! Its root (`root`) has these entries of the top level, and no others; all of them are kernel mode's alone.
//!
//! | slot | at | |
//! |---|---|---|
//! | 256 | [`M2P`] | a `u64` for each page of RAM, its own number: Xen's machine-to-physical table; read-only, no code |
//! | 257 | [`ALIAS`] | GPA 0 to `all_pages`; writable, no code |
//! | 270 | [`SHIM`] | the shim's image; the slot begins with the shared pages of the contract (`lguest.h`) |
//!
//! # Entry
//!
//! The shim starts like every Guest of lg, but on its own root: RSI has the GPA of the [`Handover`].

/// GVA of the machine-to-physical table.
pub const M2P: u64 = 0xffff_8000_0000_0000;
/// GVA of GPA 0 in the shim's view of all memory.
pub const ALIAS: u64 = 0xffff_8080_0000_0000;
/// GVA at which the shim is linked: 1 GiB into slot 270.
pub const SHIM: u64 = 0xffff_8700_4000_0000;

/// `magic` of a [`Handover`]: "lg, Xen" as it would look in memory.
pub const MAGIC: u64 = u64::from_le_bytes(*b"lg, Xen\0");
/// The version of everything in this module.
pub const VERSION: u32 = 1;

/// The line of the contract by which the Launcher says that [`Raised`] has something new.
pub const LINE: u32 = 0;
/// Event channel ports of the two-level ABI on 64 bits.
pub const PORTS: usize = 4096;
/// Physical interrupts, which devices on the bus of xen-pcifront raise.
pub const PIRQS: usize = 256;
/// The port by which kernel and xenstore call each other.
pub const STORE_PORT: u32 = 1;
/// The port by which kernel and console call each other.
pub const CONSOLE_PORT: u32 = 2;

/// One page, which the Launcher writes once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Handover {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// GPA of the first byte of the shim's image, which is at GVA [`SHIM`].
    pub shim: u64,
    /// GPA of the monitor's root.
    pub root: u64,
    /// Pages of RAM, from GPA 0.
    pub ram_pages: u64,
    /// Pages of RAM and of the shim's area, from GPA 0.
    pub all_pages: u64,
    /// The kernel's first instruction (GVA).
    pub entry: u64,
    /// GVA of the start_info, for RSI.
    pub start_info: u64,
    /// GVA of the end of the boot stack, for RSP.
    pub stack: u64,
    /// GPA of the kernel's first root page table.
    pub cr3: u64,
    /// GPA of the shared_info page.
    pub shared_info: u64,
    /// GPA of the grant table.
    pub grants: u64,
    /// Pages of the grant table.
    pub grant_frames: u64,
    /// GPA of [`Raised`].
    pub raised: u64,
    /// GPA for hypercall NOTIFY, by which the shim calls the backend of a port: the port is the queue's index.
    pub notify: u64,
}

/// One page in which the Launcher says what it raises: it sets bits, and pulls [`LINE`]; the shim takes them by
/// exchange with 0.
#[repr(C)]
pub struct Raised {
    /// A bit for each port.
    pub ports: [core::sync::atomic::AtomicU64; PORTS / 64],
    /// A bit for each physical interrupt. The shim knows which port one is bound to.
    pub pirqs: [core::sync::atomic::AtomicU64; PIRQS / 64],
}
