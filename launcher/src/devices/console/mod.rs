// SPDX-License-Identifier: GPL-2.0
//! The console: a console device (section 5.3 of the specification) with one port, which is a
//! terminal in the Guest, and its size.

pub mod ports;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::Queue;

use super::bytes::{drain, Input, Output};
use super::{until_quiet, Device, Fault, Kicked, Served};
use crate::memory::dma::Dma;

/// The queue that carries input to the driver.
pub const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Feature: the size of the terminal is known.
const F_SIZE: u32 = 0;

/// The size of the terminal, in characters: columns, and rows above bit 16.
#[derive(Default)]
pub struct WindowSize(AtomicU32);

impl WindowSize {
    /// Sets it.
    pub fn set(&self, columns: u16, rows: u16) {
        self.0.store(
            (u32::from(rows) << 16) | u32::from(columns),
            Ordering::Relaxed,
        );
    }
}

/// The device.
pub struct Console {
    input: Arc<Input>,
    size: Option<Arc<WindowSize>>,
    output: Output,
}

impl Console {
    /// A console at which `input` is typed, and which shows `output`. `size` is absent when there
    /// is no terminal.
    pub fn new(input: Arc<Input>, size: Option<Arc<WindowSize>>, output: Output) -> Self {
        Self {
            input,
            size,
            output,
        }
    }
}

impl Device for Console {
    fn name(&self) -> &str {
        "console"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        u64::from(self.size.is_some()) << F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64; 2]
    }

    /// Linux spins with interrupts off until its output is out, 16 bytes at a time: to wake another
    /// thread for that costs more than the output.
    fn kicked(&self, index: usize) -> Kicked {
        match index {
            TRANSMIT => Kicked::Vcpu,
            _ => Kicked::Thread,
        }
    }

    /// `struct virtio_console_config` begins with columns and rows; of the rest nothing is offered.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self
            .size
            .as_ref()
            .map_or(0, |size| size.0.load(Ordering::Relaxed));
        super::copy_config(&size.to_le_bytes(), offset, data);
    }

    fn start(&mut self, _: u64) {}

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        if index == RECEIVE {
            // A driver that offers buffers is there to take what comes.
            self.input.want();
        }
        until_quiet(queue, memory, |queue| {
            let used = match index {
                RECEIVE => self.input.fill(queue, memory)?,
                _ => drain(&mut self.output, queue, memory)?,
            };
            let wants_more = index != RECEIVE || !self.input.is_empty();
            Ok((Served { used, then: 0 }, wants_more))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::virtio_mmio::*;
    use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT};
    use vm_memory::{Bytes, GuestAddress};

    use crate::devices::testing::driver::{show, Driver, Registers, Shown, SIZE};
    use crate::devices::Window;

    use super::*;

    struct Bench {
        input: Arc<Input>,
        size: Arc<WindowSize>,
        screen: Shown,
        driver: Driver,
    }

    fn bench(features: u64) -> Bench {
        let (input, size) = (Arc::<Input>::default(), Arc::<WindowSize>::default());
        let (screen, output) = show();
        let console = Console::new(input.clone(), Some(size.clone()), output);
        Bench {
            input,
            size,
            screen,
            driver: Driver::new(console, features),
        }
    }

    #[test]
    fn output_reaches_the_screen() {
        let Bench {
            screen, mut driver, ..
        } = bench(0);
        driver
            .memory
            .write_slice(b"hello, ", GuestAddress(0x8000))
            .unwrap();
        driver
            .memory
            .write_slice(b"world\n", GuestAddress(0x9000))
            .unwrap();
        driver.descriptor(TRANSMIT, 3, 0x8000, 7, VRING_DESC_F_NEXT as u16, 5);
        driver.descriptor(TRANSMIT, 5, 0x9000, 6, 0, 0);
        driver.offer(TRANSMIT, 3);
        driver.device.process(TRANSMIT);
        assert_eq!(*screen.lock().unwrap(), b"hello, world\n");
        assert_eq!(driver.used(TRANSMIT), [[3, 0]]);
        assert!(driver.interrupted());
        driver.device.process(TRANSMIT);
        assert!(!driver.interrupted());
    }

    #[test]
    fn input_waits_for_buffers() {
        for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
            let Bench {
                input, mut driver, ..
            } = bench(features);
            assert_eq!(input.offer(&[b'x'; 0x180]), 0x180);
            driver.device.process(RECEIVE);
            assert!(!driver.interrupted());
            driver.give(RECEIVE);
            driver.give(RECEIVE);
            driver.device.process(RECEIVE);
            assert!(driver.interrupted());
            assert_eq!(
                driver.filled(RECEIVE),
                [vec![b'x'; 0x100], vec![b'x'; 0x80]]
            );
            input.wait_until_wanted();
        }
    }

    #[test]
    fn window_size() {
        let Bench { size, driver, .. } = bench(0);
        size.set(132, 43);
        let config = |driver: &Driver, offset| {
            let mut data = [0xff; 4];
            driver.mmio.load(offset, &mut data);
            data
        };
        assert_eq!(config(&driver, 0x100), [132, 0, 43, 0]);
        assert_eq!(config(&driver, 0x102), [43, 0, 0, 0]);
        assert_eq!(config(&driver, 0xffc), [0; 4]);
        let generation = driver.mmio.get(VIRTIO_MMIO_CONFIG_GENERATION);
        driver.interrupt.config_changed();
        assert_ne!(driver.mmio.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
        assert_eq!(
            driver.mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        driver
            .mmio
            .put(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(driver.mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    }

    #[test]
    fn a_buffer_outside_ram_stops_the_device() {
        let Bench {
            screen, mut driver, ..
        } = bench(0);
        driver.descriptor(TRANSMIT, 0, 0xffff_f000, 16, 0, 0);
        driver.offer(TRANSMIT, 0);
        driver.device.process(TRANSMIT);
        assert!(driver.needs_reset());
        assert!(screen.lock().unwrap().is_empty());
    }

    proptest! {
        /// Random descriptors, in both directions: no panic, and an end.
        #[test]
        fn hostile_rings(
            descriptors in prop::collection::vec(
                (any::<u64>(), 0u32..0x3000, 0u16..8, 0u16..80), 1..64,
            ),
            small in any::<bool>(),
            heads in prop::collection::vec(0u16..80, 1..64),
            available in prop_oneof![0..SIZE, any::<u16>()],
        ) {
            let Bench { input, mut driver, .. } = bench(0);
            input.offer(&[b'x'; 100]);
            for queue in [RECEIVE, TRANSMIT] {
                for (slot, &(gpa, length, flags, next)) in descriptors.iter().enumerate() {
                    let gpa = if small { gpa % (1 << 21) } else { gpa };
                    driver.descriptor(queue, slot as u16, gpa, length, flags, next);
                }
                for &head in &heads {
                    driver.offer(queue, head);
                }
                let at = driver.rings[queue].available() + 2;
                driver.memory.write_obj(available, GuestAddress(at)).unwrap();
                driver.device.process(queue);
            }
        }
    }
}
