// SPDX-License-Identifier: GPL-2.0
//! A network, as xen-netfront sees it, by the xenstore and two rings, and as its peer does.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard};

use proptest::prelude::*;

use super::*;
use crate::devices::net::peer::{Header, Peer, FRAME_MAX, PLAIN};
use crate::xen::link::{CLOSED, CONNECTED};
use crate::xen::testing::kernel::Kernel as Sender;

const STORE: u64 = 0x4000;
const TRANSMIT_RING: u64 = 0x6000;
const RECEIVE_RING: u64 = 0x7000;
const TABLE: u64 = 0x8000;
const RAISED: u64 = 0x9000;
/// Grants 1 and 2 are of the rings, grant 3 of a page that may only be read, those from 4 on of pages that may be written.
const DATA: u64 = 0x1_0000;
const GRANTS_END: u64 = 40;
const RAM_PAGES: u64 = 0x80;
const STORE_WRITE: u32 = 11;
const PORT: u32 = 9;
const MAC: Mac = Mac([2, 0, 0, 0, 0xab, 0xcd]);
/// Slots of either ring.
const SIZE: u32 = 256;

/// The other end of the cable, as a test sees and sets it.
#[derive(Default)]
struct End {
    coming: VecDeque<Vec<u8>>,
    got: Vec<Vec<u8>>,
    is_full: bool,
    is_cut: bool,
}

#[derive(Clone, Default)]
struct Other(Arc<Mutex<End>>, Vec<u8>);

impl Other {
    fn end(&self) -> MutexGuard<'_, End> {
        self.0.lock().unwrap()
    }
}

impl Peer for Other {
    fn mtu(&self) -> u16 {
        1500
    }

    fn readiness(&self) -> RawFd {
        -1
    }

    fn send(&mut self, packet: &mut [u8]) -> io::Result<bool> {
        let mut end = self.end();
        if end.is_cut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !end.is_full {
            assert_eq!(packet[..HEADER_SIZE], PLAIN);
            end.got.push(packet[HEADER_SIZE..].to_vec());
        }
        Ok(!end.is_full)
    }

    fn receive(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        let Some(frame) = self.end().coming.front().cloned() else {
            return Ok(None);
        };
        self.1 = frame;
        Ok(Some((PLAIN, &self.1)))
    }

    fn received(&mut self) {
        self.end().coming.pop_front();
    }
}

struct Front {
    kernel: Sender,
    memory: Memory,
    store: Store,
    interface: Interface,
    other: Other,
    cuts: Arc<Mutex<u32>>,
    /// Requests added to each ring.
    sent: u32,
    given: u32,
}

impl Front {
    fn new() -> Self {
        let memory = crate::memory::create(1 << 20).unwrap();
        let entry = |grant: u64, entry: u64| {
            let place = GuestAddress(TABLE + 8 * grant);
            memory.write_obj(entry, place).unwrap();
        };
        entry(1, 1 | ((TRANSMIT_RING >> 12) << 32));
        entry(2, 1 | ((RECEIVE_RING >> 12) << 32));
        entry(3, 1 | 4 | ((DATA >> 12) << 32));
        for grant in 4..GRANTS_END {
            entry(grant, 1 | (((DATA >> 12) + grant) << 32));
        }
        let grants = Grants::new(memory.clone(), TABLE, 1, RAM_PAGES);
        let events = Arc::new(Events::new(memory.clone(), RAISED, || {}));
        let kernel = Sender::new(memory.clone(), STORE);
        let mut store = Store::new(memory.clone(), STORE);
        let (other, cuts) = (Other::default(), Arc::<Mutex<u32>>::default());
        let counted = cuts.clone();
        let cable = Cable::new(Box::new(other.clone()), move |_| {
            *counted.lock().unwrap() += 1;
        });
        let interface = Interface::new((MAC, cable), memory.clone(), grants, events).unwrap();
        interface.announce(&mut store);
        let (sent, given) = (0, 0);
        Self {
            kernel,
            memory,
            store,
            interface,
            other,
            cuts,
            sent,
            given,
        }
    }

    fn connected() -> Self {
        let mut front = Self::new();
        assert!(front.connect(&[]));
        front
    }

    fn write(&mut self, name: &str, value: &str) {
        let payload = format!("device/vif/0/{name}\0{value}");
        self.kernel
            .ask(&mut self.store, STORE_WRITE, 0, payload.as_bytes());
    }

    fn state(&mut self, state: &str) {
        self.write("state", state);
        while self.interface.follow(&mut self.store) {}
    }

    /// Connects as Linux does, but for these nodes.
    fn connect(&mut self, other: &[(&str, &str)]) -> bool {
        let usual = [
            ("tx-ring-ref", "1"),
            ("rx-ring-ref", "2"),
            ("event-channel", "9"),
            ("request-rx-copy", "1"),
            ("feature-sg", "1"),
        ];
        for (name, value) in usual.iter().chain(other) {
            self.write(name, value);
        }
        self.state("4");
        self.interface.served.link.state(&self.store) == CONNECTED
    }

    fn word(&self, place: u64) -> u32 {
        self.memory.read_obj(GuestAddress(place)).unwrap()
    }

    fn set(&self, place: u64, word: u32) {
        self.memory.write_obj(word, GuestAddress(place)).unwrap();
    }

    /// Adds pieces of a frame: grant, offset, flags, size. Each has its number as its id.
    fn send(&mut self, pieces: &[(u32, u16, u16, u16)]) {
        for &(grant, offset, flags, size) in pieces {
            let id = self.sent as u16;
            let request = [offset, flags, id, size].map(u16::to_le_bytes).concat();
            let place = TRANSMIT_RING + 64 + u64::from(self.sent % SIZE) * TRANSMIT as u64;
            self.set(place, grant);
            let place = GuestAddress(place + 4);
            self.memory.write_slice(&request, place).unwrap();
            self.sent += 1;
        }
        self.set(TRANSMIT_RING, self.sent);
        self.interface.process();
    }

    /// Adds an empty page.
    fn give(&mut self, grant: u32) {
        let place = RECEIVE_RING + 64 + u64::from(self.given % SIZE) * RECEIVE as u64;
        self.set(place, self.given & 0xffff);
        self.set(place + 4, grant);
        self.given += 1;
        self.set(RECEIVE_RING, self.given);
        self.interface.process();
    }

    /// The answers to pieces from number `first` on: their status.
    fn answers(&self, first: u32) -> Vec<i16> {
        let end = self.word(TRANSMIT_RING + 8);
        let answer = |number: u32| {
            let place = TRANSMIT_RING + 64 + u64::from(number % SIZE) * TRANSMIT as u64;
            let word = self.word(place);
            assert_eq!(word as u16, number as u16, "it is the answer to this");
            (word >> 16) as i16
        };
        (first..end).map(answer).collect()
    }

    /// The pages that have come from number `first` on: flags and status.
    fn pages(&self, first: u32) -> Vec<(u16, i16)> {
        let end = self.word(RECEIVE_RING + 8);
        let page = |number: u32| {
            let place = RECEIVE_RING + 64 + u64::from(number % SIZE) * RECEIVE as u64;
            assert_eq!(self.word(place), number & 0xffff, "with this id, from 0 on");
            let word = self.word(place + 4);
            (word as u16, (word >> 16) as i16)
        };
        (first..end).map(page).collect()
    }

    /// `length` bytes of the page of a grant.
    fn content(&self, grant: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let place = GuestAddress(DATA + grant * PAGE);
        self.memory.read_slice(&mut bytes, place).unwrap();
        bytes
    }

    fn fill(&self, grant: u64, bytes: &[u8]) {
        let place = GuestAddress(DATA + grant * PAGE);
        self.memory.write_slice(bytes, place).unwrap();
    }

    fn is_called(&self) -> bool {
        let word: u64 = self.memory.read_obj(GuestAddress(RAISED)).unwrap();
        self.memory.write_obj(0u64, GuestAddress(RAISED)).unwrap();
        word == 1 << PORT
    }

    fn is_served(&self) -> bool {
        self.interface.served.work().kernel.is_some()
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

#[test]
fn what_is_announced() {
    let front = Front::new();
    for (path, value) in [
        ("1/device/vif/0/mac", "02:00:00:00:ab:cd"),
        ("0/backend/vif/1/0/feature-sg", "1"),
        ("0/backend/vif/1/0/feature-rx-copy", "1"),
        ("0/backend/vif/1/0/state", "2"),
    ] {
        let told = front.store.get(&format!("/local/domain/{path}"));
        assert_eq!(told, Some(value), "{path}");
    }
}

#[test]
fn frontends_that_cannot_connect() {
    for node in [
        ("tx-ring-ref", "3"),
        ("tx-ring-ref", "x"),
        ("rx-ring-ref", "3"),
        ("rx-ring-ref", "511"),
        ("event-channel", ""),
        ("request-rx-copy", "0"),
    ] {
        let mut front = Front::new();
        assert!(!front.connect(&[node]), "{node:?}");
        assert_eq!(front.interface.served.link.state(&front.store), CLOSED);
        front.send(&[(4, 0, 0, 60)]);
        assert!(front.answers(0).is_empty(), "nobody serves it");
    }
}

#[test]
fn frames_for_the_peer() {
    let mut front = Front::connected();
    let content = bytes(4096);
    front.fill(0, &content);
    front.fill(4, &content);
    front.send(&[(3, 100, 0, 60)]);
    // Of three pieces, whose first says how long the frame is.
    front.send(&[
        (4, 4000, MORE_DATA, 96 + 10 + 4096),
        (4, 0, MORE_DATA, 10),
        (3, 0, 0, 4096),
    ]);
    assert_eq!(front.answers(0), [DONE; 4]);
    let end = front.other.end();
    assert_eq!(end.got[0], content[100..160]);
    let whole = [&content[4000..], &content[..10], &content[..]].concat();
    assert!(end.got[1] == whole);
    assert_eq!(end.got.len(), 2);
}

#[test]
fn pieces_that_come_one_by_one() {
    let mut front = Front::connected();
    front.send(&[(4, 0, MORE_DATA, 100)]);
    assert!(front.answers(0).is_empty());
    front.send(&[(4, 0, 0, 40)]);
    assert_eq!(front.answers(0), [DONE; 2]);
    assert_eq!(front.other.end().got[0].len(), 100);
}

#[test]
fn the_longest_frame_for_the_peer() {
    let mut front = Front::connected();
    let mut pieces = vec![(4, 0, MORE_DATA, 0xffff)];
    pieces.extend([(4, 0, MORE_DATA, 4096); 15]);
    pieces.push((5, 0, 0, 100));
    front.send(&pieces[..1]);
    front.send(&pieces[1..]);
    assert_eq!(front.answers(0), [DONE; 17]);
    assert_eq!(front.other.end().got[0].len(), 0xffff);
}

#[test]
fn a_blank_checksum_is_filled_in() {
    let mut front = Front::connected();
    let mut frame = bytes(60);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17]);
    front.fill(4, &frame);
    front.send(&[(4, 0, CSUM_BLANK, 60)]);
    let mut filled = frame.clone();
    checksum::fill(&mut filled).unwrap();
    assert_eq!(front.other.end().got[0], filled);
    // That of what has none.
    frame[23] = 99;
    front.fill(4, &frame);
    front.send(&[(4, 0, CSUM_BLANK, 60)]);
    assert_eq!(front.answers(1), [FAILED]);
    front.send(&[(4, 0, 0, 60)]);
    assert_eq!(front.answers(2), [DONE]);
}

#[test]
fn what_is_no_frame() {
    let mut front = Front::connected();
    for bad in [
        &[(4, 0, 0, 13)][..],
        &[(4, 4090, 0, 14)],
        &[(4, 0xffff, 0, 14)],
        &[(4, 0, 0, 4097)],
        &[(0, 0, 0, 60)],
        &[(511, 0, 0, 60)],
        &[(u32::MAX, 0, 0, 60)],
        &[(4, 0, MORE_DATA, 60), (4, 0, 0, 61)],
        &[(4, 0, MORE_DATA, 60), (0, 0, 0, 10)],
        &[(4, 0, MORE_DATA, 0xffff), (4, 0, 0, 0)],
    ] {
        let first = front.sent;
        front.send(bad);
        assert_eq!(front.answers(first), vec![FAILED; bad.len()], "{bad:?}");
    }
    assert!(front.other.end().got.is_empty());
    let first = front.sent;
    front.send(&[(4, 0, 0, 60)]);
    assert_eq!(front.answers(first), [DONE], "all others are served");
}

#[test]
fn a_full_peer_has_frames_wait() {
    let mut front = Front::connected();
    front.other.end().is_full = true;
    front.send(&[(4, 0, 0, 60)]);
    front.send(&[(4, 0, 0, 61)]);
    assert_eq!(
        front.answers(0),
        [DONE],
        "one waits here, and one in the ring"
    );
    front.other.end().is_full = false;
    front.interface.process();
    assert_eq!(front.answers(0), [DONE; 2]);
    let lengths: Vec<_> = front.other.end().got.iter().map(Vec::len).collect();
    assert_eq!(lengths, [60, 61]);
}

#[test]
fn a_cut_cable_takes_everything() {
    let mut front = Front::connected();
    front.other.end().is_cut = true;
    for _ in 0..3 {
        front.send(&[(4, 0, 0, 60)]);
    }
    assert_eq!(front.answers(0), [DONE; 3]);
    assert_eq!(*front.cuts.lock().unwrap(), 1);
    assert!(front.is_served());
}

#[test]
fn frames_from_the_peer() {
    let mut front = Front::connected();
    let (short, long) = (bytes(60), bytes(2 * 4096 + 1));
    front.other.end().coming = [short.clone(), long.clone(), short.clone()].into();
    front.interface.process();
    assert_eq!(front.pages(0), [], "they wait for pages");
    front.give(4);
    assert_eq!(front.pages(0), [(0, 60)]);
    assert_eq!(front.content(4, 60), short);
    front.give(5);
    front.give(6);
    assert_eq!(front.pages(1), [], "two do not suffice");
    front.give(7);
    assert_eq!(front.pages(1), [(GOES_ON, 4096), (GOES_ON, 4096), (0, 1)]);
    let content = [
        front.content(5, 4096),
        front.content(6, 4096),
        front.content(7, 1),
    ];
    assert!(content.concat() == long);
    front.give(8);
    assert_eq!(front.pages(4), [(0, 60)]);
    assert!(front.other.end().coming.is_empty());
}

#[test]
fn the_longest_frame_from_the_peer() {
    let mut front = Front::connected();
    front.other.end().coming = [bytes(FRAME_MAX)].into();
    (4..21).for_each(|grant| front.give(grant));
    assert_eq!(front.pages(0).len(), 17);
    assert_eq!(front.pages(16), [(0, (FRAME_MAX - 16 * 4096) as i16)]);
}

#[test]
fn a_frame_that_is_too_long_is_lost() {
    let mut front = Front::new();
    assert!(front.connect(&[("feature-sg", "0")]));
    front.other.end().coming = [bytes(4097), bytes(4096)].into();
    front.give(4);
    assert_eq!(front.pages(0), [(0, 4096)]);
}

#[test]
fn pages_that_are_not_granted() {
    let mut front = Front::connected();
    for bad in [0, 3, 511, u32::MAX] {
        front.other.end().coming = [bytes(5000)].into();
        let first = front.given;
        front.give(4);
        front.give(bad);
        assert_eq!(front.pages(first), [(0, FAILED); 2], "{bad}");
    }
    assert_eq!(front.content(0, 4096), [0; 4096], "it may only be read");
    assert!(front.is_served());
}

#[test]
fn calls_are_those_that_are_wanted() {
    let mut front = Front::connected();
    for ring in [TRANSMIT_RING, RECEIVE_RING] {
        let act = |front: &mut Front| match ring {
            TRANSMIT_RING => front.send(&[(4, 0, 0, 60)]),
            _ => {
                front.other.end().coming = [bytes(60)].into();
                front.give(4);
            }
        };
        act(&mut front);
        assert!(!front.is_called(), "response 0 is none that it waits for");
        front.set(ring + 12, 2);
        act(&mut front);
        assert!(front.is_called());
        act(&mut front);
        assert!(!front.is_called());
    }
    front.interface.process();
    assert_eq!(
        front.word(TRANSMIT_RING + 4),
        4,
        "it calls with its next one"
    );
    front.other.end().coming = [bytes(60)].into();
    front.interface.process();
    assert_eq!(front.word(RECEIVE_RING + 4), 4);
}

#[test]
fn more_than_a_burst() {
    let mut front = Front::connected();
    front.other.end().coming = vec![bytes(60); 100].into();
    for _ in 0..100 {
        let place = RECEIVE_RING + 64 + u64::from(front.given) * RECEIVE as u64;
        front.set(place, front.given);
        front.set(place + 4, 4);
        front.given += 1;
    }
    front.set(RECEIVE_RING, front.given);
    front.send(&[(5, 0, 0, 60); 200]);
    assert_eq!(front.answers(0), [DONE; 200]);
    assert_eq!(front.pages(0), [(0, 60); 100]);
}

#[test]
fn broken_rings_are_served_no_more() {
    for (ring, added) in [
        (TRANSMIT_RING, SIZE + 1),
        (TRANSMIT_RING, u32::MAX),
        (RECEIVE_RING, SIZE + 1),
        (RECEIVE_RING, 1 << 31),
    ] {
        let mut front = Front::connected();
        front.other.end().coming = [bytes(60)].into();
        front.set(ring, added);
        front.interface.process();
        assert!(!front.is_served(), "{added}");
        front.state("6");
        assert_eq!(front.interface.served.link.state(&front.store), CLOSED);
    }
    let mut front = Front::connected();
    front.send(&[(4, 0, MORE_DATA, 60); 18]);
    assert!(front.is_served());
    front.send(&[(4, 0, 0, 60)]);
    assert!(!front.is_served(), "too many pieces");
    let mut front = Front::connected();
    front.send(&[(4, 0, EXTRA_INFO, 60)]);
    assert!(!front.is_served(), "segmentation was not offered");
}

#[test]
fn who_leaves_is_served_no_more_and_can_come_again() {
    let mut front = Front::connected();
    front.state("5");
    front.send(&[(4, 0, 0, 60)]);
    assert!(front.answers(0).is_empty());
    front.state("6");
    assert_eq!(front.interface.served.link.state(&front.store), CLOSED);
    // Its module is loaded once more, and has rings of its own.
    front.state("1");
    assert_eq!(front.interface.served.link.state(&front.store), "2");
    for ring in [TRANSMIT_RING, RECEIVE_RING] {
        (0..4).for_each(|index| front.set(ring + 4 * index, 0));
    }
    front.sent = 0;
    assert!(front.connect(&[]));
    front.send(&[(4, 0, 0, 60)]);
    assert_eq!(front.answers(0), [DONE]);
}

proptest! {
    /// Any requests and indices: no panic, and of memory only what was granted to be written changes.
    #[test]
    fn hostile_rings(
        pieces in prop::collection::vec((0u32..42, 0u16..0x1100, 0u16..16, any::<u16>()), 32),
        pages in prop::collection::vec(0u32..42, 32),
        sent in prop_oneof![0u32..40, any::<u32>()],
        given in prop_oneof![0u32..40, any::<u32>()],
        lengths in prop::collection::vec(1usize..20_000, 0..8),
    ) {
        let mut front = Front::connected();
        front.send(&pieces);
        front.other.end().coming = lengths.into_iter().map(bytes).collect();
        for grant in pages {
            front.give(grant);
        }
        front.set(TRANSMIT_RING, sent);
        front.set(RECEIVE_RING, given);
        let pages = |range: std::ops::Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            front.memory.read_slice(&mut bytes, GuestAddress(range.start)).unwrap();
            bytes
        };
        let end = DATA + GRANTS_END * PAGE;
        let before = (pages(0..TRANSMIT_RING), pages(TABLE..RAISED), pages(DATA..DATA + 0x4000), pages(end..0x10_0000));
        front.interface.process();
        let after = (pages(0..TRANSMIT_RING), pages(TABLE..RAISED), pages(DATA..DATA + 0x4000), pages(end..0x10_0000));
        prop_assert!(before == after);
    }

    /// What comes is what was sent, in order, whatever the pages.
    #[test]
    fn every_frame_comes(lengths in prop::collection::vec(1usize..20_000, 1..12)) {
        let mut front = Front::connected();
        let frames: Vec<_> = lengths.into_iter().map(bytes).collect();
        front.other.end().coming = frames.clone().into();
        let (mut got, mut frame) = (Vec::new(), Vec::new());
        while got.len() < frames.len() {
            // One more at a time; those that have come are looked at, and used again.
            let (first, grant) = (front.word(RECEIVE_RING + 8), 4 + u64::from(front.given % 32));
            front.give(grant as u32);
            for (number, (flags, length)) in (first..).zip(front.pages(first)) {
                frame.extend(front.content(4 + u64::from(number % 32), length as usize));
                if flags & GOES_ON == 0 {
                    got.push(std::mem::take(&mut frame));
                }
            }
        }
        prop_assert!(got == frames);
    }
}
