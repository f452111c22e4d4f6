// SPDX-License-Identifier: GPL-2.0
//! The registers of a device, as its driver sees them.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::driver::Registers;
use crate::devices::{Device, Fault, Interrupt, Kicked, Served};
use crate::memory::dma::Dma;
use crate::memory::Memory;

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

const SIZE: u16 = 16;
const RAM: u64 = 1 << 20;
/// The one that the device has of its own.
const FEATURE: u64 = 1 << 5;

/// Uses every buffer at once, without a look at it.
struct Sink;

impl Device for Sink {
    fn name(&self) -> &str {
        "sink"
    }

    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn kicked(&self, _: usize) -> Kicked {
        Kicked::Thread
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 {
            data.fill(0xab);
        }
    }

    fn start(&mut self, _: u64) {}

    fn serve(&mut self, _: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut used = false;
        while let Some(chain) = queue.iter(memory)?.next() {
            queue.add_used(memory, chain.head_index(), 0)?;
            used = true;
        }
        Ok(Served { used, then: 0 })
    }
}

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

fn sink() -> (Mmio, Arc<AtomicU32>) {
    sink_in(memory())
}

fn sink_in(memory: Memory) -> (Mmio, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let raised = count.clone();
    let interrupt = Interrupt::new(move |_| {
        raised.fetch_add(1, Ordering::SeqCst);
    });
    let device = Virtio::new(
        Box::new(Sink),
        0,
        memory.into(),
        Arc::new(interrupt),
        |_, _| {},
    );
    (Mmio::new(Arc::new(device.unwrap())), count)
}

#[test]
fn identity() {
    let (mmio, _) = sink();
    assert_eq!(mmio.get(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(mmio.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(mmio.get(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(mmio.get(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    let mut config = [0; 2];
    mmio.load(0x100, &mut config);
    assert_eq!(config, [0xab; 2]);
    mmio.load(0x102, &mut config);
    assert_eq!(config, [0; 2]);
}

#[test]
fn only_whole_registers() {
    let (mmio, _) = sink();
    let mut byte = [0xff];
    mmio.load(0, &mut byte);
    assert_eq!(byte, [0]);
    mmio.store(VIRTIO_MMIO_STATUS.into(), &[1]);
    mmio.store(u64::from(VIRTIO_MMIO_STATUS) + 1, &[1, 0, 0, 0]);
    mmio.store(VIRTIO_MMIO_STATUS.into(), &[1; 8]);
    assert_eq!(mmio.get(VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn features() {
    let (mmio, _) = sink();
    mmio.put(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(mmio.get(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    mmio.put(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(
        mmio.get(VIRTIO_MMIO_DEVICE_FEATURES),
        EVENT_IDX as u32 | INDIRECT_DESC as u32 | FEATURE as u32
    );
    mmio.put(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(mmio.get(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    assert!(mmio.negotiate(VERSION_1 | FEATURE));
    assert!(mmio.negotiate(VERSION_1));
    assert!(!mmio.negotiate(FEATURE), "a legacy driver");
    assert!(
        !mmio.negotiate(VERSION_1 | (FEATURE << 1)),
        "a feature that was not offered"
    );
}

#[test]
fn the_order_of_setting_up_is_kept() {
    let (mmio, _) = sink();
    mmio.put(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(mmio.get(VIRTIO_MMIO_QUEUE_READY), 0, "before FEATURES_OK");
    mmio.driver_ok();
    assert_eq!(
        mmio.get(VIRTIO_MMIO_STATUS) & DRIVER_OK,
        0,
        "without features"
    );
    assert!(mmio.negotiate(VERSION_1));
    mmio.set_up(0, SIZE, [0x1000, 0x2000, 0x3000]);
    assert_eq!(mmio.get(VIRTIO_MMIO_QUEUE_READY), 1);
    mmio.put(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x5000);
    assert_eq!(
        mmio.0.state().queue().unwrap().desc_table(),
        0x1000,
        "while ready"
    );
    mmio.driver_ok();
    mmio.put(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(mmio.get(VIRTIO_MMIO_QUEUE_READY), 1, "after DRIVER_OK");
    mmio.put(VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(mmio.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "no such queue");
    mmio.put(VIRTIO_MMIO_STATUS, 0);
    mmio.put(VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(mmio.get(VIRTIO_MMIO_QUEUE_READY), 0, "after reset");
    assert_eq!(mmio.get(VIRTIO_MMIO_QUEUE_NUM_MAX), u32::from(SIZE));
}

#[test]
fn a_queue_outside_ram_stops_the_device() {
    let (mmio, raised) = sink();
    assert!(mmio.negotiate(VERSION_1));
    mmio.set_up(0, SIZE, [RAM, 0x2000, 0x3000]);
    mmio.driver_ok();
    assert_ne!(mmio.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0);
    assert_eq!(
        mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_CONFIG
    );
    assert_eq!(raised.load(Ordering::SeqCst), 1);
    mmio.0.process(0);
    assert_eq!(raised.load(Ordering::SeqCst), 1);
    mmio.put(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(mmio.get(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn notify_kicks_the_queue() {
    let (mmio, _) = sink();
    mmio.put(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    mmio.put(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    mmio.put(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    assert_eq!(mmio.0.kick(1).unwrap().read().unwrap(), 1);
    assert!(mmio.0.kick(0).unwrap().read().is_err());
}

#[test]
fn a_busy_device_is_still_asked_why_it_interrupted() {
    let (mmio, _) = sink();
    mmio.0.interrupt().config_changed();
    let _at_work = mmio.0.state();
    assert_eq!(
        mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_CONFIG
    );
    mmio.put(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    mmio.put(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    assert_eq!(mmio.0.kick(1).unwrap().read().unwrap(), 1);
}

/// Names a word for the reasons.
fn tell_reasons_at(mmio: &Mmio, gpa: u64) {
    mmio.put(LGUEST_MMIO_REASONS_LOW, gpa as u32);
    mmio.put(LGUEST_MMIO_REASONS_HIGH, (gpa >> 32) as u32);
}

/// Where they go, as the registers say it.
fn told_at(mmio: &Mmio) -> u64 {
    let high = u64::from(mmio.get(LGUEST_MMIO_REASONS_HIGH));
    (high << 32) | u64::from(mmio.get(LGUEST_MMIO_REASONS_LOW))
}

#[test]
fn the_reasons_go_to_a_word_of_the_drivers() {
    const WORD: u64 = 0x4ffc;
    let memory = memory();
    let (mmio, raised) = sink_in(memory.clone());
    let interrupt = mmio.0.interrupt().clone();
    let word = || memory.read_obj::<u32>(GuestAddress(WORD)).unwrap();
    interrupt.config_changed();
    tell_reasons_at(&mmio, WORD);
    assert_eq!(told_at(&mmio), WORD);
    assert_eq!(word(), VIRTIO_MMIO_INT_CONFIG, "it waited already");
    assert_eq!(mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    memory.write_obj(1u32 << 31, GuestAddress(WORD)).unwrap();
    interrupt.config_changed();
    assert_eq!(word(), (1 << 31) | VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(raised.load(Ordering::SeqCst), 2);
    // Back to the register, and after a reset as well.
    for back in [LGUEST_MMIO_REASONS_HIGH, VIRTIO_MMIO_STATUS] {
        tell_reasons_at(&mmio, WORD);
        memory.write_obj(0u32, GuestAddress(WORD)).unwrap();
        mmio.put(LGUEST_MMIO_REASONS_LOW, 0);
        mmio.put(back, 0);
        assert_eq!(told_at(&mmio), 0);
        interrupt.config_changed();
        assert_eq!(word(), 0);
        let status = mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS);
        assert_eq!(status, VIRTIO_MMIO_INT_CONFIG);
        mmio.put(VIRTIO_MMIO_INTERRUPT_ACK, status);
    }
}

#[test]
fn no_reason_goes_where_no_word_can_be() {
    let (mmio, _) = sink();
    for gpa in [RAM, RAM - 2, 0x1002, u64::MAX, 1 << 40] {
        tell_reasons_at(&mmio, 0x1000);
        tell_reasons_at(&mmio, gpa);
        assert_eq!(told_at(&mmio), 0, "{gpa:#x}");
        mmio.0.interrupt().config_changed();
        let status = mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS);
        assert_eq!(status, VIRTIO_MMIO_INT_CONFIG, "{gpa:#x}");
    }
}

proptest! {
    /// Whatever is stored in whatever order, into registers and rings: no panic, no endless
    /// loop.
    #[test]
    fn hostile_drivers(
        negotiated in any::<bool>(),
        steps in prop::collection::vec(
            (
                prop_oneof![
                    prop::sample::select(vec![
                        0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84,
                        0x90, 0x94, 0xa0, 0xa4, 0xc0, 0xe0, 0xe4, 0x100,
                    ]),
                    any::<u64>(),
                ],
                prop_oneof![0u32..0x20, (0u32..0x100).prop_map(|n| n << 12), any::<u32>()],
                prop::sample::select(vec![1usize, 2, 4, 4, 4, 4, 4, 8]),
            ),
            0..64,
        ),
        ram in prop::collection::vec(any::<u8>(), 4096),
    ) {
        let memory = memory();
        let (mmio, _) = sink_in(memory.clone());
        for page in (0..RAM).step_by(4096) {
            memory.write_slice(&ram, GuestAddress(page)).unwrap();
        }
        if negotiated {
            mmio.negotiate(VERSION_1 | EVENT_IDX);
            mmio.set_up(0, SIZE, [0x1000, 0x2000, 0x3000]);
        }
        for (offset, value, size) in steps {
            let data = u64::from(value).to_le_bytes();
            mmio.store(offset, &data[..size]);
            mmio.load(offset, &mut [0; 8][..size]);
            mmio.0.process(0);
            mmio.0.process(1);
        }
    }
}
