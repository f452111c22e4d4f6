// SPDX-License-Identifier: GPL-2.0
//! A driver, for the tests of devices and for fuzzers: RAM, virtqueues in it, and what a driver
//! does with both.

use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::bytes::Output;
use crate::devices::mmio::Mmio;
use crate::devices::virtio::Virtio;
use crate::devices::{Device, Interrupt, Window};
use crate::memory::{self, Memory};

pub(in crate::devices) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(in crate::devices) const SIZE: u16 = 64;
const VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;

/// Register access for tests, by a driver.
pub(in crate::devices) trait Registers {
    fn get(&self, offset: u32) -> u32;
    fn put(&self, offset: u32, value: u32);
    /// From reset to FEATURES_OK, with these features, which include VERSION_1.
    fn negotiate(&self, features: u64) -> bool;
    /// Sets up a queue with its rings where the mock driver has them.
    fn set_up(&self, index: u32, size: u16, rings: [u64; 3]);
    fn driver_ok(&self);
}

impl Registers for Mmio {
    fn get(&self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.load(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, offset: u32, value: u32) {
        self.store(offset.into(), &value.to_le_bytes());
    }

    fn negotiate(&self, features: u64) -> bool {
        self.put(VIRTIO_MMIO_STATUS, 0);
        self.put(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for (half, value) in [features as u32, (features >> 32) as u32]
            .into_iter()
            .enumerate()
        {
            self.put(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half as u32);
            self.put(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.put(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.get(VIRTIO_MMIO_STATUS) & FEATURES_OK != 0
    }

    fn set_up(&self, index: u32, size: u16, rings: [u64; 3]) {
        self.put(VIRTIO_MMIO_QUEUE_SEL, index);
        self.put(VIRTIO_MMIO_QUEUE_NUM, size.into());
        let registers = [
            VIRTIO_MMIO_QUEUE_DESC_LOW,
            VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            VIRTIO_MMIO_QUEUE_USED_LOW,
        ];
        for (register, address) in registers.into_iter().zip(rings) {
            self.put(register, address as u32);
            self.put(register + 4, (address >> 32) as u32);
        }
        self.put(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn driver_ok(&self) {
        self.put(
            VIRTIO_MMIO_STATUS,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        );
    }
}

/// A queue of the driver's, all parts of it in a stretch of RAM of its own.
#[derive(Clone, Copy)]
pub(in crate::devices) struct Ring {
    pub(in crate::devices) index: usize,
    pub(in crate::devices) offered: u16,
    /// Of its rings.
    pub(in crate::devices) size: u16,
}

impl Ring {
    pub(in crate::devices) fn descriptors(self) -> u64 {
        0x1_0000 + 0x4000 * self.index as u64
    }

    pub(in crate::devices) fn available(self) -> u64 {
        self.descriptors() + 0x1000
    }

    pub(in crate::devices) fn used(self) -> u64 {
        self.descriptors() + 0x2000
    }

    /// The address of its buffers: one of 256 bytes for each descriptor.
    pub(in crate::devices) fn buffer(self, slot: u16) -> u64 {
        0x8_0000 + 0x4000 * self.index as u64 + 0x100 * u64::from(slot)
    }
}

/// The bytes that were written to an output.
pub(in crate::devices) type Shown = Arc<Mutex<Vec<u8>>>;

/// An output, and what is written to it.
pub(in crate::devices) fn show() -> (Shown, Output) {
    let shown = Shown::default();
    let shows = shown.clone();
    (
        shown,
        Box::new(move |bytes| shows.lock().unwrap().extend(bytes)),
    )
}

/// A device with all of its queues set up.
pub(in crate::devices) struct Driver {
    pub(in crate::devices) memory: Memory,
    pub(in crate::devices) interrupt: Arc<Interrupt>,
    pub(in crate::devices) device: Arc<Virtio>,
    pub(in crate::devices) mmio: Mmio,
    pub(in crate::devices) rings: Vec<Ring>,
    features: u64,
}

impl Driver {
    /// Sets up `device`, with all the features that it offers and these of the transport's.
    pub(in crate::devices) fn new(device: impl Device + 'static, features: u64) -> Self {
        let memory = memory::create(1 << 20).unwrap();
        let features = VERSION_1 | features | device.features();
        let sizes = device.queue_sizes().iter().map(|&max| max.min(SIZE));
        let rings = sizes.enumerate().map(|(index, size)| Ring {
            index,
            offered: 0,
            size,
        });
        let rings = rings.collect();
        let interrupt = Arc::new(Interrupt::new(|_| {}));
        let device = Virtio::new(
            Box::new(device),
            0,
            memory.clone().into(),
            interrupt.clone(),
            |_, _| {},
        );
        let device = Arc::new(device.unwrap());
        let driver = Self {
            memory,
            interrupt,
            mmio: Mmio::new(device.clone()),
            device,
            rings,
            features,
        };
        driver.restart(features);
        driver
    }

    /// From whatever state to a device that runs, with empty rings.
    pub(in crate::devices) fn bring_up(&mut self) {
        self.mmio.put(VIRTIO_MMIO_STATUS, 0);
        for ring in &mut self.rings {
            ring.offered = 0;
            for part in [ring.available(), ring.used()] {
                self.memory.write_obj(0u32, GuestAddress(part)).unwrap();
            }
        }
        self.restart(self.features);
    }

    /// Sets up the device, which is reset, with these features and the queues as they are.
    pub(in crate::devices) fn restart(&self, features: u64) {
        assert!(self.mmio.negotiate(features));
        for ring in &self.rings {
            let parts = [ring.descriptors(), ring.available(), ring.used()];
            self.mmio.set_up(ring.index as u32, ring.size, parts);
        }
        self.mmio.driver_ok();
    }

    /// Gives the device a buffer to fill.
    pub(in crate::devices) fn give(&mut self, queue: usize) {
        let slot = self.rings[queue].offered % self.rings[queue].size;
        self.descriptor(queue, slot, self.rings[queue].buffer(slot), 0x100, WRITE, 0);
        self.offer(queue, slot);
    }

    /// Sends `bytes` on a queue, and kicks it.
    pub(in crate::devices) fn send(&mut self, queue: usize, bytes: &[u8]) {
        let slot = self.rings[queue].offered % self.rings[queue].size;
        let gpa = self.rings[queue].buffer(slot);
        self.memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
        self.descriptor(queue, slot, gpa, bytes.len() as u32, 0, 0);
        self.offer(queue, slot);
        self.device.process(queue);
    }

    /// The bytes with which the device has filled buffers so far.
    pub(in crate::devices) fn filled(&self, queue: usize) -> Vec<Vec<u8>> {
        self.filled_since(queue, 0)
    }

    /// The bytes with which it has filled buffers since it had used `before`.
    pub(in crate::devices) fn filled_since(&self, queue: usize, before: u16) -> Vec<Vec<u8>> {
        let bytes = |[head, length]: [u32; 2]| {
            let mut bytes = vec![0; length as usize];
            let gpa = self.rings[queue].buffer(head as u16);
            self.memory
                .read_slice(&mut bytes, GuestAddress(gpa))
                .unwrap();
            bytes
        };
        let used = self.used_since(queue, before);
        used.into_iter().map(bytes).collect()
    }

    pub(in crate::devices) fn descriptor(
        &self,
        queue: usize,
        slot: u16,
        gpa: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let at = self.rings[queue].descriptors() + 16 * u64::from(slot);
        let flags = u64::from(flags) << 32;
        let rest = u64::from(length) | flags | (u64::from(next) << 48);
        self.memory
            .write_obj([gpa, rest], GuestAddress(at))
            .unwrap();
    }

    /// Makes the chain that begins at `head` available.
    pub(in crate::devices) fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.offered % ring.size);
        ring.offered = ring.offered.wrapping_add(1);
        let (at, ring) = (ring.available(), *ring);
        self.memory
            .write_obj(head, GuestAddress(at + 4 + 2 * slot))
            .unwrap();
        self.memory
            .write_obj(ring.offered, GuestAddress(at + 2))
            .unwrap();
    }

    /// The used ring: heads and lengths.
    pub(in crate::devices) fn used(&self, queue: usize) -> Vec<[u32; 2]> {
        self.used_since(queue, 0)
    }

    /// The used ring from index `before` on.
    pub(in crate::devices) fn used_since(&self, queue: usize, before: u16) -> Vec<[u32; 2]> {
        let (at, size) = (self.rings[queue].used(), self.rings[queue].size);
        let entry = |n| {
            let place = GuestAddress(at + 4 + 8 * u64::from(n % size));
            self.memory.read_obj(place).unwrap()
        };
        (before..self.used_index(queue)).map(entry).collect()
    }

    /// The index of the used ring.
    pub(in crate::devices) fn used_index(&self, queue: usize) -> u16 {
        let at = self.rings[queue].used();
        self.memory.read_obj(GuestAddress(at + 2)).unwrap()
    }

    pub(in crate::devices) fn interrupted(&self) -> bool {
        let reasons = self.mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS);
        self.mmio.put(VIRTIO_MMIO_INTERRUPT_ACK, reasons);
        reasons & VIRTIO_MMIO_INT_VRING != 0
    }

    pub(in crate::devices) fn needs_reset(&self) -> bool {
        self.mmio.get(VIRTIO_MMIO_STATUS) & 0x40 != 0
    }
}
