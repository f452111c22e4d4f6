// SPDX-License-Identifier: GPL-2.0
//! The pages and entries by which a kernel and the backends of its devices talk.
//!
//! Sources: Xen's public headers io/console.h, io/xs_wire.h, io/pciif.h and grant_table.h. All indices run freely:
//! those of a ring are masked by its size, a power of 2, and differ by that size at most.

/// The page of the console.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Console {
    /// What is typed.
    pub input: [u8; 1024],
    /// What the kernel prints.
    pub output: [u8; 2048],
    /// The kernel has taken so much of `input`.
    pub input_taken: u32,
    /// The backend has added so much to `input`.
    pub input_added: u32,
    /// The backend has taken so much of `output`.
    pub output_taken: u32,
    /// The kernel has added so much to `output`.
    pub output_added: u32,
}

/// The page of the xenstore.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Store {
    /// Requests of the kernel.
    pub requests: [u8; 1024],
    /// Replies, and events of watches.
    pub replies: [u8; 1024],
    /// The store has taken so much of `requests`.
    pub requests_taken: u32,
    /// The kernel has added so much to `requests`.
    pub requests_added: u32,
    /// The kernel has taken so much of `replies`.
    pub replies_taken: u32,
    /// The store has added so much to `replies`.
    pub replies_added: u32,
}

/// The header of a message of the xenstore. Its payload follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StoreHeader {
    /// What it is.
    pub kind: u32,
    /// A reply has that of its request.
    pub request: u32,
    /// The transaction; 0 if there is none.
    pub transaction: u32,
    /// Bytes of payload, at most [`STORE_PAYLOAD_MAX`].
    pub length: u32,
}

/// A message of the xenstore has no more payload.
pub const STORE_PAYLOAD_MAX: u32 = 4096;

/// A request to the backend of the PCI bus, and its answer.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PciRequest {
    /// What to do.
    pub command: u32,
    /// Answer: 0, or an error of the backend's.
    pub error: i32,
    /// The function.
    pub domain: u32,
    /// The function.
    pub bus: u32,
    /// The function: its device, and itself in the low 3 bits.
    pub function: u32,
    /// Offset in its configuration space.
    pub offset: u32,
    /// Bytes there.
    pub size: u32,
    /// What is written; answer: what was read.
    pub value: u32,
    /// Of no use.
    pub info: u32,
    /// Messages of MSI-X: which, and in the answer the physical interrupt of each.
    pub messages: [PciMessage; PCI_MESSAGES],
}

/// A message of MSI-X.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PciMessage {
    /// Its physical interrupt.
    pub vector: u16,
    /// Its number.
    pub entry: u16,
}

/// Messages that one request can name.
pub const PCI_MESSAGES: usize = 128;

/// The page of the PCI bus.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pci {
    /// [`PCI_ACTIVE`] and bits that are not the backend's.
    pub flags: u32,
    /// The request.
    pub request: PciRequest,
}

/// The kernel has made a request, which the backend has not answered.
pub const PCI_ACTIVE: u32 = 1;

/// An entry of a grant table, version 1: a page that another domain may use.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Grant {
    /// What it may.
    pub flags: u16,
    /// The other domain.
    pub domain: u16,
    /// The page's frame.
    pub frame: u32,
}

/// The bits of a grant's flags that say its kind.
pub const GRANT_KIND: u16 = 3;
/// Kind: the domain may map the page.
pub const GRANT_ACCESS: u16 = 1;
/// It may only read.
pub const GRANT_READ_ONLY: u16 = 1 << 2;

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn layouts_are_those_of_the_headers() {
        assert_eq!(offset_of!(Console, output), 1024);
        assert_eq!(offset_of!(Console, input_taken), 3072);
        assert_eq!(offset_of!(Console, output_added), 3084);
        assert_eq!(offset_of!(Store, replies), 1024);
        assert_eq!(offset_of!(Store, requests_taken), 2048);
        assert_eq!(offset_of!(Store, replies_added), 2060);
        assert_eq!(size_of::<StoreHeader>(), 16);
        assert_eq!(offset_of!(Pci, request), 4);
        assert_eq!(offset_of!(PciRequest, error), 4);
        assert_eq!(offset_of!(PciRequest, domain), 8);
        assert_eq!(offset_of!(PciRequest, bus), 12);
        assert_eq!(offset_of!(PciRequest, function), 16);
        assert_eq!(offset_of!(PciRequest, offset), 20);
        assert_eq!(offset_of!(PciRequest, value), 28);
        assert_eq!(offset_of!(PciRequest, messages), 36);
        assert_eq!(size_of::<Pci>(), 552);
        assert_eq!(size_of::<Grant>(), 8);
        assert_eq!(offset_of!(Grant, frame), 4);
    }
}
