// SPDX-License-Identifier: GPL-2.0
//! The data of a report, as the page holds it. Times are in seconds from lg's start, durations in seconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of this format.
pub const VERSION: u32 = 1;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// [`VERSION`].
    pub version: u32,
    /// When lg began, in seconds since 1970.
    pub began: u64,
    /// What `--json` says.
    pub run: Run,
    /// The command; empty for a shell or a bare Guest.
    pub command: Vec<String>,
    /// The beginning of its log: the version of the kernel.
    pub kernel_version: Option<String>,
    /// The steps of lg's own before the Guest's first instruction.
    pub steps: Vec<Phase>,
    /// The Guest's phases after it, if its log has told them.
    pub phases: Vec<Phase>,
    /// What the kernel's initcalls took.
    pub initcalls: Initcalls,
    /// What the vCPU did; nothing if the Guest never ran.
    pub exits: Option<Exits>,
    /// The last lines of the kernel's log.
    pub log: Vec<String>,
}

/// How it ended, with the names of `--json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // as there
pub struct Run {
    pub status: u8,
    pub reason: String,
    pub message: Option<String>,
    pub code: Option<String>,
    pub why: Option<String>,
    pub fix: Option<String>,
    pub kernel: Option<String>,
    pub memory: Option<u64>,
    pub seconds: Seconds,
    pub counters: Option<BTreeMap<String, u64>>,
}

/// Times of the run, with the names of `--json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // as there
pub struct Seconds {
    pub setup: Option<f64>,
    pub command: Option<f64>,
    pub total: f64,
}

/// A stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it
pub struct Phase {
    pub name: String,
    pub from: f64,
    pub to: f64,
}

impl Phase {
    /// How long it was.
    pub fn length(&self) -> f64 {
        (self.to - self.from).max(0.0)
    }
}

/// The initcalls of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Initcalls {
    /// All of them.
    pub count: u64,
    /// What they took, in microseconds.
    pub total: u64,
    /// Those that took longest.
    pub slowest: Vec<Initcall>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Initcall {
    /// Its name, without an offset.
    pub name: String,
    /// What it took, in microseconds.
    pub took: u64,
    /// What it returned: 0, or an error.
    pub returned: i64,
}

/// In reports of lgs that knew no more.
fn one() -> usize {
    1
}

impl Exits {
    /// The length of the record, of all vCPUs together.
    pub fn together(&self) -> f64 {
        self.total * self.vcpus as f64
    }
}

/// What the vCPUs did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exits {
    /// The number of those that were on.
    #[serde(default = "one")]
    pub vcpus: usize,
    /// When its record begins.
    pub began: f64,
    /// The length of the record.
    pub total: f64,
    /// The length of a bin.
    pub width: f64,
    /// Exits in each bin, in the order of [`PARTS`], without the first and those of no exit.
    pub counts: Vec<[u32; EXITS]>,
    /// Seconds in each bin, in the order of [`PARTS`]; of several vCPUs, on the average.
    pub time: Vec<[f64; PARTS.len()]>,
    /// Pages in each bin that the Guest touched and the shadow lacked, in the order of [`REGIONS`].
    pub fills: Vec<[u32; REGIONS.len()]>,
    /// The kinds, those first that took most time.
    pub kinds: Vec<Kind>,
    /// Seconds in the Guest; of several vCPUs, together.
    pub guest: f64,
    /// Seconds in which the record was taken; likewise.
    pub recording: f64,
    /// The counters of `--stats` that the record accounts for.
    pub counters: BTreeMap<String, u64>,
    /// Records that were lost.
    pub lost: u64,
}

/// A kind of exit, and what followed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it
pub struct Kind {
    pub name: String,
    pub count: u64,
    /// Seconds outside of the Guest.
    pub total: f64,
    pub longest: f64,
}

/// Whose time it is: the Guest's; outside, by why it left; lg's own; and that of the record.
pub const PARTS: [&str; 9] = [
    "the guest",
    "page faults, filled",
    "page faults, the guest's",
    "hypercalls",
    "halted",
    "interrupts of the host",
    "other exceptions",
    "in lg: devices, console",
    "taking this record",
];

/// So many of them are exits, and follow the first.
pub const EXITS: usize = 6;

/// Where a page is.
pub const REGIONS: [&str; 4] = [
    "programs",
    "the kernel itself",
    "the kernel's map of RAM",
    "vmalloc and others",
];
