// SPDX-License-Identifier: GPL-2.0
//! The block device, with and without a ring.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::sys::memfd::{memfd_create, MFdFlags};
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

use super::*;
use crate::devices::blk::disk::tests::{disk_on, file};
use crate::devices::blk::disk::Access;
use crate::devices::testing::driver::{Driver, Registers, SIZE, WRITE};
use crate::memory::Memory;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
/// Sectors of the disks here.
const SECTORS: u64 = 64;
/// GPAs: a request's header and status, and its data.
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8800;
const DATA: u64 = 0x9_0000;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const FAILED: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// What was there before.
const NO_STATUS: u8 = 0xee;

struct Bench {
    driver: Driver,
    file: File,
    /// The vCPU that kicks serves first, as it does in a run.
    vcpu_first: bool,
}

fn blk(file: &File, access: Access, with_ring: bool) -> Blk {
    let disk = disk_on(file, access);
    let ring = match (disk.file(), with_ring) {
        (Some(file), true) => Some(Ring::new(file, Blk::DEPTH).unwrap()),
        _ => None,
    };
    Blk::new(disk, ring)
}

fn bench(access: Access, with_ring: bool) -> Bench {
    let file = file(&content());
    Bench {
        driver: Driver::new(blk(&file, access, with_ring), 0),
        file,
        vcpu_first: false,
    }
}

/// All kinds of disks, and all ways to work on them.
fn benches() -> [(Access, Bench); 7] {
    [
        (Access::Write, false, false),
        (Access::Write, true, false),
        (Access::Write, true, true),
        (Access::Read, false, false),
        (Access::Read, true, false),
        (Access::Read, true, true),
        (Access::Overlay, false, false),
    ]
    .map(|(access, with_ring, vcpu_first)| {
        let bench = bench(access, with_ring);
        (
            access,
            Bench {
                vcpu_first,
                ..bench
            },
        )
    })
}

/// Each sector is full of its number, plus one.
fn content() -> Vec<u8> {
    (0..SECTORS * SECTOR)
        .map(|n| (n / SECTOR) as u8 + 1)
        .collect()
}

impl Bench {
    /// Offers a request with its header in descriptor 0, data in descriptor 1 and status in
    /// descriptor 2, all of the usual form.
    fn offer(&mut self, kind: u32, sector: u64, length: usize) {
        let header = [u64::from(kind), sector];
        let memory = &self.driver.memory;
        memory.write_obj(header, GuestAddress(HEADER)).unwrap();
        memory.write_obj(NO_STATUS, GuestAddress(STATUS)).unwrap();
        let fills = [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_GET_ID].contains(&kind);
        let flags = if fills { WRITE | NEXT } else { NEXT };
        self.driver.descriptor(0, 0, HEADER, 16, NEXT, 1);
        self.driver.descriptor(0, 1, DATA, length as u32, flags, 2);
        self.driver.descriptor(0, 2, STATUS, 1, WRITE, 0);
        self.driver.offer(0, 0);
    }

    /// Lets the device work until it has used `count` requests in all.
    fn work(&mut self, count: usize) {
        let patience = Instant::now() + Duration::from_secs(10);
        match self.vcpu_first {
            true => self.driver.device.notify(0),
            false => self.driver.device.process(0),
        }
        while self.driver.used(0).len() < count {
            assert!(Instant::now() < patience && !self.driver.needs_reset());
            self.driver.device.process(0);
        }
    }

    fn status(&self) -> u8 {
        self.driver.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// Makes a request to its end; returns its status, and how many bytes were filled.
    fn request(&mut self, kind: u32, sector: u64, length: usize) -> (u8, u32) {
        self.offer(kind, sector, length);
        let count = self.driver.used(0).len() + 1;
        self.work(count);
        (self.status(), self.driver.used(0)[count - 1][1])
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.put(bytes);
        self.request(VIRTIO_BLK_T_OUT, sector, bytes.len()).0
    }

    fn read(&mut self, sector: u64, length: usize) -> Vec<u8> {
        self.put(&vec![0xdd; length]);
        assert_eq!(
            self.request(VIRTIO_BLK_T_IN, sector, length),
            (OK, length as u32 + 1)
        );
        self.data(length)
    }

    /// DISCARD or WRITE_ZEROES, with ranges of sector, number of sectors and flags.
    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes = |&(sector, sectors, flags): &(u64, u32, u32)| {
            [sector, u64::from(sectors) | (u64::from(flags) << 32)]
                .map(u64::to_le_bytes)
                .concat()
        };
        let bytes: Vec<u8> = ranges.iter().flat_map(bytes).collect();
        self.put(&bytes);
        self.request(kind, 0, bytes.len()).0
    }

    fn put(&self, bytes: &[u8]) {
        self.driver
            .memory
            .write_slice(bytes, GuestAddress(DATA))
            .unwrap();
    }

    fn data(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.driver
            .memory
            .read_slice(&mut bytes, GuestAddress(DATA))
            .unwrap();
        bytes
    }

    fn on_disk(&self) -> Vec<u8> {
        let mut bytes = vec![0; (SECTORS * SECTOR) as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn reset(&self) {
        self.driver.mmio.put(VIRTIO_MMIO_STATUS, 0);
    }
}

#[test]
fn read_and_write() {
    for (access, mut bench) in benches() {
        assert_eq!(bench.read(3, 1024)[..], content()[3 * 512..][..1024]);
        let written = bench.write(4, &[0xab; 1024]);
        let mut expected = content();
        if access == Access::Read {
            assert_eq!(written, FAILED);
        } else {
            assert_eq!(written, OK);
            expected[4 * 512..][..1024].fill(0xab);
        }
        assert_eq!(bench.read(3, 2048)[..], expected[3 * 512..][..2048]);
        if access != Access::Write {
            expected = content();
        }
        assert!(bench.on_disk() == expected);
    }
}

#[test]
fn the_vcpu_leaves_what_waits_to_the_thread() {
    // On a tmpfs nothing waits; other file systems may not know beforehand.
    let file = memfd_create(c"disk", MFdFlags::empty()).unwrap();
    let file = File::from(file);
    let long = 66 << 10;
    file.set_len(long as u64).unwrap();
    let mut bench = Bench {
        driver: Driver::new(blk(&file, Access::Write, true), 0),
        file,
        vcpu_first: false,
    };
    let kicked = |bench: &Bench| bench.driver.device.kick(0).unwrap().read().is_ok();
    kicked(&bench); // by the start
    for (kind, length, at_once) in [
        (VIRTIO_BLK_T_IN, 512, true),
        (VIRTIO_BLK_T_OUT, 4096, true),
        (VIRTIO_BLK_T_FLUSH, 0, false),
        (VIRTIO_BLK_T_IN, long, false),
        (VIRTIO_BLK_T_IN, 511, false),
        (VIRTIO_BLK_T_OUT, 512, true),
    ] {
        bench.offer(kind, 0, length);
        let before = bench.driver.used(0).len();
        bench.driver.device.notify(0);
        let used = bench.driver.used(0).len() > before;
        assert_eq!(
            (used, kicked(&bench)),
            (at_once, !at_once),
            "{kind} {length}"
        );
        bench.work(before + 1);
        let status = if length == 511 { FAILED } else { OK };
        assert_eq!(bench.status(), status, "{kind} {length}");
        bench.driver.device.process(0); // hears of the completion
    }
    // Somebody else is at work on the disk.
    bench.offer(VIRTIO_BLK_T_IN, 0, 512);
    let state = bench.driver.device.state();
    bench.driver.device.notify(0);
    drop(state);
    assert!(kicked(&bench));
}

#[test]
fn the_end_of_the_disk() {
    let last = SECTORS - 1;
    for (access, mut bench) in benches() {
        bench.read(last, 512);
        for (sector, length) in [
            (last, 1024),
            (SECTORS, 512),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (u64::MAX / 512 + 1, 512),
            (0, 511),
            (0, 513),
        ] {
            for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
                assert_eq!(bench.request(kind, sector, length), (FAILED, 1), "{sector}");
            }
        }
        for range in [
            (last, 2, 0),
            (u64::MAX, 1, 0),
            (0, MAX_RANGE_SECTORS + 1, 0),
        ] {
            let zeroes = bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range]);
            let discard = bench.ranges(VIRTIO_BLK_T_DISCARD, &[range]);
            let expected = if access == Access::Read {
                UNSUPPORTED
            } else {
                FAILED
            };
            assert_eq!([zeroes, discard], [expected; 2], "{range:?}");
        }
        assert!(bench.on_disk() == content());
        // Nothing is no mistake.
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, SECTORS, 0), (OK, 1));
    }
}

#[test]
fn zeroes_and_discards() {
    for access in [Access::Write, Access::Overlay] {
        let mut bench = bench(access, false);
        let zeroes = [(1, 2, 0), (5, 1, 1), (60, 4, 1), (9, 0, 0)];
        assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &zeroes), OK);
        assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &[(16, 16, 0)]), OK);
        let mut expected = content();
        for (start, sectors) in [(1, 2), (5, 1), (60, 4), (16, 16)] {
            expected[start * 512..][..sectors * 512].fill(0);
        }
        assert!(bench.read(0, (SECTORS * SECTOR) as usize) == expected);
        for (kind, ranges) in [
            (VIRTIO_BLK_T_DISCARD, [(0, 1, 1)]),
            (VIRTIO_BLK_T_DISCARD, [(0, 1, 2)]),
            (VIRTIO_BLK_T_WRITE_ZEROES, [(0, 1, 2)]),
        ] {
            assert_eq!(bench.ranges(kind, &ranges), UNSUPPORTED, "{ranges:?}");
        }
        let many = vec![(0, 1, 0); MAX_RANGES as usize + 1];
        for ranges in [&[][..], &many] {
            assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, ranges), FAILED);
        }
        assert_eq!(bench.request(VIRTIO_BLK_T_DISCARD, 0, 17), (FAILED, 1));
    }
}

#[test]
fn flush_id_and_what_is_unknown() {
    for (access, mut bench) in benches() {
        let flushes = access == Access::Write;
        let expected = if flushes { OK } else { UNSUPPORTED };
        assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0), (expected, 1));
        // The files have a number for a name.
        bench.put(&[0xff; 32]);
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, 32), (OK, 21));
        let id = bench.data(32);
        assert!(
            id[0].is_ascii_digit() && id[19] == 0 && id[20] == 0xff,
            "{id:?}"
        );
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, 1), (OK, 2));
        for kind in [
            VIRTIO_BLK_T_SCSI_CMD,
            VIRTIO_BLK_T_SECURE_ERASE,
            99,
            u32::MAX,
        ] {
            assert_eq!(bench.request(kind, 0, 512), (UNSUPPORTED, 1));
        }
    }
}

#[test]
fn many_at_a_time() {
    let mut bench = bench(Access::Write, true);
    // Sector n from the buffer of slot n, whose header and status are before and behind it.
    for slot in 0..20 {
        let at = DATA + 0x400 * u64::from(slot);
        let header = [u64::from(VIRTIO_BLK_T_OUT), u64::from(slot)];
        let memory = &bench.driver.memory;
        memory.write_obj(header, GuestAddress(at)).unwrap();
        memory
            .write_slice(&[0xc0 + slot as u8; 512], GuestAddress(at + 16))
            .unwrap();
        let first = 3 * slot;
        bench.driver.descriptor(0, first, at, 16, NEXT, first + 1);
        bench
            .driver
            .descriptor(0, first + 1, at + 16, 512, NEXT, first + 2);
        bench
            .driver
            .descriptor(0, first + 2, at + 0x300, 1, WRITE, 0);
        bench.driver.offer(0, first);
    }
    bench.work(20);
    let mut heads: Vec<_> = bench.driver.used(0).iter().map(|[head, _]| *head).collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..20).map(|slot| 3 * slot).collect::<Vec<_>>());
    assert!(bench.driver.interrupted());
    let disk = bench.on_disk();
    for slot in 0..20 {
        assert_eq!(disk[512 * slot..][..512], [0xc0 + slot as u8; 512]);
    }
}

/// Header, data and status may be spread over buffers in any way.
#[test]
fn any_layout() {
    for with_ring in [false, true] {
        let mut bench = bench(Access::Write, with_ring);
        bench.put(&[0xab; 1024]);
        bench.offer(VIRTIO_BLK_T_OUT, 2, 1024);
        let memory = &bench.driver.memory;
        let mut header = [0; 16];
        memory
            .read_slice(&mut header, GuestAddress(HEADER))
            .unwrap();
        memory
            .write_slice(&header[10..], GuestAddress(DATA - 6))
            .unwrap();
        bench.driver.descriptor(0, 0, HEADER, 10, NEXT, 1);
        bench.driver.descriptor(0, 1, DATA - 6, 6 + 100, NEXT, 3);
        bench.driver.descriptor(0, 3, DATA + 100, 924, NEXT, 4);
        bench.driver.descriptor(0, 4, 0, 0, NEXT | WRITE, 2);
        bench.work(1);
        assert_eq!(bench.status(), OK);
        assert_eq!(bench.on_disk()[1024..2048], [0xab; 1024]);
        // Data and status in one buffer, the whole request in an indirect table.
        bench.offer(VIRTIO_BLK_T_IN, 2, 512);
        for (slot, gpa, length, flags) in [(8, HEADER, 16, NEXT), (9, DATA, 513, WRITE)] {
            bench.driver.descriptor(0, slot, gpa, length, flags, 1);
        }
        let table = bench.driver.rings[0].descriptors() + 8 * 16;
        bench.driver.descriptor(0, 0, table, 32, INDIRECT, 0);
        bench.work(2);
        assert_eq!(bench.data(513), [[0xab; 512].as_slice(), &[OK]].concat());
    }
}

/// What cannot even be answered stops the device, and the disk stays as it is.
#[test]
fn broken_requests() {
    let outside = 1 << 40;
    let breaks: [fn(&Driver, u64); 9] = [
        |driver, _| driver.descriptor(0, 2, STATUS, 0, WRITE, 0),
        |driver, _| driver.descriptor(0, 2, STATUS, 1, 0, 0),
        |driver, outside| driver.descriptor(0, 2, outside, 1, WRITE, 0),
        |driver, _| driver.descriptor(0, 2, u64::MAX, u32::MAX, WRITE, 0),
        |driver, _| driver.descriptor(0, 2, STATUS, 1, WRITE | NEXT, SIZE),
        |driver, _| driver.descriptor(0, 2, STATUS, 1, WRITE | NEXT, 0),
        |driver, _| driver.descriptor(0, 0, HEADER, 16, WRITE | NEXT, 1),
        |driver, outside| driver.descriptor(0, 0, outside, 16, NEXT, 1),
        |driver, outside| driver.descriptor(0, 1, outside, 512, NEXT, 2),
    ];
    for with_ring in [false, true] {
        for (number, break_it) in breaks.iter().enumerate() {
            let mut bench = bench(Access::Write, with_ring);
            bench.offer(VIRTIO_BLK_T_OUT, 0, 512);
            break_it(&bench.driver, outside);
            bench.driver.device.process(0);
            assert!(bench.driver.needs_reset(), "{number}");
            assert_eq!(bench.status(), NO_STATUS);
            assert!(bench.on_disk() == content());
        }
    }
}

#[test]
fn a_reset_waits() {
    for _ in 0..20 {
        let mut bench = bench(Access::Write, true);
        for _ in 0..40 {
            bench.offer(VIRTIO_BLK_T_IN, 0, 0x4000);
        }
        bench.driver.device.process(0);
        bench.reset();
        // Whatever was in flight, this stays.
        bench.put(&[0x77; 0x4000]);
        std::thread::sleep(Duration::from_millis(2));
        assert!(bench.data(0x4000).iter().all(|&byte| byte == 0x77));
    }
}

#[test]
fn a_driver_that_does_not_flush() {
    let file = file(&content());
    let mut device = blk(&file, Access::Write, false);
    device.start(device.features());
    assert!(!device.stable);
    device.start(device.features() & !(1 << VIRTIO_BLK_F_FLUSH));
    assert!(device.stable);
    drop(device);
    let mut device = blk(&file, Access::Overlay, false);
    device.start(0);
    assert!(!device.stable);
}

#[test]
fn a_failed_flush_is_not_forgotten() {
    let mut device = blk(&file(&content()), Access::Write, false);
    let memory = Dma::from(Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    let none = Buffers::none(&memory);
    let mut flush = |result| device.outcome(Operation::Flush, &none, result).0;
    assert_eq!(flush(Ok(())), Status::Ok);
    assert_eq!(
        flush(Err(io::ErrorKind::StorageFull.into())),
        Status::Failed
    );
    assert_eq!(flush(Ok(())), Status::Failed);
}

#[test]
fn a_file_that_shrinks() {
    for with_ring in [false, true] {
        let mut bench = bench(Access::Write, with_ring);
        bench.file.set_len(1024).unwrap();
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, 1024), (FAILED, 1));
        assert_eq!(bench.read(1, 512), [2; 512]);
    }
}

#[test]
fn what_is_offered() {
    let config = |access| {
        let device = blk(&file(&content()), access, false);
        let mut config = [0xff; 64];
        device.read_config(0, &mut config);
        let number = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        (device.features(), [0, 4, 12, 20, 36, 48, 60].map(number))
    };
    let bits = |bits: &[u32]| bits.iter().map(|bit| 1 << bit).sum::<u64>();
    let most = MAX_RANGE_SECTORS;
    assert_eq!(
        config(Access::Write),
        (
            bits(&[2, 6, 9, 10, 13, 14]),
            [64, 0, 254, 512, most, most, 0]
        )
    );
    assert_eq!(
        config(Access::Read),
        (bits(&[2, 5, 6, 10]), [64, 0, 254, 512, 0, 0, 0])
    );
    assert_eq!(
        config(Access::Overlay),
        (bits(&[2, 6, 10, 13, 14]), [64, 0, 254, 512, most, most, 0])
    );
}

proptest! {
    /// Random descriptors and headers, with resets at any moment: no panic, and an end.
    #[test]
    fn hostile_rings(
        with_ring in any::<bool>(),
        overlay in any::<bool>(),
        headers in prop::collection::vec((0u32..16, 0..2 * SECTORS), 16),
        descriptors in prop::collection::vec(
            (
                prop_oneof![0x8000u64..0x8100, 0u64..1 << 20, any::<u64>()],
                prop_oneof![Just(16u32), Just(1), (0u32..8).prop_map(|n| n << 9), any::<u32>()],
                0u16..8,
                0u16..70,
            ),
            1..64,
        ),
        heads in prop::collection::vec(0u16..70, 1..64),
        resets in prop::collection::vec(any::<bool>(), 4),
    ) {
        let access = if overlay { Access::Overlay } else { Access::Write };
        let mut bench = bench(access, with_ring);
        for (n, (kind, sector)) in headers.into_iter().enumerate() {
            let at = GuestAddress(HEADER + 16 * n as u64);
            bench.driver.memory.write_obj([u64::from(kind), sector], at).unwrap();
        }
        for (slot, &(gpa, length, flags, next)) in descriptors.iter().enumerate() {
            bench.driver.descriptor(0, slot as u16, gpa, length, flags, next);
        }
        for &head in &heads {
            bench.driver.offer(0, head);
        }
        for reset in resets {
            bench.driver.device.process(0);
            if reset {
                bench.reset();
            }
        }
    }

    /// Chains that make sense but for one random descriptor: the same status with and without a
    /// ring, and the same content of disk and RAM afterwards.
    #[test]
    fn all_ways_do_the_same(requests in prop::collection::vec(
        (0u32..16, 0..SECTORS + 2, 0usize..5, 0u16..3, any::<u8>()), 1..20,
    )) {
        let mut benches = [false, true, true].map(|with_ring| bench(Access::Write, with_ring));
        benches[2].vcpu_first = true;
        for (kind, sector, sectors, flags, byte) in requests {
            let outcomes = benches.each_mut().map(|bench| {
                let ranges = [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES].contains(&kind);
                let outcome = if ranges {
                    let range = (sector, sectors as u32, u32::from(flags));
                    (bench.ranges(kind, &[range]), 1)
                } else {
                    bench.put(&[byte; 2048]);
                    bench.request(kind, sector, sectors * 512)
                };
                // The names of the files differ.
                let data = if kind == VIRTIO_BLK_T_GET_ID { Vec::new() } else { bench.data(2048) };
                (outcome, data, bench.on_disk())
            });
            prop_assert!(outcomes[0] == outcomes[1], "{kind} {sector} {sectors}");
            prop_assert!(outcomes[0] == outcomes[2], "{kind} {sector} {sectors}");
        }
    }
}

/// What a flush was for is lost even if the driver has gone away before it heard of that: the Host
/// says so once, and the disk to whoever asks next.
#[test]
fn a_flush_that_fails_during_a_reset() {
    let disk = disk_on(&file(&content()), Access::Write);
    // There is no flushing of this.
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let ring = Ring::new(&pipe.into(), Blk::DEPTH).unwrap();
    let mut blk = Blk::new(disk, Some(ring));
    let memory = Dma::from(crate::memory::create(2 << 20).unwrap());
    let request = Pending {
        head: 0,
        status: GuestAddress(STATUS),
    };
    let flush = |blk: &mut Blk| blk.perform(Task::Flush, request, &memory).unwrap();
    assert!(flush(&mut blk).is_none());
    blk.reset();
    blk.start(0);
    blk.ring = None;
    let answer = flush(&mut blk);
    assert!(matches!(answer, Some((Status::Failed, 0))));
}
