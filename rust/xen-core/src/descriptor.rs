// SPDX-License-Identifier: GPL-2.0
//! What an entry of the kernel's GDT means for lg, which has a GDT of its own with Linux's indices.

/// Entries of the GDT of a Linux: one page holds many more, but Linux uses 16.
pub const ENTRIES: u64 = 16;

/// The consequence of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Thread-local segment 0, 1 or 2 changes.
    Tls(u64),
    /// The limit that LSL reads, with CPU and node number.
    CpuNode(u32),
    /// None: lg's own entry is what counts, or nobody ever loads it.
    None,
}

/// What writing `descriptor` at `index` of the GDT means.
pub const fn effect(index: u64, descriptor: u64) -> Effect {
    match index {
        12..=14 => Effect::Tls(index - 12),
        15 => Effect::CpuNode(limit(descriptor)),
        _ => Effect::None,
    }
}

/// The limit of a descriptor, in its own units.
pub const fn limit(descriptor: u64) -> u32 {
    ((descriptor & 0xffff) | ((descriptor >> 32) & 0xf_0000)) as u32
}
