// SPDX-License-Identifier: GPL-2.0
//! Named ports: a console device (section 5.3 of the specification) which carries plain bytes for a
//! command's terminal, and for its standard input, output and error where those are no terminal at
//! our end.
//!
//! Over its control queues the device tells the driver of its ports, and the driver says when one
//! is open: before that, what is sent there would be lost.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::devices::bytes::{drain, Input, Outlet, Output};
use crate::devices::{copy_config, until_quiet, Device, Fault, Served};
use crate::memory::Memory;

/// The most ports there can be.
const PORTS_MAX: usize = 5;
/// Queues of port 0, the control queues, queues of the other ports; of each two, the first is the
/// one to the driver. What is in the others is on its way when somebody stops reading, so there are
/// few.
const QUEUE_SIZES: [u16; 2 * (PORTS_MAX + 1)] = [64, 4, 64, 64, 64, 4, 64, 4, 64, 4, 64, 4];
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
/// Feature: there are ports and control queues.
const F_MULTIPORT: u32 = 1;
/// Control messages that wait for buffers.
const ANSWERS_MAX: usize = 64;

/// The queue that carries input to `port`.
pub fn receive_queue(port: usize) -> usize {
    if port == 0 {
        0
    } else {
        2 + 2 * port
    }
}

/// The queue that carries output of `port`.
pub fn transmit_queue(port: usize) -> usize {
    receive_queue(port) + 1
}

/// The port of a queue which is not a control queue.
fn port_of(queue: usize) -> usize {
    if queue < 2 {
        0
    } else {
        queue / 2 - 1
    }
}

/// Events of control messages, as in the specification.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// Our end of a port.
#[derive(Default)]
pub struct Stream {
    /// A program in the Guest reads this.
    pub input: Option<Arc<Input>>,
    /// A program in the Guest writes here.
    pub output: To,
}

/// Where goes what a program in the Guest writes.
#[derive(Default)]
pub enum To {
    /// Nobody takes it.
    #[default]
    Nobody,
    /// Somebody writes it, which may take long.
    Outlet(Arc<Outlet>),
    /// Somebody takes it at once.
    Taker(Output),
}

struct Port {
    name: &'static str,
    stream: Stream,
    open: bool,
    end_sent: bool,
}

/// The device.
pub struct Ports {
    ports: Vec<Port>,
    answers: VecDeque<Vec<u8>>,
}

impl Ports {
    /// Ports with these names; at most 5.
    pub fn new(streams: Vec<(&'static str, Stream)>) -> Self {
        assert!(streams.len() <= PORTS_MAX);
        let port = |(name, stream)| Port {
            name,
            stream,
            open: false,
            end_sent: false,
        };
        Self {
            ports: streams.into_iter().map(port).collect(),
            answers: VecDeque::new(),
        }
    }

    /// Moves what waits for a port into buffers.
    fn receive(&mut self, id: usize, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        let Port {
            stream: Stream {
                input: Some(input), ..
            },
            open: true,
            end_sent,
            ..
        } = &mut self.ports[id]
        else {
            return Ok(Served::default());
        };
        let used = input.fill(queue, memory)?;
        if !input.is_at_end() || *end_sent {
            return Ok(Served { used, then: 0 });
        }
        // The driver reads what is in its buffers first, and then sees that our end is closed.
        *end_sent = true;
        self.answer(id as u32, event::PORT_OPEN, 0, &[])?;
        Ok(Served {
            used,
            then: 1 << CONTROL_RECEIVE,
        })
    }

    /// Gives what is in the buffers of a port to its output.
    fn transmit(&mut self, id: usize, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        let used = match &mut self.ports[id].stream.output {
            To::Outlet(outlet) => outlet.fill(queue, memory)?,
            To::Taker(output) => {
                let used = drain(output, queue, memory)?;
                // It may have been told that all others have room now.
                let then = if used { self.outputs() } else { 0 };
                return Ok(Served { used, then });
            }
            To::Nobody => drain(&mut |_| {}, queue, memory)?,
        };
        Ok(Served { used, then: 0 })
    }

    /// The queues of all that is written by somebody, a set.
    fn outputs(&self) -> u64 {
        let written = |(_, port): &(usize, &Port)| matches!(port.stream.output, To::Outlet(_));
        let ports = self.ports.iter().enumerate().filter(written);
        ports.fold(0, |set, (index, _)| set | (1 << transmit_queue(index)))
    }

    /// Sends control messages, as many as there are buffers for.
    fn control_receive(&mut self, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        let mut served = Served::default();
        while let Some(message) = self.answers.front() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            chain
                .writer(memory)?
                .write_all(message)
                .map_err(Fault::Buffer)?;
            queue.add_used(memory, head, message.len() as u32)?;
            self.answers.pop_front();
            served.used = true;
        }
        Ok(served)
    }

    /// Takes control messages from the driver.
    fn control_transmit(&mut self, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        let mut served = Served {
            used: false,
            then: 1 << CONTROL_RECEIVE,
        };
        while let Some(chain) = queue.iter(memory)?.next() {
            let head = chain.head_index();
            let mut message = [0; 8];
            chain
                .reader(memory)?
                .read_exact(&mut message)
                .map_err(Fault::Buffer)?;
            let [id @ .., event0, event1, value0, value1] = message;
            let event = u16::from_le_bytes([event0, event1]);
            let value = u16::from_le_bytes([value0, value1]);
            served.then |= self.take(u32::from_le_bytes(id), event, value)?;
            queue.add_used(memory, head, 0)?;
            served.used = true;
        }
        Ok(served)
    }

    /// The driver says `event` of port `id`. Returns the queues that it is then the turn of.
    fn take(&mut self, id: u32, event: u16, value: u16) -> Result<u64, Fault> {
        if (event, value) == (event::DEVICE_READY, 1) {
            for id in 0..self.ports.len() {
                self.answer(id as u32, event::PORT_ADD, 1, &[])?;
            }
            return Ok(0);
        }
        let index = id as usize;
        let Some(port) = self.ports.get_mut(index) else {
            return Ok(0);
        };
        match (event, value) {
            (event::PORT_READY, 1) => {
                let name = port.name.as_bytes();
                self.answer(id, event::PORT_NAME, 1, name)?;
                self.answer(id, event::PORT_OPEN, 1, &[])?;
            }
            (event::PORT_OPEN, value) => {
                port.open = value != 0;
                if let (true, Some(input)) = (port.open, &port.stream.input) {
                    input.want();
                }
                return Ok(1 << receive_queue(index));
            }
            _ => {}
        }
        Ok(0)
    }

    /// Queues a control message, `rest` behind its fixed part.
    fn answer(&mut self, id: u32, event: u16, value: u16, rest: &[u8]) -> Result<(), Fault> {
        if self.answers.len() == ANSWERS_MAX {
            return Err(Fault::Flood(ANSWERS_MAX));
        }
        let (id, event, value) = (id.to_le_bytes(), event.to_le_bytes(), value.to_le_bytes());
        self.answers
            .push_back([&id[..], &event, &value, rest].concat());
        Ok(())
    }

    /// Is there nothing that waits for buffers of queue `index`?
    fn is_idle(&self, index: usize) -> bool {
        match index {
            CONTROL_RECEIVE => self.answers.is_empty(),
            CONTROL_TRANSMIT => false,
            _ => {
                let Port { stream, open, .. } = &self.ports[port_of(index)];
                match (index % 2, stream) {
                    (
                        0,
                        Stream {
                            input: Some(input), ..
                        },
                    ) => !open || input.is_empty(),
                    (0, _) => true,
                    (
                        _,
                        Stream {
                            output: To::Outlet(outlet),
                            ..
                        },
                    ) => !outlet.has_room(),
                    _ => false,
                }
            }
        }
    }
}

impl Device for Ports {
    fn name(&self) -> &str {
        "ports"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        1 << F_MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..2 * (self.ports.len() + 1)]
    }

    /// Output is only copied, which takes no longer than to wake another thread for it.
    fn serves_at_once(&self, index: usize) -> bool {
        index % 2 == 1
    }

    /// In `struct virtio_console_config`, the number of ports is behind the terminal's size.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = (self.ports.len() as u64) << 32;
        copy_config(&config.to_le_bytes(), offset, data);
    }

    fn start(&mut self, _: u64) {
        self.answers.clear();
        for port in &mut self.ports {
            (port.open, port.end_sent) = (false, false);
        }
    }

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| {
            let served = match index {
                CONTROL_RECEIVE => self.control_receive(queue, memory)?,
                CONTROL_TRANSMIT => self.control_transmit(queue, memory)?,
                _ if index % 2 == 0 => self.receive(port_of(index), queue, memory)?,
                _ => self.transmit(port_of(index), queue, memory)?,
            };
            Ok((served, !self.is_idle(index)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::testing::driver::{Driver, SIZE};

    fn reads(input: &Arc<Input>) -> Stream {
        Stream {
            input: Some(input.clone()),
            output: To::Nobody,
        }
    }

    fn writes(output: To) -> Stream {
        Stream {
            input: None,
            output,
        }
    }

    /// Ports "in" and "out", their outer ends, and a driver.
    struct Bench {
        input: Arc<Input>,
        output: Arc<Outlet>,
        driver: Driver,
    }

    impl Bench {
        fn new() -> Self {
            let input = Arc::<Input>::default();
            let output = Arc::<Outlet>::default();
            let ports = Ports::new(vec![
                ("in", reads(&input)),
                ("out", writes(To::Outlet(output.clone()))),
            ]);
            Self {
                input,
                output,
                driver: Driver::new(ports, 0),
            }
        }

        /// With the ports agreed on, and those in `open` opened by the driver.
        fn with_ports(open: &[u32]) -> Self {
            let mut bench = Self::new();
            for _ in 0..16 {
                bench.driver.give(CONTROL_RECEIVE);
            }
            bench.control(u32::MAX, event::DEVICE_READY, 1);
            for id in 0..2 {
                bench.control(id, event::PORT_READY, 1);
            }
            for &id in open {
                bench.control(id, event::PORT_OPEN, 1);
            }
            bench
        }

        fn control(&mut self, id: u32, event: u16, value: u16) {
            let message = [
                &id.to_le_bytes()[..],
                &event.to_le_bytes(),
                &value.to_le_bytes(),
            ]
            .concat();
            self.driver.send(CONTROL_TRANSMIT, &message);
        }
    }

    #[test]
    fn ports_are_introduced() {
        let bench = Bench::with_ports(&[]);
        let message =
            |id: u8, event: u8, rest: &[u8]| [&[id, 0, 0, 0, event, 0, 1, 0], rest].concat();
        assert_eq!(
            bench.driver.filled(CONTROL_RECEIVE),
            [
                message(0, 1, b""), // PORT_ADD
                message(1, 1, b""),
                message(0, 7, b"in"), // PORT_NAME
                message(0, 6, b""),   // PORT_OPEN
                message(1, 7, b"out"),
                message(1, 6, b""),
            ]
        );
    }

    #[test]
    fn output_reaches_its_end() {
        let mut bench = Bench::with_ports(&[1]);
        bench.driver.send(5, b"result\n");
        assert_eq!(bench.output.pending(), 7);
        // Output to a port for input is used up, and nobody sees it.
        bench.driver.send(1, b"stray");
        assert_eq!(bench.driver.used(1), [[0, 0]]);
        assert_eq!(bench.output.pending(), 7);
    }

    #[test]
    fn an_output_that_nobody_writes_stops_its_own_driver_alone() {
        let outlets = [(); 2].map(|()| Arc::<Outlet>::default());
        let ended = outlets.clone();
        let [stuck, other] = &outlets;
        let ports = Ports::new(vec![
            (
                "control",
                writes(To::Taker(Box::new(move |_| {
                    ended.iter().for_each(|outlet| outlet.take_all());
                }))),
            ),
            ("stuck", writes(To::Outlet(stuck.clone()))),
            ("other", writes(To::Outlet(other.clone()))),
        ]);
        let mut driver = Driver::new(ports, 0);
        let (first, second) = (transmit_queue(1), transmit_queue(2));
        // A chain too many for the room that there is.
        stuck.add(&[0; (1 << 16) - 1]);
        driver.send(first, b"in");
        driver.send(first, b"not yet");
        assert_eq!(driver.used(first).len(), 1);
        driver.send(second, b"heard");
        assert_eq!(other.pending(), 5);
        // At the end, there is room for all that is on its way.
        driver.send(transmit_queue(0), b"the end");
        assert_eq!(driver.used(first).len(), 2);
        assert_eq!(stuck.pending(), (1 << 16) + 8);
    }

    #[test]
    fn a_chain_that_is_too_long_stops_the_device() {
        let mut bench = Bench::with_ports(&[1]);
        bench.driver.descriptor(5, 0, 0, 1 << 20, 1, 1);
        bench.driver.descriptor(5, 1, 0, 1, 0, 0);
        bench.driver.offer(5, 0);
        bench.driver.mmio.process(5);
        assert!(bench.driver.needs_reset());
        assert_eq!(bench.output.pending(), 0);
    }

    #[test]
    fn input_is_wanted_when_its_port_is_open() {
        let bench = Bench::with_ports(&[0]);
        bench.input.wait_until_wanted();
    }

    #[test]
    fn input_waits_until_the_port_is_open() {
        let mut bench = Bench::with_ports(&[]);
        bench.driver.give(receive_queue(0));
        assert_eq!(bench.input.offer(b"data"), 4);
        bench.driver.mmio.process(receive_queue(0));
        assert!(bench.driver.filled(receive_queue(0)).is_empty());
        bench.control(0, event::PORT_OPEN, 1);
        assert_eq!(bench.driver.filled(receive_queue(0)), [b"data"]);
    }

    #[test]
    fn the_end_of_input_comes_last_and_once() {
        let mut bench = Bench::with_ports(&[0]);
        let closed = [0, 0, 0, 0, event::PORT_OPEN as u8, 0, 0, 0];
        bench.input.offer(b"data");
        bench.input.end();
        bench.driver.mmio.process(receive_queue(0));
        assert!(
            !bench
                .driver
                .filled(CONTROL_RECEIVE)
                .contains(&closed.to_vec()),
            "data waits"
        );
        bench.driver.give(receive_queue(0));
        bench.driver.mmio.process(receive_queue(0));
        bench.driver.mmio.process(receive_queue(0));
        let messages = bench.driver.filled(CONTROL_RECEIVE);
        assert_eq!(
            messages
                .iter()
                .filter(|message| **message == closed)
                .count(),
            1
        );
    }

    #[test]
    fn configuration() {
        let bench = Bench::new();
        let mut data = [0xff; 8];
        bench.driver.mmio.load(0x100, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn more_buffers_than_there_can_be_stop_the_device() {
        for queue in 0..6 {
            let bench = Bench::with_ports(&[0, 1]);
            bench.input.offer(b"x");
            let at = bench.driver.rings[queue].available() + 2;
            let ring = bench.driver.rings[queue];
            let beyond = ring.offered + ring.size + 1;
            bench
                .driver
                .memory
                .write_obj(beyond, GuestAddress(at))
                .unwrap();
            // Something waits for buffers of every queue but these two.
            bench.driver.mmio.process(queue);
            let looked_at = queue != receive_queue(1) && queue != CONTROL_RECEIVE;
            assert!(bench.driver.needs_reset() || !looked_at, "queue {queue}");
        }
    }

    #[test]
    fn a_flood_of_questions_stops_the_device() {
        let mut bench = Bench::new();
        for _ in 0..ANSWERS_MAX {
            bench.control(0, event::PORT_READY, 1);
        }
        assert!(bench.driver.needs_reset());
    }

    proptest! {
        /// Random descriptors and messages on every queue: no panic, and an end.
        #[test]
        fn hostile_rings(
            open in any::<bool>(),
            queue in 0usize..6,
            descriptors in prop::collection::vec(
                (any::<u64>(), 0u32..0x3000, 0u16..8, 0u16..80), 1..64,
            ),
            small in any::<bool>(),
            heads in prop::collection::vec(0u16..80, 1..64),
            available in prop_oneof![0..SIZE, any::<u16>()],
            messages in prop::collection::vec((0u32..4, 0u16..9, 0u16..3), 0..20),
        ) {
            let mut bench = Bench::with_ports(if open { &[0, 1] } else { &[] });
            bench.input.offer(&[b'x'; 100]);
            for (id, event, value) in messages {
                bench.control(id, event, value);
            }
            let mut driver = bench.driver;
            for (slot, &(gpa, length, flags, next)) in descriptors.iter().enumerate() {
                let gpa = if small { gpa % (1 << 21) } else { gpa };
                driver.descriptor(queue, slot as u16, gpa, length, flags, next);
            }
            for &head in &heads {
                driver.offer(queue, head);
            }
            let at = driver.rings[queue].available() + 2;
            driver.memory.write_obj(available, GuestAddress(at)).unwrap();
            driver.mmio.process(queue);
        }
    }
}
