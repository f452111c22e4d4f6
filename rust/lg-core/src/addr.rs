// SPDX-License-Identifier: GPL-2.0

//! Three kinds of address, as three types, so that the compiler refuses to mix them up.

use core::fmt;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Entries in a page table of any level.
pub const TABLE_ENTRIES: usize = 512;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Gives the number its meaning.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The first byte of the 4 KiB page this address lies in.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Bytes from the start of that page to this address.
            pub const fn offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// The address `bytes` further up, or `None` past the end of the number space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A Guest virtual address: what the Guest's instructions use. Any number is possible; see
    /// [`Gva::is_canonical`].
    Gva
}

address! {
    /// A Guest physical address: what the Guest's page tables hold. It is RAM only if one of the
    /// VM's memory regions covers it.
    Gpa
}

address! {
    /// A physical address of the Host: what the shadow page tables hold.
    Hpa
}

/// Bits of a virtual address that 4-level paging translates.
const GVA_BITS: u32 = 48;

impl Gva {
    /// Whether bits 63:47 are all equal (SDM, "Canonical Addressing"). Guests have 4-level paging,
    /// also on a Host with 5 levels, where the processor lets more addresses pass than this does.
    pub const fn is_canonical(self) -> bool {
        self.canonicalize().0 == self.0
    }

    /// Says whether this is a canonical address of the upper half, which is the Guest kernel's.
    pub const fn is_upper(self) -> bool {
        self.is_canonical() && self.0 >> (GVA_BITS - 1) != 0
    }

    /// Copies bit 47 to the bits above it.
    pub const fn canonicalize(self) -> Self {
        const UNUSED: u32 = u64::BITS - GVA_BITS;
        Self((((self.0 << UNUSED) as i64) >> UNUSED) as u64)
    }

    /// The index of this address's entry in a table of `level`: 1 is the page table whose entries
    /// map 4 KiB, 4 is the PML4, 5 the PML5 that only the Host may have. Always below
    /// [`TABLE_ENTRIES`].
    pub const fn index(self, level: u8) -> usize {
        let shift = PAGE_SHIFT.wrapping_add(9u32.wrapping_mul((level as u32).wrapping_sub(1)));
        self.0.wrapping_shr(shift) as usize & (TABLE_ENTRIES - 1)
    }
}

impl Gpa {
    /// The number of the 4 KiB frame this address lies in.
    pub const fn gfn(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}
