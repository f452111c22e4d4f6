// SPDX-License-Identifier: GPL-2.0
//! The network device, as its driver and its peer see it.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT};

use super::*;
use crate::devices::net::peer::{Header, Peer, FRAME_MAX, FRAME_MIN, PLAIN};
use crate::devices::testing::driver::Registers;
use crate::devices::testing::driver::{Driver, SIZE, WRITE};
use crate::devices::Window;

const MAC: Mac = Mac([2, 0, 0, 0, 0xab, 0xcd]);
const OFFLOAD: u64 = 1 << VIRTIO_NET_F_CSUM;

/// What a test sees and sets of the other end.
#[derive(Default)]
struct End {
    coming: VecDeque<(Header, Vec<u8>)>,
    got: Vec<Vec<u8>>,
    agreed: u64,
    /// Packets that there is room for.
    room: usize,
    cut: bool,
}

#[derive(Clone, Default)]
struct Cable(Arc<Mutex<End>>, Vec<u8>);

impl Cable {
    fn end(&self) -> std::sync::MutexGuard<'_, End> {
        self.0.lock().unwrap()
    }

    fn comes(&self, length: usize) -> Vec<u8> {
        let frame: Vec<_> = (0..length).map(|n| (n % 251) as u8).collect();
        self.end().coming.push_back((PLAIN, frame.clone()));
        frame
    }

    fn alive(&self) -> io::Result<()> {
        match self.end().cut {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }
}

impl Peer for Cable {
    fn mtu(&self) -> u16 {
        9000
    }

    fn offloads(&self) -> u64 {
        OFFLOAD
    }

    fn agree(&mut self, offloads: u64) -> io::Result<()> {
        self.end().agreed = offloads;
        Ok(())
    }

    fn readiness(&self) -> RawFd {
        -1
    }

    fn send(&mut self, packet: &mut [u8]) -> io::Result<bool> {
        self.alive()?;
        let mut end = self.end();
        if end.room == 0 {
            return Ok(false);
        }
        end.room -= 1;
        end.got.push(packet.to_vec());
        Ok(true)
    }

    fn receive(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        self.alive()?;
        let Some((header, frame)) = self.end().coming.front().cloned() else {
            return Ok(None);
        };
        self.1 = frame;
        Ok(Some((header, &self.1)))
    }

    fn received(&mut self) {
        self.end().coming.pop_front();
    }
}

struct Bench {
    cable: Cable,
    cuts: Arc<Mutex<Vec<String>>>,
    driver: Driver,
}

fn net() -> (Cable, Arc<Mutex<Vec<String>>>, Net) {
    let (cable, cuts) = (Cable::default(), Arc::<Mutex<Vec<_>>>::default());
    cable.end().room = usize::MAX;
    let reports = cuts.clone();
    let on_cut = move |error: &io::Error| reports.lock().unwrap().push(error.to_string());
    let net = Net::new(
        MAC,
        super::cable::Cable::new(Box::new(cable.clone()), on_cut),
    );
    (cable, cuts, net)
}

fn bench(features: u64) -> Bench {
    let (cable, cuts, net) = net();
    Bench {
        cable,
        cuts,
        driver: Driver::new(net, features),
    }
}

/// A driver that takes no offloads and fills one buffer with each frame.
fn plain() -> Bench {
    let bench = bench(0);
    bench.driver.mmio.put(VIRTIO_MMIO_STATUS, 0);
    bench.driver.restart(1 << VIRTIO_F_VERSION_1);
    bench
}

impl Bench {
    fn config(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.driver.mmio.load(0x100 + offset, &mut data);
        data
    }

    /// What the driver finds in used buffers, frames put together again.
    fn received(&self) -> Vec<Vec<u8>> {
        let mut filled = self.driver.filled(RECEIVE).into_iter();
        let mut frames = Vec::new();
        while let Some(mut packet) = filled.next() {
            let count = u16::from_le_bytes([packet[NUM_BUFFERS], packet[NUM_BUFFERS + 1]]);
            for _ in 1..count {
                packet.extend(filled.next().expect("all buffers of a frame come at once"));
            }
            frames.push(packet.split_off(HEADER_SIZE));
        }
        frames
    }
}

#[test]
fn what_the_driver_is_told() {
    let bench = bench(0);
    assert_eq!(bench.config(0, 6), MAC.0);
    assert_eq!(bench.config(6, 6), [1, 0, 1, 0, 0x28, 0x23]);
    assert_eq!(bench.cable.end().agreed, OFFLOAD);
    assert_eq!(plain().cable.end().agreed, 0);
}

#[test]
fn frames_reach_the_peer() {
    let mut bench = bench(0);
    let packets = [vec![1; HEADER_SIZE + 60], vec![2; HEADER_SIZE + FRAME_MIN]];
    for packet in &packets {
        bench.driver.send(TRANSMIT, packet);
    }
    assert_eq!(bench.cable.end().got, packets);
    assert_eq!(bench.driver.used(TRANSMIT), [[0, 0], [1, 0]]);
    assert!(bench.driver.interrupted());
}

#[test]
fn a_frame_in_pieces_is_one() {
    let mut bench = bench(0);
    let gpa = bench.driver.rings[TRANSMIT].buffer(0);
    bench
        .driver
        .memory
        .write_slice(&[7; 100], GuestAddress(gpa))
        .unwrap();
    let next = VRING_DESC_F_NEXT as u16;
    bench.driver.descriptor(TRANSMIT, 0, gpa, 5, next, 1);
    bench.driver.descriptor(TRANSMIT, 1, gpa, 20, next, 2);
    bench.driver.descriptor(TRANSMIT, 2, gpa, 75, 0, 0);
    bench.driver.offer(TRANSMIT, 0);
    bench.driver.device.process(TRANSMIT);
    assert_eq!(bench.cable.end().got, [[7; 100]]);
}

#[test]
fn runts_are_lost_and_less_than_a_header_is_a_fault() {
    let mut bench = bench(0);
    bench.driver.send(TRANSMIT, &[1; HEADER_SIZE]);
    bench
        .driver
        .send(TRANSMIT, &[1; HEADER_SIZE + FRAME_MIN - 1]);
    assert_eq!(bench.driver.used(TRANSMIT).len(), 2);
    assert!(bench.cable.end().got.is_empty() && !bench.driver.needs_reset());
    bench.driver.send(TRANSMIT, &[1; HEADER_SIZE - 1]);
    assert!(bench.driver.needs_reset());
}

#[test]
fn giants() {
    for (length, fits) in [(FRAME_MAX, true), (FRAME_MAX + 1, false)] {
        let mut bench = bench(0);
        let length = (HEADER_SIZE + length) as u32;
        bench.driver.descriptor(TRANSMIT, 0, 0x8_0000, length, 0, 0);
        bench.driver.offer(TRANSMIT, 0);
        bench.driver.device.process(TRANSMIT);
        assert_eq!(bench.driver.needs_reset(), !fits);
        assert_eq!(bench.cable.end().got.len(), usize::from(fits));
    }
}

/// A full peer holds the driver up, and nothing is lost.
#[test]
fn back_pressure() {
    let mut bench = bench(0);
    bench.cable.end().room = 1;
    for n in 0..4 {
        bench.driver.send(TRANSMIT, &[n; 40]);
    }
    // One is through, one is on its way.
    assert_eq!(bench.driver.used(TRANSMIT).len(), 2);
    bench.cable.end().room = 9;
    // That there is room is told as a frame would be.
    bench.driver.device.process(RECEIVE);
    assert_eq!(bench.driver.used(TRANSMIT).len(), 4);
    let expected: Vec<_> = (0..4).map(|n| vec![n; 40]).collect();
    assert_eq!(bench.cable.end().got, expected);
}

#[test]
fn frames_wait_for_buffers() {
    for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let mut bench = bench(features);
        let frames = [60, 100].map(|length| bench.cable.comes(length));
        bench.driver.device.process(RECEIVE);
        assert!(!bench.driver.interrupted());
        bench.driver.give(RECEIVE);
        bench.driver.device.process(RECEIVE);
        assert!(bench.driver.interrupted());
        bench.driver.give(RECEIVE);
        bench.driver.device.process(RECEIVE);
        assert_eq!(bench.received(), frames);
    }
}

/// Buffers have 256 bytes each. Those that do not suffice are not touched, and the driver is to
/// tell of the next one.
#[test]
fn a_frame_fills_several_buffers() {
    let mut bench = bench(1 << VIRTIO_RING_F_EVENT_IDX);
    let frames = [600, 20, 256].map(|length| bench.cable.comes(length));
    let avail_event = |driver: &Driver| -> u16 {
        let place = driver.rings[RECEIVE].used() + 4 + 8 * u64::from(SIZE);
        driver.memory.read_obj(GuestAddress(place)).unwrap()
    };
    for given in 1..=2 {
        bench.driver.give(RECEIVE);
        bench.driver.device.process(RECEIVE);
        assert!(bench.driver.used(RECEIVE).is_empty());
        assert_eq!(avail_event(&bench.driver), given);
    }
    for _ in 0..4 {
        bench.driver.give(RECEIVE);
    }
    bench.driver.device.process(RECEIVE);
    assert_eq!(bench.received(), frames);
    let lengths: Vec<_> = bench
        .driver
        .used(RECEIVE)
        .iter()
        .map(|used| used[1])
        .collect();
    assert_eq!(lengths, [256, 256, 100, 32, 256, 12]);
    assert!(bench.driver.interrupted());
}

/// A driver which finds the first buffer of a frame, and asks to be told of the third, is told.
#[test]
fn an_interrupt_for_any_buffer_of_a_frame() {
    let mut bench = bench(1 << VIRTIO_RING_F_EVENT_IDX);
    let used_event = bench.driver.rings[RECEIVE].available() + 4 + 2 * u64::from(SIZE);
    for (event, expected) in [(0u16, true), (5, true), (5, false), (11, true)] {
        let place = GuestAddress(used_event);
        bench.driver.memory.write_obj(event, place).unwrap();
        bench.cable.comes(600);
        for _ in 0..3 {
            bench.driver.give(RECEIVE);
        }
        bench.driver.device.process(RECEIVE);
        assert_eq!(bench.driver.interrupted(), expected, "{event}");
    }
}

#[test]
fn without_merging_what_is_too_long_is_lost() {
    let mut bench = plain();
    bench.cable.comes(256);
    let fits = bench.cable.comes(256 - HEADER_SIZE);
    bench.driver.give(RECEIVE);
    bench.driver.device.process(RECEIVE);
    assert_eq!(bench.received(), [fits]);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn what_no_ring_can_hold_is_lost() {
    let mut bench = bench(0);
    bench.cable.comes(FRAME_MAX);
    let fits = bench.cable.comes(20);
    for _ in 0..SIZE {
        bench.driver.give(RECEIVE);
    }
    bench.driver.device.process(RECEIVE);
    assert_eq!(bench.received(), [fits]);
}

#[test]
fn a_cut_cable_is_told_once_and_the_driver_goes_on() {
    let mut bench = bench(0);
    bench.cable.end().cut = true;
    for _ in 0..3 {
        bench.driver.send(TRANSMIT, &[1; 40]);
        bench.driver.device.process(RECEIVE);
    }
    assert_eq!(bench.driver.used(TRANSMIT).len(), 3);
    assert_eq!(bench.cuts.lock().unwrap().len(), 1);
    assert_eq!(bench.config(6, 2), [0, 0]);
    let reasons = bench.driver.mmio.get(VIRTIO_MMIO_INTERRUPT_STATUS);
    assert_ne!(reasons & VIRTIO_MMIO_INT_CONFIG, 0);
    assert!(!bench.driver.needs_reset());
}

/// More than a burst in both directions, each behind one kick.
#[test]
fn bursts_take_turns() {
    let mut bench = bench(0);
    for n in 0..SIZE {
        bench.cable.comes(20);
        bench.driver.give(RECEIVE);
        let gpa = bench.driver.rings[TRANSMIT].buffer(n);
        bench.driver.descriptor(TRANSMIT, n, gpa, 40, 0, 0);
        bench.driver.offer(TRANSMIT, n);
    }
    bench.cable.comes(20);
    bench.driver.device.process(RECEIVE);
    assert_eq!(bench.received().len(), usize::from(SIZE));
    assert_eq!(bench.cable.end().got.len(), usize::from(SIZE));
}

proptest! {
    /// Whatever is in rings, descriptors and buffers, however the driver resets and whatever
    /// comes from the peer: nothing panics or hangs.
    #[test]
    fn hostile_rings(
        small in any::<bool>(),
        descriptors in prop::collection::vec((any::<u64>(), 0..70_000u32, 0u16..8, 0u16..70), 16),
        heads in prop::collection::vec(0u16..70, 0..40),
        available in prop_oneof![0..SIZE, any::<u16>()],
        frames in prop::collection::vec(prop_oneof![1..2000usize, 1..FRAME_MAX], 0..5),
        steps in prop::collection::vec(0u8..5, 1..12),
    ) {
        let mut bench = bench(1 << VIRTIO_RING_F_EVENT_IDX);
        bench.cable.end().room = 3;
        for length in frames {
            bench.cable.comes(length);
        }
        for step in steps {
            match step {
                0 => {
                    bench.driver.mmio.put(VIRTIO_MMIO_STATUS, 0);
                    bench.driver.restart(1 << VIRTIO_F_VERSION_1);
                }
                1 => bench.cable.end().room += 1,
                _ => {}
            }
            for queue in [RECEIVE, TRANSMIT] {
                for (slot, &(gpa, length, flags, next)) in descriptors.iter().enumerate() {
                    let gpa = if small { gpa % (1 << 20) } else { gpa };
                    bench.driver.descriptor(queue, slot as u16, gpa, length, flags, next);
                }
                for &head in &heads {
                    bench.driver.offer(queue, head);
                }
                let at = bench.driver.rings[queue].available() + 2;
                bench.driver.memory.write_obj(available, GuestAddress(at)).unwrap();
                bench.driver.device.process(queue);
            }
        }
    }

    /// An honest driver gets every frame that comes, whole and in order, whatever its buffers.
    #[test]
    fn every_frame_comes(
        event_idx in any::<bool>(),
        lengths in prop::collection::vec(FRAME_MIN..1500usize, 1..12),
        sizes in prop::collection::vec(32..256u32, 1..8),
    ) {
        let mut bench = bench(u64::from(event_idx) << VIRTIO_RING_F_EVENT_IDX);
        let frames: Vec<_> = lengths.iter().map(|&length| bench.cable.comes(length)).collect();
        let mut got = Vec::new();
        let mut seen = 0;
        for &size in sizes.iter().cycle().take(12 * usize::from(SIZE)) {
            let slot = bench.driver.rings[RECEIVE].offered % SIZE;
            let gpa = bench.driver.rings[RECEIVE].buffer(slot);
            bench.driver.descriptor(RECEIVE, slot, gpa, size, WRITE, 0);
            bench.driver.offer(RECEIVE, slot);
            bench.driver.device.process(RECEIVE);
            let packet: Vec<u8> = bench.driver.filled_since(RECEIVE, seen).concat();
            seen = bench.driver.used_index(RECEIVE);
            if let Some(frame) = packet.get(HEADER_SIZE..) {
                got.push(frame.to_vec());
            }
        }
        prop_assert!(got == frames);
    }
}
