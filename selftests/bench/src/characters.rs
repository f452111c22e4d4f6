// SPDX-License-Identifier: GPL-2.0
//! The devices that are character devices in a Guest.

use std::fs::OpenOptions;
use std::io::{Read, Write};

use crate::clock::measure_all;
use crate::Workload;

/// What the kernel asks virtio-rng for at a time.
const RANDOM: usize = 64;
/// A line of text, more or less.
const LINE: usize = 64;
const REQUESTS: u64 = 500;

/// Random numbers.
pub(crate) fn random() -> Workload {
    let mut device = std::fs::File::open("/dev/hwrng").expect("there is a virtio-rng");
    let mut bytes = [0; RANDOM];
    let ticks = measure_all(REQUESTS, || device.read_exact(&mut bytes).expect("numbers"));
    Workload {
        name: "read",
        size: RANDOM,
        requests: REQUESTS,
        ticks,
    }
}

/// Text on the console. NULs, which no log shows.
pub(crate) fn line() -> Workload {
    let device = OpenOptions::new().write(true).open("/dev/hvc0");
    let mut device = device.expect("there is a virtio console");
    let ticks = measure_all(REQUESTS, || device.write_all(&[0; LINE]).expect("room"));
    Workload {
        name: "line",
        size: LINE,
        requests: REQUESTS,
        ticks,
    }
}
