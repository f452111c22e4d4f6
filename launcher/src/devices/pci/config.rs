// SPDX-License-Identifier: GPL-2.0
//! The configuration space of a function: 256 bytes, most of which are what they are.

use std::ops::Range;

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_NET, VIRTIO_ID_RNG,
};

/// Size of a function's BAR, in bytes.
pub const BAR_SIZE: u64 = 0x8000;

/// The parts of the BAR, each a page, in this order.
pub(super) const PART: u64 = 0x1000;
pub(super) const COMMON: u64 = 0;
pub(super) const ISR: u64 = PART;
pub(super) const DEVICE: u64 = 2 * PART;
pub(super) const NOTIFY: u64 = 3 * PART;
const MSIX_TABLE: u64 = 4 * PART;
const MSIX_PENDING: u64 = 5 * PART;

/// Bytes from the place for one queue's kicks to that for the next.
pub(super) const NOTIFY_STEP: u64 = 4;

/// Of virtio's functions.
const VENDOR: u16 = 0x1af4;
/// Device type n is function 0x1040 + n.
const FIRST_DEVICE: u16 = 0x1040;
/// The first revision that is not a transitional function.
const REVISION: u8 = 1;

const COMMAND: usize = 0x04;
/// The bits of the command that can be set: memory space, bus master, no INTx.
const COMMAND_BITS: u16 = (1 << 1) | (1 << 2) | (1 << 10);
const STATUS: usize = 0x06;
const HAS_CAPABILITIES: u16 = 1 << 4;
const BAR: usize = 0x10;
/// Memory, 64 bits wide, not prefetchable.
const BAR_KIND: u64 = 0b0100;
const CAPABILITIES: usize = 0x34;
const LINE: usize = 0x3c;
const PIN: usize = 0x3d;
const INTA: u8 = 1;

const MSIX: usize = 0x40;
const MSIX_CONTROL: usize = MSIX + 2;
const MSIX_ENABLE: u16 = 1 << 15;
/// And "all of them masked".
const MSIX_BITS: u16 = MSIX_ENABLE | (1 << 14);

/// A window to the BAR in the configuration space: capability `VIRTIO_PCI_CAP_PCI_CFG`.
const WINDOW: usize = 0x98;
const WINDOW_BAR: usize = WINDOW + 4;
const WINDOW_OFFSET: usize = WINDOW + 8;
const WINDOW_LENGTH: usize = WINDOW + 12;
const WINDOW_DATA: usize = WINDOW + 16;

const VENDOR_CAPABILITY: u8 = 0x09;
const MSIX_CAPABILITY: u8 = 0x11;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_WINDOW: u8 = 5;

/// The space.
pub(super) struct Config {
    bytes: [u8; 256],
    /// The bits that a driver can change.
    writable: [u8; 256],
}

/// The place of `size` bytes at `offset`: 1, 2 or 4 of them, in one piece.
pub(super) fn place(offset: u32, size: u32) -> Option<Range<usize>> {
    let whole = matches!(size, 1 | 2 | 4) && offset % size == 0 && offset < 256;
    whole.then(|| offset as usize..(offset + size) as usize)
}

impl Config {
    /// That of a device of type `kind` with so many messages, whose BAR is at `bar` and whose line is `line`.
    pub(super) fn new(kind: u32, messages: usize, bar: u64, line: u8) -> Self {
        let mut config = Self {
            bytes: [0; 256],
            writable: [0; 256],
        };
        config.identify(kind as u16);
        config.u16(STATUS, HAS_CAPABILITIES);
        config.allow(COMMAND, &COMMAND_BITS.to_le_bytes());
        config.put(BAR, &(bar | BAR_KIND).to_le_bytes());
        config.allow(BAR, &(!(BAR_SIZE - 1)).to_le_bytes());
        config.bytes[PIN] = INTA;
        config.bytes[LINE] = line;
        config.writable[LINE] = 0xff;
        config.offer(messages);
        config
    }

    fn identify(&mut self, kind: u16) {
        self.u16(0x00, VENDOR);
        self.u16(0x02, FIRST_DEVICE + kind);
        self.bytes[0x08] = REVISION;
        let class: u16 = match kind.into() {
            VIRTIO_ID_NET => 0x0200,
            VIRTIO_ID_BLOCK | VIRTIO_ID_FS => 0x0180,
            VIRTIO_ID_CONSOLE => 0x0780,
            VIRTIO_ID_RNG => 0x1000,
            _ => 0x0880,
        };
        self.u16(0x0a, class);
        self.u16(0x2c, VENDOR);
        self.u16(0x2e, FIRST_DEVICE + kind);
    }

    /// The capabilities: MSI-X, and where virtio's registers are.
    fn offer(&mut self, messages: usize) {
        self.bytes[CAPABILITIES] = MSIX as u8;
        self.put(MSIX, &[MSIX_CAPABILITY, 0x50]);
        self.u16(MSIX_CONTROL, messages as u16 - 1);
        self.allow(MSIX_CONTROL, &MSIX_BITS.to_le_bytes());
        self.put(MSIX + 4, &(MSIX_TABLE as u32).to_le_bytes());
        self.put(MSIX + 8, &(MSIX_PENDING as u32).to_le_bytes());
        self.registers(0x50, 0x60, TYPE_COMMON, COMMON, 16);
        self.registers(0x60, 0x78, TYPE_NOTIFY, NOTIFY, 20);
        self.put(0x70, &(NOTIFY_STEP as u32).to_le_bytes());
        self.registers(0x78, 0x88, TYPE_ISR, ISR, 16);
        self.registers(0x88, WINDOW as u8, TYPE_DEVICE, DEVICE, 16);
        self.put(WINDOW, &[VENDOR_CAPABILITY, 0, 20, TYPE_WINDOW]);
        self.writable[WINDOW_BAR] = 0xff;
        self.allow(WINDOW_OFFSET, &[0xff; 8]);
    }

    /// A capability of `length` bytes at `at`, before that at `next`: the registers of `kind` are at `offset` of BAR 0.
    fn registers(&mut self, at: usize, next: u8, kind: u8, offset: u64, length: u8) {
        self.put(at, &[VENDOR_CAPABILITY, next, length, kind]);
        self.put(at + 8, &(offset as u32).to_le_bytes());
        self.put(at + 12, &(PART as u32).to_le_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    pub(super) fn read(&self, place: Range<usize>) -> u32 {
        let mut value = [0; 4];
        value[..place.len()].copy_from_slice(&self.bytes[place]);
        u32::from_le_bytes(value)
    }

    pub(super) fn write(&mut self, place: Range<usize>, value: u32) {
        let places = self.bytes[place.clone()]
            .iter_mut()
            .zip(&self.writable[place]);
        for ((byte, &bits), new) in places.zip(value.to_le_bytes()) {
            *byte = (*byte & !bits) | (new & bits);
        }
    }

    /// The driver has switched messages on.
    pub(super) fn uses_messages(&self) -> bool {
        self.read(MSIX_CONTROL..MSIX_CONTROL + 2) & u32::from(MSIX_ENABLE) != 0
    }

    /// The place in the BAR, and the number of bytes, that an access to the window's data is for: `None` for any
    /// other access, `Some(None)` if the window is set to nothing.
    pub(super) fn window(&self, place: &Range<usize>) -> Option<Option<(u64, usize)>> {
        if place.start < WINDOW_DATA || place.start >= WINDOW_DATA + 4 {
            return None;
        }
        let offset = self.read(WINDOW_OFFSET..WINDOW_OFFSET + 4);
        let length = self.read(WINDOW_LENGTH..WINDOW_LENGTH + 4);
        let is_there = self.bytes[WINDOW_BAR] == 0
            && matches!(length, 1 | 2 | 4)
            && offset % length == 0
            && u64::from(offset) < BAR_SIZE;
        Some(is_there.then_some((offset.into(), length as usize)))
    }
}
