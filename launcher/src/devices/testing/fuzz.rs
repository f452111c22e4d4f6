// SPDX-License-Identifier: GPL-2.0
//! This module lets a fuzzer at a device: its bytes become the deeds of a driver that is out for
//! trouble.
//!
//! The driver begins in good order, with all queues set up, so that few bytes get deep into a
//! device; most deeds are a little wrong rather than noise.

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT,
};
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Driver, Registers, SIZE, WRITE};
use crate::devices::{Device, Window};

/// Deeds per input: more find nothing new, and take their time.
const DEEDS_MAX: usize = 64;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// The rest of a fuzzer's bytes. When none are left, all is 0.
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Is nothing left?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number of `N` bytes, at most 8.
    fn number<const N: usize>(&mut self) -> u64 {
        let mut number = [0; 8];
        let bytes = self.bytes(N);
        number[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(number)
    }

    /// A number up to 255.
    pub fn byte(&mut self) -> u8 {
        self.number::<1>() as u8
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        self.number::<2>() as u16
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        self.number::<4>() as u32
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        self.number::<8>()
    }

    /// One of `count` things.
    pub fn one_of(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }
}

/// Does to `device` what `bytes` say. `our_side` is called now and then to do something at the
/// device's other end: type a key, send a frame.
pub fn drive(
    device: impl Device + 'static,
    bytes: &[u8],
    mut our_side: impl FnMut(&mut Choices<'_>),
) {
    let mut choices = Choices::new(bytes);
    let features = match choices.byte() % 2 {
        0 => 0,
        _ => (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC),
    };
    let mut driver = Driver::new(device, features);
    for _ in 0..DEEDS_MAX {
        if choices.is_empty() {
            break;
        }
        act(&mut driver, &mut choices, &mut our_side);
    }
}

fn act(
    driver: &mut Driver,
    choices: &mut Choices<'_>,
    our_side: &mut impl FnMut(&mut Choices<'_>),
) {
    let deed = choices.byte() % 12;
    let queue = choices.one_of(driver.rings.len());
    match deed {
        // A request in good order: what the device reads, and room for what it answers.
        0..=2 => request(driver, queue, choices),
        3 => driver.give(queue),
        4 => driver.device.process(queue),
        5 => our_side(choices),
        6 => {
            let (slot, gpa) = (choices.u16() % SIZE, address(driver, choices));
            let (length, flags) = (length(choices), choices.u16() & (NEXT | WRITE | INDIRECT));
            driver.descriptor(queue, slot, gpa, length, flags, choices.u16() % (SIZE + 1));
        }
        7 => {
            let head = choices.u16();
            driver.offer(queue, head);
        }
        8 => {
            let gpa = address(driver, choices);
            let count = choices.byte().into();
            // Memory that is not there is of no interest here.
            let _ = driver
                .memory
                .write_slice(choices.bytes(count), GuestAddress(gpa));
        }
        9 => {
            let offset = u32::from(choices.byte()) * 4;
            driver.mmio.put(offset, choices.u32());
        }
        10 => {
            let offset = u64::from(VIRTIO_MMIO_CONFIG) + u64::from(choices.u16());
            let mut data = [0; 8];
            let size = 1 << choices.one_of(4);
            driver.mmio.load(offset, &mut data[..size]);
        }
        _ => driver.bring_up(),
    }
}

/// Makes a chain of two descriptors or one and has it served: bytes to read, room to write.
fn request(driver: &mut Driver, queue: usize, choices: &mut Choices<'_>) {
    // A buffer of the driver's has 256 bytes; one after the other make larger ones.
    let slot = driver.rings[queue].offered % (SIZE / 2);
    let room = u32::from(choices.u16() & 0x0fff);
    let count = choices.byte().into();
    let bytes = choices.bytes(count);
    let (gpa, room_gpa) = (
        driver.rings[queue].buffer(slot),
        driver.rings[queue].buffer(SIZE / 2),
    );
    driver
        .memory
        .write_slice(bytes, GuestAddress(gpa))
        .expect("its buffers are in RAM");
    let (flags, next) = if room == 0 { (0, 0) } else { (NEXT, SIZE - 1) };
    driver.descriptor(queue, slot, gpa, bytes.len() as u32, flags, next);
    driver.descriptor(queue, SIZE - 1, room_gpa, room, WRITE, 0);
    driver.offer(queue, slot);
    driver.device.process(queue);
}

/// Somewhere: in a buffer, in a ring, or anywhere.
fn address(driver: &Driver, choices: &mut Choices<'_>) -> u64 {
    let ring = driver.rings[choices.one_of(driver.rings.len())];
    let offset = u64::from(choices.u16());
    match choices.byte() % 4 {
        0 | 1 => ring.buffer(0) + offset % 0x4000,
        2 => ring.descriptors() + offset % 0x4000,
        _ => choices.u64(),
    }
}

fn length(choices: &mut Choices<'_>) -> u32 {
    match choices.byte() % 4 {
        0 => choices.u32(),
        _ => u32::from(choices.u16()) & 0x0fff,
    }
}
