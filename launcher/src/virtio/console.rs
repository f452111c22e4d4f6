// SPDX-License-Identifier: GPL-2.0
//! The console device (section 5.3 of the specification), with one port and its size.
//!
//! What the user types waits in an [`Input`], which is shared with the thread that reads it: that
//! thread must never wait for the Guest, or the user could not leave a Guest that hangs.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{Device, Fault};
use crate::memory::Memory;

/// Queue 0 carries input to the driver, queue 1 output from it.
pub const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Feature: the size of the terminal is known.
const F_SIZE: u32 = 0;
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// Bytes on their way to the Guest.
#[derive(Default)]
pub struct Input {
    waiting: Mutex<VecDeque<u8>>,
    taken: Condvar,
}

impl Input {
    /// How many bytes wait at most.
    pub const CAPACITY: usize = 1 << 16;

    /// Adds as many of `bytes` as there is room for, and tells how many.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.waiting.lock().unwrap();
        let count = bytes.len().min(Self::CAPACITY - waiting.len());
        waiting.extend(&bytes[..count]);
        count
    }

    /// Waits until there is room.
    pub fn wait(&self) {
        let full = |waiting: &mut VecDeque<u8>| waiting.len() == Self::CAPACITY;
        drop(self.taken.wait_while(self.waiting.lock().unwrap(), full));
    }
}

/// The size of the terminal, in characters.
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

/// The device. `W` takes the output.
pub struct Console<W> {
    input: Arc<Input>,
    size: Option<Arc<WindowSize>>,
    output: W,
}

impl<W: FnMut(&[u8]) + Send> Console<W> {
    /// A console which takes from `input` and gives to `output`. `size` is absent when there is no
    /// terminal.
    pub fn new(input: Arc<Input>, size: Option<Arc<WindowSize>>, output: W) -> Self {
        Self {
            input,
            size,
            output,
        }
    }

    /// Moves what waits into buffers, as long as there are both.
    fn receive(&mut self, queue: &mut Queue, memory: &Memory) -> Result<bool, Fault> {
        let mut waiting = self.input.waiting.lock().unwrap();
        let mut used = false;
        while !waiting.is_empty() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let mut writer = chain.writer(memory)?;
            let count = writer.available_bytes().min(waiting.len());
            let (front, _) = waiting.as_slices();
            let count = count.min(front.len());
            writer.write_all(&front[..count]).map_err(Fault::Buffer)?;
            waiting.drain(..count);
            queue.add_used(memory, head, count as u32)?;
            used = true;
        }
        self.input.taken.notify_all();
        Ok(used)
    }

    /// Writes what is in the buffers.
    fn transmit(&mut self, queue: &mut Queue, memory: &Memory) -> Result<bool, Fault> {
        let mut used = false;
        while let Some(chain) = queue.iter(memory)?.next() {
            let head = chain.head_index();
            let mut reader = chain.reader(memory)?;
            let mut buffer = [0; 4096];
            while reader.available_bytes() != 0 {
                let count = reader.available_bytes().min(buffer.len());
                reader
                    .read_exact(&mut buffer[..count])
                    .map_err(Fault::Buffer)?;
                (self.output)(&buffer[..count]);
            }
            queue.add_used(memory, head, 0)?;
            used = true;
        }
        Ok(used)
    }
}

impl<W: FnMut(&[u8]) + Send> Device for Console<W> {
    fn name(&self) -> &'static str {
        "console"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        u64::from(self.size.is_some()) << F_SIZE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    /// Linux spins with interrupts off until its output is out, 16 bytes at a time: to wake another
    /// thread for that costs more than the output.
    fn serves_at_once(&self, index: usize) -> bool {
        index == TRANSMIT
    }

    /// `struct virtio_console_config` begins with columns and rows; of the rest nothing is offered.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self
            .size
            .as_ref()
            .map_or(0, |size| size.0.load(Ordering::Relaxed));
        for (byte, offset) in data.iter_mut().zip(offset..) {
            *byte = *size.to_le_bytes().get(offset as usize).unwrap_or(&0);
        }
    }

    fn process(&mut self, index: usize, queue: &mut Queue, memory: &Memory) -> Result<bool, Fault> {
        let mut used = false;
        loop {
            queue.disable_notification(memory)?;
            used |= match index {
                RECEIVE => self.receive(queue, memory)?,
                _ => self.transmit(queue, memory)?,
            };
            // Buffers that came in between are not announced; without input they are of no use yet.
            let more = queue.enable_notification(memory)?;
            let idle = index == RECEIVE && self.input.waiting.lock().unwrap().is_empty();
            if !more || idle {
                return Ok(used);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::virtio_mmio::*;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use vm_memory::{Bytes, GuestAddress};

    use super::super::mmio::tests::Registers;
    use super::super::mmio::Mmio;
    use super::super::Interrupt;
    use super::*;

    const VERSION_1: u64 = 1 << 32;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const SIZE: u16 = 64;
    // Where the driver has the parts of its queue.
    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;

    /// The device, both of its outer ends, and a driver with one queue.
    struct Bench {
        memory: Memory,
        input: Arc<Input>,
        size: Arc<WindowSize>,
        screen: Arc<Mutex<Vec<u8>>>,
        interrupt: Arc<Interrupt>,
        mmio: Mmio,
        offered: u16,
    }

    impl Bench {
        /// With queue `index` set up.
        fn new(index: usize) -> Self {
            let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            let (input, size, screen) = (
                Arc::<Input>::default(),
                Arc::<WindowSize>::default(),
                Arc::<Mutex<Vec<u8>>>::default(),
            );
            let shown = screen.clone();
            let output = move |bytes: &[u8]| shown.lock().unwrap().extend(bytes);
            let console = Console::new(input.clone(), Some(size.clone()), output);
            let interrupt = Arc::new(Interrupt::new(|| {}));
            let mut mmio = Mmio::new(
                Box::new(console),
                memory.clone(),
                interrupt.clone(),
                |_, _| {},
            )
            .unwrap();
            assert!(mmio.negotiate(VERSION_1));
            mmio.set_up(index as u32, SIZE, [DESCRIPTORS, AVAILABLE, USED]);
            mmio.driver_ok();
            Self {
                memory,
                input,
                size,
                screen,
                interrupt,
                mmio,
                offered: 0,
            }
        }

        fn descriptor(&self, slot: u16, gpa: u64, length: u32, flags: u16, next: u16) {
            let at = GuestAddress(DESCRIPTORS + 16 * u64::from(slot));
            let rest = u64::from(length) | (u64::from(flags) << 32) | (u64::from(next) << 48);
            self.memory.write_obj([gpa, rest], at).unwrap();
        }

        /// Makes the chain that begins at `head` available.
        fn offer(&mut self, head: u16) {
            let slot = u64::from(self.offered % SIZE);
            self.memory
                .write_obj(head, GuestAddress(AVAILABLE + 4 + 2 * slot))
                .unwrap();
            self.offered = self.offered.wrapping_add(1);
            self.memory
                .write_obj(self.offered, GuestAddress(AVAILABLE + 2))
                .unwrap();
        }

        /// The used ring: heads and lengths.
        fn used(&self) -> Vec<[u32; 2]> {
            let count: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
            let entry = |n| {
                self.memory
                    .read_obj(GuestAddress(USED + 4 + 8 * u64::from(n)))
            };
            (0..count).map(|n| entry(n).unwrap()).collect()
        }

        fn interrupted(&mut self) -> bool {
            let reasons = self.mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS);
            self.mmio.put(VIRTIO_MMIO_INTERRUPT_ACK, reasons);
            reasons & VIRTIO_MMIO_INT_VRING != 0
        }

        fn needs_reset(&self) -> bool {
            self.mmio.get(VIRTIO_MMIO_STATUS) & 0x40 != 0
        }
    }

    #[test]
    fn output_reaches_the_screen() {
        let mut bench = Bench::new(1);
        bench
            .memory
            .write_slice(b"hello, ", GuestAddress(0x8000))
            .unwrap();
        bench
            .memory
            .write_slice(b"world\n", GuestAddress(0x9000))
            .unwrap();
        bench.descriptor(3, 0x8000, 7, NEXT, 5);
        bench.descriptor(5, 0x9000, 6, 0, 0);
        bench.offer(3);
        bench.mmio.process(1);
        assert_eq!(*bench.screen.lock().unwrap(), b"hello, world\n");
        assert_eq!(bench.used(), [[3, 0]]);
        assert!(bench.interrupted());
        bench.mmio.process(1);
        assert!(!bench.interrupted());
    }

    #[test]
    fn input_reaches_the_driver() {
        let mut bench = Bench::new(RECEIVE);
        assert_eq!(bench.input.offer(b"ls -l\n"), 6);
        bench.mmio.process(RECEIVE);
        assert!(!bench.interrupted(), "there is no buffer yet");
        for (slot, gpa) in [(0, 0x8000), (1, 0x9000)] {
            bench.descriptor(slot, gpa, 4, WRITE, 0);
            bench.offer(slot);
        }
        bench.mmio.process(RECEIVE);
        assert!(bench.interrupted());
        assert_eq!(bench.used(), [[0, 4], [1, 2]]);
        let text = |gpa| bench.memory.read_obj::<[u8; 4]>(GuestAddress(gpa)).unwrap();
        assert_eq!((text(0x8000), text(0x9000)), (*b"ls -", *b"l\n\0\0"));
    }

    #[test]
    fn input_has_a_limit() {
        let input = Input::default();
        assert_eq!(input.offer(&[0; Input::CAPACITY - 1]), Input::CAPACITY - 1);
        assert_eq!(input.offer(b"abc"), 1);
        assert_eq!(input.offer(b"abc"), 0);
    }

    #[test]
    fn window_size() {
        let mut bench = Bench::new(RECEIVE);
        bench.size.set(132, 43);
        let config = |bench: &Bench, offset| {
            let mut data = [0xff; 4];
            bench.mmio.load(offset, &mut data);
            data
        };
        assert_eq!(config(&bench, 0x100), [132, 0, 43, 0]);
        assert_eq!(config(&bench, 0x102), [43, 0, 0, 0]);
        assert_eq!(config(&bench, u64::MAX - 3), [0; 4]);
        let generation = bench.mmio.get(VIRTIO_MMIO_CONFIG_GENERATION);
        bench.interrupt.config_changed();
        assert_ne!(bench.mmio.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
        assert_eq!(
            bench.mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        bench
            .mmio
            .put(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(bench.mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    }

    #[test]
    fn a_buffer_outside_ram_stops_the_device() {
        let mut bench = Bench::new(1);
        bench.descriptor(0, 0xffff_f000, 16, 0, 0);
        bench.offer(0);
        bench.mmio.process(1);
        assert!(bench.needs_reset());
        assert!(bench.screen.lock().unwrap().is_empty());
    }

    #[test]
    fn more_buffers_than_there_can_be_stop_the_device() {
        for index in [0, 1] {
            let mut bench = Bench::new(index);
            bench.input.offer(b"x");
            bench
                .memory
                .write_obj(SIZE + 1, GuestAddress(AVAILABLE + 2))
                .unwrap();
            bench.mmio.process(index);
            assert!(bench.needs_reset());
        }
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
            for index in [0, 1] {
                let mut bench = Bench::new(index);
                bench.input.offer(&[b'x'; 100]);
                for (slot, &(gpa, length, flags, next)) in descriptors.iter().enumerate() {
                    let gpa = if small { gpa % (1 << 21) } else { gpa };
                    bench.descriptor(slot as u16, gpa, length, flags, next);
                }
                for &head in &heads {
                    bench.offer(head);
                }
                bench.memory.write_obj(available, GuestAddress(AVAILABLE + 2)).unwrap();
                bench.mmio.process(index);
            }
        }
    }
}
