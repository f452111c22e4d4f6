// SPDX-License-Identifier: GPL-2.0
//! The ports, as their driver sees them.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::driver::{Driver, SIZE};
use crate::devices::Window;

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
    let message = |id: u8, event: u8, rest: &[u8]| [&[id, 0, 0, 0, event, 0, 1, 0], rest].concat();
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
fn a_driver_hears_once_that_nobody_takes_its_output() {
    let closed = [1, 0, 0, 0, event::PORT_OPEN as u8, 0, 0, 0].to_vec();
    let fails = |_: &[u8]| Err(std::io::ErrorKind::BrokenPipe.into());
    // Before the driver has opened the port, and after that.
    for early in [true, false] {
        let mut bench = Bench::with_ports(if early { &[] } else { &[1] });
        bench.output.add(b"text");
        let output = bench.output.clone();
        let process = || bench.driver.device.process(transmit_queue(1));
        output.empty(fails, process);
        if early {
            bench.control(1, event::PORT_OPEN, 1);
        }
        bench.driver.send(transmit_queue(1), b"more");
        let heard = bench.driver.filled(CONTROL_RECEIVE);
        let count = heard.iter().filter(|message| **message == closed).count();
        assert_eq!(count, 1);
        // What is written nevertheless stops nobody.
        assert_eq!(bench.driver.used(transmit_queue(1)).len(), 1);
        assert_eq!(bench.output.pending(), 0);
    }
}

#[test]
fn a_chain_that_is_too_long_stops_the_device() {
    let mut bench = Bench::with_ports(&[1]);
    bench.driver.descriptor(5, 0, 0, 1 << 20, 1, 1);
    bench.driver.descriptor(5, 1, 0, 1, 0, 0);
    bench.driver.offer(5, 0);
    bench.driver.device.process(5);
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
    bench.driver.device.process(receive_queue(0));
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
    bench.driver.device.process(receive_queue(0));
    assert!(
        !bench
            .driver
            .filled(CONTROL_RECEIVE)
            .contains(&closed.to_vec()),
        "data waits"
    );
    bench.driver.give(receive_queue(0));
    bench.driver.device.process(receive_queue(0));
    bench.driver.device.process(receive_queue(0));
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
        bench.driver.device.process(queue);
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
        driver.device.process(queue);
    }
}
