// SPDX-License-Identifier: GPL-2.0
//! Page tables, memory maps and grants (xen.h, memory.h and grant_table.h of Xen's public headers).

/// An entry of a list for hypercall MMU_UPDATE.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address of the entry; the low two bits are one of [`update`].
    pub ptr: u64,
    /// What it shall hold.
    pub val: u64,
}

/// The kinds of an [`MmuUpdate`].
pub mod update {
    #![allow(missing_docs)]
    pub const NORMAL: u64 = 0;
    pub const MACHPHYS: u64 = 1;
    pub const PRESERVE_AD: u64 = 2;
    pub const NO_TRANSLATE: u64 = 3;
}

/// The domain that a kernel means when it means itself.
pub const DOMID_SELF: u64 = 0x7ff0;

/// An entry of a list for hypercall MMUEXT_OP.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MmuExtOp {
    /// One of [`ext`].
    pub cmd: u32,
    /// Padding.
    pub pad: u32,
    /// A frame, or a linear address.
    pub arg1: u64,
    /// A count, or where a bitmap of vCPUs is.
    pub arg2: u64,
}

/// Commands of an [`MmuExtOp`].
pub mod ext {
    #![allow(missing_docs)]
    pub const PIN_L1_TABLE: u32 = 0;
    pub const PIN_L4_TABLE: u32 = 3;
    pub const UNPIN_TABLE: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const TLB_FLUSH_MULTI: u32 = 8;
    pub const INVLPG_MULTI: u32 = 9;
    pub const TLB_FLUSH_ALL: u32 = 10;
    pub const INVLPG_ALL: u32 = 11;
    pub const FLUSH_CACHE: u32 = 12;
    pub const SET_LDT: u32 = 13;
    pub const NEW_USER_BASEPTR: u32 = 15;
    pub const FLUSH_CACHE_GLOBAL: u32 = 18;
}

/// Flags of hypercall UPDATE_VA_MAPPING, in the low two bits.
pub mod uvmf {
    #![allow(missing_docs)]
    pub const FLUSH_TYPE: u64 = 3;
    pub const TLB_FLUSH: u64 = 1;
    pub const INVLPG: u64 = 2;
    /// Of all vCPUs. Without it what is beside the type is a pointer to a set of vCPUs, or 0 for this one alone.
    pub const ALL: u64 = 4;
}

/// Commands of hypercall MEMORY_OP.
pub mod op {
    #![allow(missing_docs)]
    pub const DECREASE_RESERVATION: u64 = 1;
    pub const POPULATE_PHYSMAP: u64 = 6;
    pub const MEMORY_MAP: u64 = 9;
    pub const EXCHANGE: u64 = 11;
    pub const MACHPHYS_MAPPING: u64 = 12;
}

/// Argument of `MEMORY_MAP`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MemoryMap {
    /// In: entries that fit; out: entries that are there.
    pub nr_entries: u32,
    /// Padding.
    pub pad: u32,
    /// GVA of the entries.
    pub buffer: u64,
}

/// An entry of the memory map, as the BIOS's E820 has them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
pub struct E820Entry {
    /// The first byte's address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// 1: RAM.
    pub kind: u32,
}

/// Argument of `MACHPHYS_MAPPING`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MachphysMapping {
    /// GVA of the table.
    pub v_start: u64,
    /// GVA behind it.
    pub v_end: u64,
    /// The last frame that it has.
    pub max_mfn: u64,
}

/// Argument of `DECREASE_RESERVATION` and `POPULATE_PHYSMAP`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Reservation {
    /// GVA of the frame numbers.
    pub extent_start: u64,
    /// How many.
    pub nr_extents: u64,
    /// Each is `1 << extent_order` pages.
    pub extent_order: u32,
    /// Address bits.
    pub address_bits: u32,
    /// The domain, in the low 16 bits.
    pub domid: u32,
    /// Padding.
    pub pad: u32,
}

/// Argument of `EXCHANGE`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Exchange {
    /// What the kernel gives.
    pub input: Reservation,
    /// What it wants for that.
    pub output: Reservation,
    /// Out: how many of `input` were exchanged.
    pub nr_exchanged: u64,
}

/// Commands of hypercall GRANT_TABLE_OP.
pub mod grant_op {
    #![allow(missing_docs)]
    pub const MAP_GRANT_REF: u64 = 0;
    pub const UNMAP_GRANT_REF: u64 = 1;
    pub const SETUP_TABLE: u64 = 2;
    pub const COPY: u64 = 5;
    pub const QUERY_SIZE: u64 = 6;
}

/// Statuses of GRANT_TABLE_OP's structures.
pub mod grant_status {
    #![allow(missing_docs)]
    pub const OKAY: i16 = 0;
    pub const GENERAL_ERROR: i16 = -1;
}

/// Argument of `SETUP_TABLE`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GrantSetupTable {
    /// The domain.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// Frames wanted.
    pub nr_frames: u32,
    /// Out: one of [`grant_status`].
    pub status: i16,
    /// Padding.
    pub pad2: [u16; 3],
    /// GVA of the list of frame numbers.
    pub frame_list: u64,
}

/// Argument of `QUERY_SIZE`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GrantQuerySize {
    /// The domain.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// Out: frames now.
    pub nr_frames: u32,
    /// Out: frames at most.
    pub max_nr_frames: u32,
    /// Out: one of [`grant_status`].
    pub status: i16,
    /// Padding.
    pub pad2: u16,
}
