// SPDX-License-Identifier: GPL-2.0
//! A disk, with nothing of it in the Guest's page cache.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::clock::{count, measure_all};
use crate::Workload;

const SMALL: usize = 4096;
const LARGE: usize = 1 << 20;
/// Requests of the one and the other size.
const SMALL_REQUESTS: u64 = 1000;
const LARGE_REQUESTS: u64 = 48;
/// The part of the disk that is read and written.
const MEGABYTES: u64 = 64;

/// As O_DIRECT wants it.
#[repr(align(4096))]
struct Buffer([u8; LARGE]);

/// Offsets all over the disk, the same ones each time.
fn scattered() -> impl FnMut() -> u64 {
    let blocks = MEGABYTES * (LARGE / SMALL) as u64;
    let mut state = 1u64;
    move || {
        // Knuth's MMIX.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % blocks * SMALL as u64
    }
}

/// Overwrites the disk at `path`, and reads it.
pub(crate) fn workloads(path: &Path) -> Vec<Workload> {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("a disk");
    let mut buffer = Box::new(Buffer([0x5a; LARGE]));
    let large = |offset: u64| offset % MEGABYTES * LARGE as u64;
    // So that all of its blocks are there.
    for megabyte in 0..MEGABYTES {
        write(&disk, &buffer.0, large(megabyte));
    }

    let mut workloads = Vec::new();
    let mut done = |name, size, requests, ticks| {
        workloads.push(Workload {
            name,
            size,
            requests,
            ticks,
        });
    };

    let mut offset = scattered();
    let ticks = measure_all(SMALL_REQUESTS, || {
        read(&disk, &mut buffer.0[..SMALL], offset())
    });
    done("random-read", SMALL, SMALL_REQUESTS, ticks);
    let ticks = measure_all(SMALL_REQUESTS, || {
        write(&disk, &buffer.0[..SMALL], offset())
    });
    done("random-write", SMALL, SMALL_REQUESTS, ticks);
    let ticks = measure_all(SMALL_REQUESTS / 2, || {
        write(&disk, &buffer.0[..SMALL], offset());
        disk.sync_data().expect("fdatasync");
    });
    done("write-and-sync", SMALL, SMALL_REQUESTS / 2, ticks);

    let ticks = count(|| {
        (0..LARGE_REQUESTS).for_each(|megabyte| read(&disk, &mut buffer.0, large(megabyte)));
    });
    done("read", LARGE, LARGE_REQUESTS, ticks);
    let ticks = count(|| {
        (0..LARGE_REQUESTS).for_each(|megabyte| write(&disk, &buffer.0, large(megabyte)));
    });
    done("write", LARGE, LARGE_REQUESTS, ticks);
    workloads
}

fn read(disk: &File, into: &mut [u8], offset: u64) {
    disk.read_exact_at(into, offset).expect("read");
}

fn write(disk: &File, from: &[u8], offset: u64) {
    disk.write_all_at(from, offset).expect("write");
}
