// SPDX-License-Identifier: GPL-2.0
//! A disk, as xen-blkfront sees it: by the xenstore, and by a ring.

use std::fs;

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::Bytes;

use super::*;
use crate::devices::blk::disk::{Access, Spec};
use crate::xen::link::{CLOSED, CONNECTED};
use crate::xen::testing::kernel::Kernel as Sender;

const STORE: u64 = 0x4000;
const TABLE: u64 = 0x8000;
const RING: u64 = 0x6000;
const RAISED: u64 = 0x9000;
/// Grant 1 is of the ring, grant 2 of two pages that the disk may only read, those from 4 on of pages that it may write.
const DATA: u64 = 0x1_0000;
const RAM_PAGES: u64 = 0x80;
const STORE_WRITE: u32 = 11;
const SECTORS: u64 = 64;
const PORT: u32 = 9;

struct Front {
    kernel: Sender,
    memory: Memory,
    store: Store,
    block: Block,
    file: NamedTempFile,
    added: u32,
}

impl Front {
    fn new(access: Access) -> Self {
        let memory = crate::memory::create(1 << 20).unwrap();
        let file = NamedTempFile::new().unwrap();
        let content: Vec<_> = (0..SECTORS * SECTOR).map(|n| (n / SECTOR) as u8).collect();
        fs::write(file.path(), content).unwrap();
        let path = file.path().into();
        let disk = Disk::open(&Spec { path, access }).unwrap();
        let entry = |grant: u64, entry: u64| {
            memory
                .write_obj(entry, GuestAddress(TABLE + 8 * grant))
                .unwrap();
        };
        entry(1, 1 | ((RING >> 12) << 32));
        entry(2, 1 | 4 | ((DATA >> 12) << 32));
        for grant in 4..16 {
            entry(grant, 1 | (((DATA >> 12) + grant) << 32));
        }
        let grants = Grants::new(memory.clone(), TABLE, 1, RAM_PAGES);
        let events = Arc::new(Events::new(memory.clone(), RAISED, || {}));
        let kernel = Sender::new(memory.clone(), STORE);
        let mut store = Store::new(memory.clone(), STORE);
        let block = Block::new(0, disk, memory.clone(), grants, events);
        block.announce(&mut store);
        Self {
            kernel,
            memory,
            store,
            block,
            file,
            added: 0,
        }
    }

    fn connected(access: Access) -> Self {
        let mut front = Self::new(access);
        assert!(front.connect("1", "9", "x86_64-abi"));
        front
    }

    fn write(&mut self, name: &str, value: &str) {
        let payload = format!("device/vbd/51712/{name}\0{value}");
        self.kernel
            .ask(&mut self.store, STORE_WRITE, 0, payload.as_bytes());
    }

    fn connect(&mut self, grant: &str, port: &str, protocol: &str) -> bool {
        self.write("ring-ref", grant);
        self.write("event-channel", port);
        self.write("protocol", protocol);
        self.write("state", "3");
        while self.block.follow(&mut self.store) {}
        self.block.served.link.state(&self.store) == CONNECTED
    }

    fn told(&self, name: &str) -> String {
        let path = format!("/local/domain/0/backend/vbd/1/51712/{name}");
        self.store.get(&path).unwrap().into()
    }

    fn add(&mut self, request: &[u8; REQUEST]) {
        let slot = u64::from(self.added % 32) * REQUEST as u64;
        self.memory
            .write_slice(request, GuestAddress(RING + 64 + slot))
            .unwrap();
        self.added = self.added.wrapping_add(1);
        self.memory
            .write_obj(self.added, GuestAddress(RING))
            .unwrap();
    }

    /// Asks, and returns the status of the answer.
    fn ask(&mut self, request: &[u8; REQUEST]) -> i16 {
        self.add(request);
        self.block.process();
        assert_eq!(
            self.memory.read_obj::<u32>(GuestAddress(RING + 8)).unwrap(),
            self.added
        );
        let slot = u64::from((self.added - 1) % 32) * REQUEST as u64;
        let response: [u8; RESPONSE] = self
            .memory
            .read_obj(GuestAddress(RING + 64 + slot))
            .unwrap();
        assert_eq!(response[..8], request[8..16], "it is the answer to this");
        assert_eq!(response[8], request[0]);
        i16::from_le_bytes([response[10], response[11]])
    }

    fn is_called(&self) -> bool {
        let word: u64 = self.memory.read_obj(GuestAddress(RAISED)).unwrap();
        self.memory.write_obj(0u64, GuestAddress(RAISED)).unwrap();
        word == 1 << PORT
    }
}

/// A request, whose pieces are of grant, first and last sector.
fn request(kind: u8, sector: u64, pieces: &[(u32, u8, u8)]) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[0] = kind;
    request[1] = pieces.len() as u8;
    request[8..16].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
    request[16..24].copy_from_slice(&sector.to_le_bytes());
    for (place, &(grant, first, last)) in request[24..].chunks_exact_mut(8).zip(pieces) {
        place[..4].copy_from_slice(&grant.to_le_bytes());
        place[4..6].copy_from_slice(&[first, last]);
    }
    request
}

fn discard(sector: u64, sectors: u64) -> [u8; REQUEST] {
    let mut request = request(DISCARD, sector, &[]);
    request[24..32].copy_from_slice(&sectors.to_le_bytes());
    request
}

#[test]
fn what_is_announced() {
    let front = Front::new(Access::Write);
    for (name, value) in [
        ("sectors", "64"),
        ("info", "0"),
        ("feature-flush-cache", "1"),
        ("feature-persistent", "0"),
    ] {
        assert_eq!(front.told(name), value, "{name}");
    }
    let front = Front::new(Access::Read);
    assert_eq!(
        (front.told("info"), front.told("feature-flush-cache")),
        ("4".into(), "0".into())
    );
}

#[test]
fn frontends_that_cannot_connect() {
    for (grant, port, protocol) in [
        ("2", "9", "x86_64-abi"),
        ("3", "9", "x86_64-abi"),
        ("x", "9", "x86_64-abi"),
        ("1", "", "x86_64-abi"),
        ("1", "9", "x86_32-abi"),
    ] {
        let mut front = Front::new(Access::Write);
        assert!(
            !front.connect(grant, port, protocol),
            "{grant} {port} {protocol}"
        );
        assert_eq!(front.block.served.link.state(&front.store), CLOSED);
        front.add(&request(READ, 0, &[(4, 0, 0)]));
        front.block.process();
        assert_eq!(
            front
                .memory
                .read_obj::<u32>(GuestAddress(RING + 8))
                .unwrap(),
            0,
            "nobody serves it"
        );
    }
}

#[test]
fn transfers() {
    let mut front = Front::connected(Access::Write);
    // The end of one page, and the beginning of another.
    assert_eq!(front.ask(&request(READ, 10, &[(4, 6, 7), (5, 0, 0)])), 0);
    for (page, sector, content) in [(4, 6, 10u8), (4, 7, 11), (5, 0, 12)] {
        let place = GuestAddress(DATA + page * 0x1000 + sector * SECTOR);
        let mut read = [0; SECTOR as usize];
        front.memory.read_slice(&mut read, place).unwrap();
        assert!(read.iter().all(|&byte| byte == content), "{page} {sector}");
    }
    front
        .memory
        .write_slice(&[0xee; 0x1000], GuestAddress(DATA))
        .unwrap();
    assert_eq!(
        front.ask(&request(WRITE, 56, &[(2, 0, 7)])),
        0,
        "from a page that it may only read"
    );
    assert_eq!(front.ask(&request(FLUSH, 0, &[])), 0);
    let content = fs::read(front.file.path()).unwrap();
    assert!(content[56 * 512..].iter().all(|&byte| byte == 0xee) && content[55 * 512] == 55);
    if front.told("feature-discard") == "1" {
        assert_eq!(front.ask(&discard(56, 8)), 0);
    }
}

#[test]
fn requests_that_make_no_sense() {
    let mut front = Front::connected(Access::Write);
    let before = fs::read(front.file.path()).unwrap();
    let mut many = request(READ, 0, &[(4, 0, 0); 11]);
    many[1] = 12;
    for bad in [
        request(READ, 0, &[]),
        many,
        request(READ, 0, &[(4, 1, 0)]),
        request(READ, 0, &[(4, 0, 8)]),
        request(READ, 0, &[(2, 0, 0)]),
        request(READ, 0, &[(3, 0, 0)]),
        request(WRITE, 0, &[(4, 0, 0), (512, 0, 0)]),
        request(READ, SECTORS, &[(4, 0, 0)]),
        request(WRITE, SECTORS - 1, &[(4, 0, 1)]),
        request(READ, u64::MAX, &[(4, 0, 0)]),
        request(READ, u64::MAX / SECTOR, &[(4, 0, 0)]),
        discard(1, SECTORS),
        discard(0, u64::MAX),
        discard(u64::MAX, 1),
    ] {
        let status = front.ask(&bad);
        assert!(
            status == -1 || (status == -2 && bad[0] == DISCARD),
            "{bad:?}: {status}"
        );
    }
    for unknown in [2, 4, 6, 7, 0xff] {
        assert_eq!(front.ask(&request(unknown, 0, &[(4, 0, 0)])), -2);
    }
    assert_eq!(front.ask(&request(FLUSH, 0, &[(4, 0, 0)])), -2);
    assert_eq!(fs::read(front.file.path()).unwrap(), before);
    assert_eq!(
        front.ask(&request(READ, 0, &[(4, 0, 0)])),
        0,
        "all others are served"
    );
}

#[test]
fn what_is_read_only() {
    let mut front = Front::connected(Access::Read);
    assert_eq!(front.ask(&request(WRITE, 0, &[(4, 0, 0)])), -1);
    assert_eq!(front.ask(&request(READ, 0, &[(4, 0, 0)])), 0);
}

#[test]
fn calls_are_those_that_are_wanted() {
    let mut front = Front::connected(Access::Write);
    let read = request(READ, 0, &[(4, 0, 0)]);
    front.ask(&read);
    assert!(!front.is_called(), "response 0 is none that it waits for");
    front
        .memory
        .write_obj(2u32, GuestAddress(RING + 12))
        .unwrap();
    front.ask(&read);
    assert!(front.is_called());
    front.ask(&read);
    assert!(!front.is_called());
    assert_eq!(
        front
            .memory
            .read_obj::<u32>(GuestAddress(RING + 4))
            .unwrap(),
        4,
        "it calls with its next request"
    );
}

#[test]
fn a_broken_ring_is_served_no_more() {
    for added in [33u32, u32::MAX, 1 << 31] {
        let mut front = Front::connected(Access::Write);
        front.memory.write_obj(added, GuestAddress(RING)).unwrap();
        front.block.process();
        assert!(front.block.served.work().kernel.is_none(), "{added}");
        front.write("state", "6");
        while front.block.follow(&mut front.store) {}
        assert_eq!(front.block.served.link.state(&front.store), CLOSED);
    }
}

#[test]
fn who_leaves_is_served_no_more() {
    let mut front = Front::connected(Access::Write);
    front.write("state", "5");
    while front.block.follow(&mut front.store) {}
    front.add(&request(READ, 0, &[(4, 0, 0)]));
    front.block.process();
    assert_eq!(
        front
            .memory
            .read_obj::<u32>(GuestAddress(RING + 8))
            .unwrap(),
        0
    );
}

proptest! {
    /// Any bytes as requests and indices: no panic, and of memory only what was granted to be written changes.
    #[test]
    fn hostile_rings(
        slots in prop::collection::vec((0u8..8, 0u8..13, 0u64..80, prop::collection::vec((0u32..20, 0u8..9, 0u8..9), 11)), 32),
        added in prop_oneof![0u32..40, any::<u32>()],
    ) {
        let front = Front::connected(Access::Overlay);
        for (number, (kind, count, sector, pieces)) in (0..).zip(slots) {
            let mut bytes = request(kind, sector, &pieces);
            bytes[1] = count;
            front.memory.write_slice(&bytes, GuestAddress(RING + 64 + number * REQUEST as u64)).unwrap();
        }
        front.memory.write_obj(added, GuestAddress(RING)).unwrap();
        let pages = |range: std::ops::Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            front.memory.read_slice(&mut bytes, GuestAddress(range.start)).unwrap();
            bytes
        };
        let before = (pages(0..RING), pages(TABLE..RAISED), pages(DATA..DATA + 0x4000), pages(0x2_0000..0x10_0000));
        front.block.process();
        let after = (pages(0..RING), pages(TABLE..RAISED), pages(DATA..DATA + 0x4000), pages(0x2_0000..0x10_0000));
        prop_assert!(before == after);
        prop_assert_eq!(front.block.served.work().kernel.is_some(), added <= 32);
    }
}
