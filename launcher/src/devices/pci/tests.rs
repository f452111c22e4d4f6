// SPDX-License-Identifier: GPL-2.0
//! A function of the bus, as its driver finds it: by its configuration space.

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::rng::Rng;
use crate::devices::Interrupt;
use crate::memory::Memory;

const GPA: u64 = 0x1_4000_0000;
const LINE: u8 = 17;
const FEATURES: u64 = (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_F_ACCESS_PLATFORM);
/// Acknowledge, driver, features and driver OK.
const RUNS: u32 = 15;

/// A driver of the entropy device.
struct Driver {
    pci: Pci,
    memory: Memory,
    raised: Arc<Mutex<Vec<u32>>>,
}

impl Driver {
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let routes = Arc::new(Routes::new(1, LINE.into()));
        let raised = Arc::<Mutex<Vec<u32>>>::default();
        let (ways, log) = (routes.clone(), raised.clone());
        let interrupt = Interrupt::new(move |cause| log.lock().unwrap().extend(ways.of(cause)));
        let transport = 1 << VIRTIO_F_ACCESS_PLATFORM;
        let device = Virtio::new(
            Box::new(Rng),
            transport,
            memory.clone().into(),
            Arc::new(interrupt),
            |_, _| {},
        );
        let pci = Pci::new(Arc::new(device.unwrap()), routes, GPA, LINE);
        Self {
            pci,
            memory,
            raised,
        }
    }

    fn config(&self, offset: usize, size: u32) -> u32 {
        self.pci.read_config(offset as u32, size).unwrap()
    }

    /// The capabilities: where each is.
    fn capabilities(&self) -> Vec<usize> {
        let next = |&at: &usize| Some(self.config(at + 1, 1) as usize).filter(|&at| at != 0);
        let first = self.config(0x34, 1) as usize;
        std::iter::successors(Some(first), next).take(48).collect()
    }

    /// The offset in the BAR of virtio's registers of a type, and the place of their capability.
    fn registers(&self, kind: u32) -> (u64, usize) {
        let is_it = |&at: &usize| self.config(at, 1) == 9 && self.config(at + 3, 1) == kind;
        let at = self.capabilities().into_iter().find(is_it).unwrap();
        assert_eq!(self.config(at + 4, 1), 0, "BAR 0");
        (self.config(at + 8, 4).into(), at)
    }

    fn get(&self, offset: u64, size: usize) -> u32 {
        let mut data = [0; 4];
        self.pci
            .load(self.registers(1).0 + offset, &mut data[..size]);
        u32::from_le_bytes(data)
    }

    fn put(&self, offset: u64, size: usize, value: u32) {
        let data = value.to_le_bytes();
        self.pci.store(self.registers(1).0 + offset, &data[..size]);
    }

    fn negotiate(&self, features: u64) -> bool {
        self.put(0x14, 1, 0);
        self.put(0x14, 1, 3);
        for half in 0..2 {
            self.put(0x08, 4, half);
            self.put(0x0c, 4, (features >> (32 * half)) as u32);
        }
        self.put(0x14, 1, 11);
        self.get(0x14, 1) == 11
    }

    fn start(&self) {
        assert!(self.negotiate(FEATURES));
        self.put(0x16, 2, 0);
        self.put(0x18, 2, 8);
        for (register, address) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
            self.put(register, 4, address);
            self.put(register + 4, 4, 0);
        }
    }

    /// Asks for 16 random bytes with this descriptor, and kicks the queue.
    fn ask(&self, slot: u16) {
        let descriptor = [0x8000u64, 16 | (2 << 32)];
        self.memory
            .write_obj(descriptor, GuestAddress(0x1000 + 16 * u64::from(slot)))
            .unwrap();
        self.memory
            .write_obj(slot, GuestAddress(0x2004 + 2 * u64::from(slot)))
            .unwrap();
        self.memory
            .write_obj(slot + 1, GuestAddress(0x2002))
            .unwrap();
        let step = self.config(self.registers(2).1 + 16, 4);
        let kick = self.registers(2).0 + u64::from(self.get(0x1e, 2) * step);
        // A kick of this device's queue serves it.
        self.pci.store(kick, &0u16.to_le_bytes());
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(0x3002)).unwrap()
    }

    fn isr(&self) -> u8 {
        let mut data = [0];
        self.pci.load(self.registers(3).0, &mut data);
        data[0]
    }

    fn raised(&self) -> Vec<u32> {
        std::mem::take(&mut self.raised.lock().unwrap())
    }
}

#[test]
fn identity() {
    let driver = Driver::new();
    assert_eq!(driver.config(0, 4), 0x1044_1af4);
    assert_eq!(driver.config(0x2c, 4), 0x1044_1af4);
    assert_eq!(driver.config(0x08, 1), 1);
    assert_eq!(driver.config(0x0e, 1), 0, "one function, and no bridge");
    assert_eq!(driver.config(0x3c, 2), 0x0111, "the line, and INTA");
    let kinds: Vec<_> = driver
        .capabilities()
        .into_iter()
        .map(|at| driver.config(at, 1))
        .collect();
    assert_eq!(kinds, [0x11, 9, 9, 9, 9, 9]);
    driver.pci.write_config(0, 4, 0).unwrap();
    assert_eq!(driver.config(0, 4), 0x1044_1af4);
}

#[test]
fn only_whole_places_of_the_configuration() {
    let driver = Driver::new();
    for (offset, size) in [
        (1, 2),
        (2, 4),
        (0, 3),
        (0, 0),
        (0, 8),
        (256, 1),
        (u32::MAX, 1),
        (0xfff, 4),
    ] {
        assert_eq!(
            driver.pci.read_config(offset, size),
            None,
            "{offset} {size}"
        );
        assert_eq!(driver.pci.write_config(offset, size, 0), None);
    }
    assert_eq!(driver.pci.read_config(252, 4), Some(0));
}

#[test]
fn the_size_of_the_bar() {
    let driver = Driver::new();
    assert_eq!(driver.config(0x10, 4), 0x4000_0004, "64 bits");
    assert_eq!(driver.config(0x14, 4), 1);
    for half in [0x10, 0x14] {
        driver.pci.write_config(half, 4, u32::MAX).unwrap();
    }
    let size = (u64::from(driver.config(0x14, 4)) << 32) | u64::from(driver.config(0x10, 4));
    assert_eq!((!(size & !0xf)).wrapping_add(1), BAR_SIZE);
    assert_eq!(driver.config(0x18, 4), 0, "no other");
    for kind in 1..=4 {
        let (offset, at) = driver.registers(kind);
        assert!(offset + u64::from(driver.config(at + 12, 4)) <= BAR_SIZE);
    }
}

#[test]
fn features() {
    let driver = Driver::new();
    driver.put(0x00, 4, 1);
    assert_eq!(driver.get(0x04, 4), 0b11, "VERSION_1, ACCESS_PLATFORM");
    driver.put(0x00, 4, 2);
    assert_eq!(driver.get(0x04, 4), 0);
    assert!(
        !driver.negotiate(1 << VIRTIO_F_ACCESS_PLATFORM),
        "a legacy driver"
    );
    assert!(driver.negotiate(FEATURES));
    driver.put(0x08, 4, 1);
    assert_eq!(driver.get(0x0c, 4), 0b11);
}

#[test]
fn a_line_tells_until_it_is_asked_why() {
    let driver = Driver::new();
    driver.start();
    driver.put(0x1c, 2, 1);
    driver.put(0x14, 1, RUNS);
    assert_eq!(driver.get(0x14, 1), RUNS);
    driver.ask(0);
    assert_eq!(driver.used(), 1);
    assert_eq!(driver.raised(), [17]);
    assert_eq!(driver.isr(), 1);
    assert_eq!(driver.isr(), 0);
    driver.pci.device.interrupt().config_changed();
    assert_eq!(driver.isr(), 2);
}

#[test]
fn messages_go_where_the_bus_says() {
    let driver = Driver::new();
    driver.start();
    assert_eq!(driver.get(0x10, 2), 0xffff, "after a reset");
    assert_eq!(driver.get(0x1a, 2), 0xffff);
    driver.put(0x10, 2, 0);
    driver.put(0x1a, 2, 2);
    assert_eq!(driver.get(0x1a, 2), 0xffff, "there are two");
    driver.put(0x1a, 2, 1);
    assert_eq!(driver.get(0x1a, 2), 1);
    driver.put(0x1c, 2, 1);
    driver.put(0x14, 1, RUNS);
    let control = driver.capabilities()[0] as u32 + 2;
    assert_eq!(driver.config(control as usize, 2), 1, "two messages, off");
    driver.pci.write_config(control, 2, 0x8000).unwrap();
    driver.ask(0);
    assert_eq!(driver.raised(), [0; 0], "a message that goes nowhere");
    driver.pci.routes().connect(0, 60);
    driver.pci.routes().connect(1, 61);
    driver.ask(1);
    driver.pci.device.interrupt().config_changed();
    assert_eq!(driver.raised(), [61, 60]);
    assert_eq!(driver.pci.routes().disconnect(), [60, 61]);
    assert_eq!(driver.pci.routes().disconnect(), [0; 0]);
    driver.pci.write_config(control, 2, 0).unwrap();
    driver.ask(2);
    assert_eq!(driver.raised(), [17]);
    driver.put(0x14, 1, 0);
    assert_eq!(driver.get(0x1a, 2), 0xffff);
    assert_eq!(driver.get(0x14, 1), 0);
}

#[test]
fn the_order_of_setting_up_is_kept() {
    let driver = Driver::new();
    driver.put(0x1c, 2, 1);
    assert_eq!(driver.get(0x1c, 2), 0, "before FEATURES_OK");
    driver.start();
    driver.put(0x1c, 2, 1);
    driver.put(0x1c, 2, 0);
    assert_eq!(driver.get(0x1c, 2), 1);
    driver.put(0x20, 4, 0x5000);
    assert_eq!(driver.get(0x20, 4), 0x1000, "while ready");
    driver.put(0x16, 2, 1);
    assert_eq!(
        [
            driver.get(0x18, 2),
            driver.get(0x1c, 2),
            driver.get(0x1a, 2)
        ],
        [0, 0, 0xffff]
    );
    driver.put(0x1a, 2, 0);
    assert_eq!(
        driver.get(0x10, 2),
        0xffff,
        "no queue's vector is that of the configuration"
    );
}

#[test]
fn registers_by_the_window_of_the_configuration() {
    let driver = Driver::new();
    let window = driver.capabilities()[5];
    let at = |offset: usize| (window + offset) as u32;
    assert_eq!(
        driver.pci.read_config(at(16), 4),
        None,
        "it is set to nothing"
    );
    driver
        .pci
        .write_config(at(8), 4, driver.registers(1).0 as u32 + 0x14)
        .unwrap();
    driver.pci.write_config(at(12), 4, 1).unwrap();
    driver.pci.write_config(at(16), 1, 1).unwrap();
    assert_eq!(driver.get(0x14, 1), 1);
    assert_eq!(driver.pci.read_config(at(16), 1), Some(1));
    driver.pci.write_config(at(4), 1, 1).unwrap();
    assert_eq!(
        driver.pci.read_config(at(16), 1),
        None,
        "there is no such BAR"
    );
}

proptest! {
    /// Whatever is stored in whatever order, into the configuration, registers and rings: no panic, no endless loop.
    #[test]
    fn hostile_drivers(
        steps in prop::collection::vec(
            (any::<bool>(), prop_oneof![0u64..0x40, 0u64..BAR_SIZE, any::<u64>()],
             prop_oneof![0u32..0x20, (0u32..0x100).prop_map(|n| n << 12), any::<u32>()],
             prop::sample::select(vec![1usize, 2, 4, 8])),
            0..64,
        ),
        ram in prop::collection::vec(any::<u8>(), 4096),
    ) {
        let driver = Driver::new();
        for page in 1..16 {
            driver.memory.write_slice(&ram, GuestAddress(page << 12)).unwrap();
        }
        driver.start();
        for (by_config, offset, value, size) in steps {
            if by_config {
                driver.pci.write_config(offset as u32, size as u32, value);
                driver.pci.read_config(offset as u32, size as u32);
            } else {
                driver.pci.store(offset, &u64::from(value).to_le_bytes()[..size]);
                driver.pci.load(offset, &mut [0; 8][..size]);
            }
            driver.pci.device.process(0);
        }
    }
}
