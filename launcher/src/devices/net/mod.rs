// SPDX-License-Identifier: GPL-2.0
//! The network device (section 5.1 of the specification): a queue of empty buffers for what comes
//! from the [`Peer`], and one of frames for it.
//!
//! Nothing is thrown away for want of room: without buffers, frames wait with the peer; when the
//! peer is full, the driver's frames wait in their queue. A frame is copied once each way, so what
//! the Guest does to its buffers meanwhile is its own affair.

pub mod options;
pub mod passt;
pub mod peer;
pub mod stream;
pub mod tap;

use std::io::{self, Read, Write};
use std::mem;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT, Writer};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{Device, Fault, Served, Source};
use crate::devices::net::peer::{Mac, Peer, FRAME_MAX, FRAME_MIN, HEADER_SIZE};
use crate::memory::Memory;

/// The queue of empty buffers.
pub const RECEIVE: usize = 0;
/// The queue of frames for the peer.
pub const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// So many frames in one direction, then it is the turn of the other.
const BURST: usize = 64;
/// Where a header says how many buffers its frame fills.
const NUM_BUFFERS: usize = 10;

/// Told when the cable is cut, with the reason.
type OnCut = Box<dyn Fn(&io::Error) + Send>;

/// The device.
pub struct Net {
    mac: Mac,
    peer: Box<dyn Peer>,
    on_cut: OnCut,
    link_up: bool,
    config_changed: bool,
    /// A frame may fill several buffers.
    mergeable: bool,
    /// There was more to receive than a burst.
    more: bool,
    /// The packet that is being sent, and its length; 0: none.
    packet: Box<[u8]>,
    waiting: usize,
}

/// What came of putting a frame into buffers.
enum Placed {
    /// The driver has it.
    Used,
    /// It must wait for buffers, of which the driver will tell.
    NoBuffers,
    /// No buffers of this driver's can hold it.
    TooLong,
}

impl Net {
    /// A device with this address, whose cable ends at `peer`. `on_cut` is told when it ends there
    /// no longer, once.
    pub fn new(
        mac: Mac,
        peer: Box<dyn Peer>,
        on_cut: impl Fn(&io::Error) + Send + 'static,
    ) -> Self {
        Self {
            mac,
            peer,
            on_cut: Box::new(on_cut),
            link_up: true,
            config_changed: false,
            mergeable: false,
            more: false,
            packet: vec![0; HEADER_SIZE + FRAME_MAX].into(),
            waiting: 0,
        }
    }

    /// There is no peer any more: the driver sees the link go down, and goes on.
    fn cut(&mut self, error: &io::Error) {
        if mem::replace(&mut self.link_up, false) {
            (self.on_cut)(error);
            self.config_changed = true;
        }
        self.waiting = 0;
    }

    /// Moves frames from the peer into buffers.
    fn receive(&mut self, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        let mut served = Served {
            used: false,
            // It may be that there is room again.
            then: u64::from(self.waiting != 0) << TRANSMIT,
        };
        for _ in 0..BURST {
            if !self.link_up {
                return Ok(served);
            }
            let (header, frame) = match self.peer.receive() {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(served),
                Err(error) => {
                    self.cut(&error);
                    return Ok(served);
                }
            };
            match place(header, frame, queue, memory, self.mergeable)? {
                Placed::Used => served.used = true,
                Placed::NoBuffers => return Ok(served),
                Placed::TooLong => {}
            }
            self.peer.received();
        }
        self.more = true;
        served.then |= 1 << TRANSMIT;
        Ok(served)
    }

    /// Gives the driver's frames to the peer.
    fn transmit(&mut self, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        let mut served = Served {
            used: false,
            then: u64::from(mem::take(&mut self.more)) << RECEIVE,
        };
        for _ in 0..BURST {
            if !self.send() {
                return Ok(served);
            }
            let chain = loop {
                queue.disable_notification(memory)?;
                if let Some(chain) = queue.iter(memory)?.next() {
                    break chain;
                }
                if !queue.enable_notification(memory)? {
                    return Ok(served);
                }
            };
            let head = chain.head_index();
            let mut reader = chain.reader(memory)?;
            let length = reader.available_bytes();
            if length > self.packet.len() {
                return Err(Fault::LongFrame(length - HEADER_SIZE));
            }
            // Less than a header cannot be meant; what is shorter than any frame is lost on the way.
            let packet = &mut self.packet[..length.max(HEADER_SIZE)];
            reader.read_exact(packet).map_err(Fault::Buffer)?;
            if self.link_up && length >= HEADER_SIZE + FRAME_MIN {
                self.waiting = length;
            }
            queue.add_used(memory, head, 0)?;
            served.used = true;
        }
        served.then |= (1 << RECEIVE) | (1 << TRANSMIT);
        Ok(served)
    }

    /// Sends the packet at hand, if there is one; false: there is no room for it now.
    fn send(&mut self) -> bool {
        if self.waiting != 0 {
            match self.peer.send(&mut self.packet[..self.waiting]) {
                Ok(true) => self.waiting = 0,
                Ok(false) => return false,
                Err(error) => self.cut(&error),
            }
        }
        true
    }
}

/// Puts a frame into buffers of `queue`: one, or as many as it takes if they are `mergeable`.
fn place(
    mut header: [u8; HEADER_SIZE],
    frame: &[u8],
    queue: &mut Queue,
    memory: &Memory,
    mergeable: bool,
) -> Result<Placed, Fault> {
    let size = HEADER_SIZE + frame.len();
    let first = queue.next_avail();
    let mut buffers = Vec::with_capacity(1);
    let mut room = 0;
    queue.disable_notification(memory)?;
    while room < size {
        if buffers.len() == if mergeable { queue.size().into() } else { 1 } {
            queue.set_next_avail(first);
            return Ok(Placed::TooLong);
        }
        let Some(chain) = queue.iter(memory)?.next() else {
            // From here on, behind the buffers that do not suffice, the driver tells of new ones.
            if queue.enable_notification(memory)? {
                queue.disable_notification(memory)?;
                continue;
            }
            queue.set_next_avail(first);
            return Ok(Placed::NoBuffers);
        };
        let head = chain.head_index();
        let writer = chain.writer(memory)?;
        room += writer.available_bytes();
        buffers.push((head, writer));
    }
    header[NUM_BUFFERS..].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
    let mut rest = [&header[..], frame];
    let filled: Vec<_> = buffers
        .into_iter()
        .map(|(head, writer)| Ok((head, fill(writer, &mut rest)?)))
        .collect::<io::Result<_>>()
        .map_err(Fault::Buffer)?;
    add_used(queue, memory, &filled)?;
    Ok(Placed::Used)
}

/// Writes as much of `rest` as there is room for, and takes it away there. Returns how much.
fn fill(mut writer: Writer, rest: &mut [&[u8]; 2]) -> io::Result<u32> {
    for part in rest {
        let (now, later) = part.split_at(part.len().min(writer.available_bytes()));
        writer.write_all(now)?;
        *part = later;
    }
    Ok(writer.bytes_written() as u32)
}

/// Uses these buffers, as head and length, all at once: when a driver finds the first buffer of a
/// frame, it expects the others there.
fn add_used(queue: &mut Queue, memory: &Memory, buffers: &[(u16, u32)]) -> Result<(), Fault> {
    let Some(((last, length), others)) = buffers.split_last() else {
        return Ok(());
    };
    let ring = GuestAddress(queue.used_ring());
    for &(head, length) in others {
        let slot = u64::from(queue.next_used() % queue.size());
        // Behind flags and index, 8 bytes each: struct virtq_used_elem.
        let place = ring.unchecked_add(4 + 8 * slot);
        memory
            .write_obj([u32::from(head).to_le(), length.to_le()], place)
            .map_err(virtio_queue::Error::GuestMemory)?;
        queue.set_next_used(queue.next_used().wrapping_add(1));
    }
    // This tells the driver of all.
    Ok(queue.add_used(memory, *last, *length)?)
}

impl Device for Net {
    fn name(&self) -> &str {
        "net"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_NET_F_MAC)
            | (1 << VIRTIO_NET_F_STATUS)
            | (1 << VIRTIO_NET_F_MTU)
            | (1 << VIRTIO_NET_F_MRG_RXBUF)
            | self.peer.offloads()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn serves_at_once(&self, _: usize) -> bool {
        false
    }

    /// `struct virtio_net_config`: address, status, number of queue pairs, MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.0);
        let status = if self.link_up {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        } as u16;
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&self.peer.mtu().to_le_bytes());
        super::copy_config(&config, offset, data);
    }

    fn start(&mut self, features: u64) {
        self.mergeable = features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        if let Err(error) = self.peer.agree(features & self.peer.offloads()) {
            self.cut(&error);
        }
    }

    fn source(&self) -> Option<Source> {
        Some(Source {
            fd: self.peer.readiness(),
            queue: RECEIVE,
        })
    }

    fn config_changed(&mut self) -> bool {
        mem::take(&mut self.config_changed)
    }

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        match index {
            RECEIVE => self.receive(queue, memory),
            _ => self.transmit(queue, memory),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::RawFd;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
    use virtio_bindings::virtio_mmio::*;
    use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT};

    use super::*;
    use crate::devices::net::peer::{Header, PLAIN};
    use crate::devices::testing::driver::Registers;
    use crate::devices::testing::driver::{Driver, SIZE, WRITE};

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
        (cable.clone(), cuts, Net::new(MAC, Box::new(cable), on_cut))
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
        bench.driver.mmio.process(TRANSMIT);
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
            bench.driver.mmio.process(TRANSMIT);
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
        bench.driver.mmio.process(RECEIVE);
        assert_eq!(bench.driver.used(TRANSMIT).len(), 4);
        let expected: Vec<_> = (0..4).map(|n| vec![n; 40]).collect();
        assert_eq!(bench.cable.end().got, expected);
    }

    #[test]
    fn frames_wait_for_buffers() {
        for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
            let mut bench = bench(features);
            let frames = [60, 100].map(|length| bench.cable.comes(length));
            bench.driver.mmio.process(RECEIVE);
            assert!(!bench.driver.interrupted());
            bench.driver.give(RECEIVE);
            bench.driver.mmio.process(RECEIVE);
            assert!(bench.driver.interrupted());
            bench.driver.give(RECEIVE);
            bench.driver.mmio.process(RECEIVE);
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
            bench.driver.mmio.process(RECEIVE);
            assert!(bench.driver.used(RECEIVE).is_empty());
            assert_eq!(avail_event(&bench.driver), given);
        }
        for _ in 0..4 {
            bench.driver.give(RECEIVE);
        }
        bench.driver.mmio.process(RECEIVE);
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
            bench.driver.mmio.process(RECEIVE);
            assert_eq!(bench.driver.interrupted(), expected, "{event}");
        }
    }

    #[test]
    fn without_merging_what_is_too_long_is_lost() {
        let mut bench = plain();
        bench.cable.comes(256);
        let fits = bench.cable.comes(256 - HEADER_SIZE);
        bench.driver.give(RECEIVE);
        bench.driver.mmio.process(RECEIVE);
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
        bench.driver.mmio.process(RECEIVE);
        assert_eq!(bench.received(), [fits]);
    }

    #[test]
    fn a_cut_cable_is_told_once_and_the_driver_goes_on() {
        let mut bench = bench(0);
        bench.cable.end().cut = true;
        for _ in 0..3 {
            bench.driver.send(TRANSMIT, &[1; 40]);
            bench.driver.mmio.process(RECEIVE);
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
        bench.driver.mmio.process(RECEIVE);
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
                    bench.driver.mmio.process(queue);
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
                bench.driver.mmio.process(RECEIVE);
                let packet: Vec<u8> = bench.driver.filled_since(RECEIVE, seen).concat();
                seen = bench.driver.used_index(RECEIVE);
                if let Some(frame) = packet.get(HEADER_SIZE..) {
                    got.push(frame.to_vec());
                }
            }
            prop_assert!(got == frames);
        }
    }
}
