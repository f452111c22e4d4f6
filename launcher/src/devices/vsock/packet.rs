// SPDX-License-Identifier: GPL-2.0
//! The header of a vsock packet (`struct virtio_vsock_hdr`, section 5.10.6 of the specification).
//!
//! The crate virtio-vsock wants a packet's data in one descriptor. Linux sends a page fragment in
//! each, so here chains are read as streams of bytes, and only the header is taken apart.

/// The size of a header, in bytes.
pub const HEADER: usize = 44;

/// Types of sockets.
pub mod socket_type {
    /// A stream of bytes.
    pub const STREAM: u16 = 1;
}

/// Operations.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Grants it.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, or no more.
    pub const RST: u16 = 3;
    /// The sender will not receive, or not send, or neither, as the flags say.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Only tells the sender's credit.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for such an update.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of SHUTDOWN.
pub mod shutdown {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A header, by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's context.
    pub source_cid: u64,
    /// The receiver's context.
    pub destination_cid: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    /// One of [`socket_type`], or nonsense.
    pub socket_type: u16,
    /// One of [`op`], or nonsense.
    pub op: u16,
    /// As the operation has them.
    pub flags: u32,
    /// The size of the sender's receive buffer for this connection.
    pub buffer: u32,
    /// The number of bytes that have left that buffer, modulo 2^32.
    pub forwarded: u32,
}

impl Header {
    /// From the bytes of the specification's layout.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let wide = |at| u64::from(field(at)) | (u64::from(field(at + 4)) << 32);
        let type_and_op = field(28);
        Self {
            source_cid: wide(0),
            destination_cid: wide(8),
            source_port: field(16),
            destination_port: field(20),
            length: field(24),
            socket_type: type_and_op as u16,
            op: (type_and_op >> 16) as u16,
            flags: field(32),
            buffer: field(36),
            forwarded: field(40),
        }
    }

    /// To those bytes.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let type_and_op = u32::from(self.socket_type) | (u32::from(self.op) << 16);
        bytes[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination_cid.to_le_bytes());
        let fields = [
            self.source_port,
            self.destination_port,
            self.length,
            type_and_op,
            self.flags,
            self.buffer,
            self.forwarded,
        ];
        for (place, field) in bytes[16..].chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout() {
        let bytes: [u8; HEADER] = std::array::from_fn(|index| index as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.source_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.destination_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.source_port, 0x1312_1110);
        assert_eq!(header.destination_port, 0x1716_1514);
        assert_eq!(header.length, 0x1b1a_1918);
        assert_eq!((header.socket_type, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(
            (header.buffer, header.forwarded),
            (0x2726_2524, 0x2b2a_2928)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_survive(bytes: [u8; HEADER]) {
            prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
        }
    }
}
