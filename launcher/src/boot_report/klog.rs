// SPDX-License-Identifier: GPL-2.0
//! What the log of the Guest's kernel says of its boot: its phases, and its initcalls.
//!
//! Linux says with `initcall_debug` when it calls which and how long that took
//! (`linux:init/main.c`). Anybody in the Guest may say the same: so everything is bounded, and a line is only ever
//! text. A line's time is the kernel's own stamp; how that clock relates to ours, the line knows that took the least
//! time to us. None is later than when we heard of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::boot_report::data::{Initcall, Initcalls, Phase};
use crate::report::messages::printable;

/// What is longer is not one of the lines that are looked for.
const LINE_MAX: usize = 512;
/// Initcalls that are kept: the slowest.
const KEPT: usize = 500;
/// The longest name that is kept.
const NAME_MAX: usize = 80;

/// The levels of initcalls, in their order (`linux:init/main.c`).
const LEVELS: [&str; 10] = [
    "early", "pure", "core", "postcore", "arch", "subsys", "fs", "rootfs", "device", "late",
];

/// The phases that begin with a line of the log, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// The first line.
    Begin,
    /// Initcalls, of this level; or of any, by a kernel that does not say which.
    Level(usize),
    /// What only the boot needs is freed.
    Freed,
    /// The init runs.
    Init,
    /// It has ended, and the kernel powers off.
    Off,
}

impl Mark {
    fn of(text: &str) -> Option<Self> {
        if let Some(level) = text.strip_prefix("entering initcall level: ") {
            let index = LEVELS.iter().position(|known| *known == level.trim())?;
            return Some(Self::Level(index));
        }
        [
            ("Linux version ", Self::Begin),
            ("calling  ", Self::Level(0)),
            ("Freeing unused kernel ", Self::Freed),
            ("Run /", Self::Init),
            ("reboot: ", Self::Off),
        ]
        .into_iter()
        .find_map(|(words, mark)| text.starts_with(words).then_some(mark))
    }

    fn name(self, levels: bool) -> String {
        match self {
            Self::Begin => "kernel, before initcalls".into(),
            Self::Level(index) if levels => format!("initcalls: {}", LEVELS[index]),
            Self::Level(_) => "initcalls".into(),
            Self::Freed => "kernel, memory of the boot freed".into(),
            Self::Init => "init".into(),
            Self::Off => "power-off".into(),
        }
    }
}

/// When a line was written: by the kernel's clock, if it had one by then, and when we have heard of it. In seconds.
#[derive(Clone, Copy, Debug)]
struct When {
    stamp: Option<f64>,
    heard: f64,
}

/// Reads a log as it comes.
#[derive(Debug)]
pub struct Reader {
    began: Instant,
    line: Vec<u8>,
    version: Option<String>,
    /// Zero of the kernel's clock.
    offset: Option<f64>,
    /// In their order, each once.
    marks: Vec<(Mark, When)>,
    levels: bool,
    count: u64,
    total: u64,
    slowest: BinaryHeap<Reverse<(u64, String, i64)>>,
}

impl Reader {
    /// Times are from `began`.
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            line: Vec::new(),
            version: None,
            offset: None,
            marks: Vec::new(),
            levels: false,
            count: 0,
            total: 0,
            slowest: BinaryHeap::new(),
        }
    }

    /// This came `now`.
    pub fn read(&mut self, text: &[u8], now: Instant) {
        let heard = now.saturating_duration_since(self.began).as_secs_f64();
        for part in text.split_inclusive(|&byte| byte == b'\n') {
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line.extend(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.line(&printable(line.trim_ascii()), heard);
            }
        }
    }

    fn line(&mut self, line: &str, heard: f64) {
        let (stamp, text) = stamp(line);
        // Before it has a clock, a kernel says 0.
        let stamp = stamp.filter(|stamp| *stamp > 0.0);
        if let Some(stamp) = stamp {
            let offset = heard - stamp;
            self.offset = Some(self.offset.map_or(offset, |known| known.min(offset)));
        }
        if let Some(mark) = Mark::of(text) {
            let is_new = self.marks.last().is_none_or(|(last, _)| *last < mark);
            let heads = !matches!(mark, Mark::Level(_)) || !text.starts_with("calling");
            self.levels |= heads && matches!(mark, Mark::Level(_));
            if is_new {
                self.marks.push((mark, When { stamp, heard }));
            }
            if mark == Mark::Begin && self.version.is_none() {
                // Behind that are its builder and the compilers.
                let version = text.split(" (").next().unwrap_or_default();
                self.version = Some(version.into());
            }
        } else if let Some(call) = initcall(text) {
            self.count += 1;
            self.total = self.total.saturating_add(call.took);
            let entry = (call.took, call.name, call.returned);
            self.slowest.push(Reverse(entry));
            if self.slowest.len() > KEPT {
                self.slowest.pop();
            }
        }
    }

    /// The beginning of the first line: which kernel it is.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The phases of a Guest whose first instruction was at `entry`, whose command has started at `command` if it did,
    /// and which has ended at `end`.
    pub fn phases(&self, entry: f64, command: Option<f64>, end: f64) -> Vec<Phase> {
        let mut begins = Vec::new();
        let mut last = entry;
        for (mark, when) in &self.marks {
            let at = match (when.stamp, self.offset) {
                (Some(stamp), Some(offset)) => (stamp + offset).min(when.heard),
                _ => when.heard,
            };
            last = at.clamp(last, end.max(last));
            begins.push((mark.name(self.levels), last));
        }
        if let Some(command) = command {
            let place = begins.partition_point(|(_, at)| *at <= command);
            begins.insert(place, ("command".into(), command));
        }
        let Some((_, first)) = begins.first().cloned() else {
            return Vec::new();
        };
        let ends: Vec<_> = begins.iter().skip(1).map(|(_, at)| *at).collect();
        let ends = ends.into_iter().chain([end]);
        let phases = begins.into_iter().zip(ends);
        let phases = phases.map(|((name, from), to)| Phase { name, from, to });
        let before = Phase {
            name: "before the log".into(),
            from: entry,
            to: first,
        };
        let mut all = vec![before];
        all.extend(phases);
        all
    }

    /// Its initcalls.
    pub fn initcalls(&self) -> Initcalls {
        let sorted = self.slowest.clone().into_sorted_vec().into_iter();
        let slowest = sorted.map(|Reverse((took, name, returned))| Initcall {
            name,
            took,
            returned,
        });
        Initcalls {
            count: self.count,
            total: self.total,
            slowest: slowest.collect(),
        }
    }
}

/// The stamp of a line, such as `[    0.123456]`, and the text behind it and behind `[    T1]`, by which a kernel says
/// who has written it.
fn stamp(line: &str) -> (Option<f64>, &str) {
    let bracket = |text: &str| {
        let (inside, rest) = text.strip_prefix('[')?.split_once(']')?;
        Some((inside.trim().to_owned(), rest.len()))
    };
    let Some((stamp, rest)) = bracket(line) else {
        return (None, line);
    };
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let stamp = match stamp.chars().all(is_number) && stamp.len() < 24 {
        true => stamp.parse().ok(),
        false => None,
    };
    if stamp.is_none() {
        return (None, line);
    }
    let text = &line[line.len() - rest..];
    let text = match bracket(text) {
        Some((caller, rest)) if caller.starts_with(['T', 'C']) => &text[text.len() - rest..],
        _ => text,
    };
    (stamp, text.strip_prefix(' ').unwrap_or(text))
}

/// `initcall NAME+0x0/0x1c0 [MODULE] returned 0 after 123 usecs`.
fn initcall(text: &str) -> Option<Initcall> {
    let (name, rest) = text.strip_prefix("initcall ")?.split_once(" returned ")?;
    let (returned, rest) = rest.split_once(" after ")?;
    let took = rest.strip_suffix(" usecs")?.trim();
    let plain = name.split_once("+0x").map_or(name, |(plain, _)| plain);
    let module = name.rsplit_once(' ').map_or("", |(_, module)| module);
    let name = [plain, module].join(" ");
    Some(Initcall {
        name: name.trim().chars().take(NAME_MAX).collect(),
        took: took.parse().ok()?,
        returned: returned.parse().ok()?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    /// A log as lg hears of it: milliseconds, and the line.
    pub(crate) const LOG: [(u64, &str); 13] = [
        (
            90,
            "[    0.000000] Linux version 7.3.4 (me@here) #2 PREEMPT",
        ),
        (90, "[    0.000000] Command line: console=lguest0"),
        (
            100,
            "[    0.010000][    T0] calling  early_one+0x0/0x10 @ 1",
        ),
        (
            102,
            "[    0.011000][    T1] initcall early_one+0x0/0x10 returned 0 after 900 usecs",
        ),
        (110, "[    0.020000] entering initcall level: core"),
        (
            120,
            "[    0.024000] initcall core_one+0x0/0x20 returned 0 after 4000 usecs",
        ),
        (
            121,
            "[    0.025000] initcall virtio_init+0x0/0x30 [virtio] returned -19 after 12 usecs",
        ),
        (130, "[    0.040000] entering initcall level: late"),
        (
            140,
            "[    0.050000] Freeing unused kernel image (initmem) memory: 100K",
        ),
        (150, "[    0.060000] Run /init as init process"),
        (150, "[    0.060000] entering initcall level: early"),
        (300, "[    0.200000] init: it goes on"),
        (900, "[    0.800000] reboot: Power down"),
    ];

    pub(crate) fn reader(log: &[(u64, &str)], began: Instant) -> Reader {
        let mut reader = Reader::new(began);
        for (at, line) in log {
            let now = began + Duration::from_millis(*at);
            reader.read(format!("{line}\r\n").as_bytes(), now);
        }
        reader
    }

    #[test]
    fn phases_follow_the_log() {
        let reader = reader(&LOG, Instant::now());
        let phases = reader.phases(0.05, Some(0.25), 1.0);
        let all: Vec<_> = phases
            .iter()
            .map(|phase| (phase.name.as_str(), (phase.from * 1e4).round() / 10.0))
            .collect();
        // The line that took least time was 90 ms ahead of the stamp.
        let expected = [
            ("before the log", 50.0),
            ("kernel, before initcalls", 90.0),
            ("initcalls: early", 100.0),
            ("initcalls: core", 110.0),
            ("initcalls: late", 130.0),
            ("kernel, memory of the boot freed", 140.0),
            ("init", 150.0),
            ("command", 250.0),
            ("power-off", 890.0),
        ];
        assert_eq!(all, expected);
        for pair in phases.windows(2) {
            assert_eq!(pair[0].to, pair[1].from);
        }
        assert_eq!(phases.last().unwrap().to, 1.0);
        assert_eq!(reader.version(), Some("Linux version 7.3.4"));
    }

    #[test]
    fn initcalls_are_counted_and_the_slowest_come_first() {
        let initcalls = reader(&LOG, Instant::now()).initcalls();
        assert_eq!((initcalls.count, initcalls.total), (3, 4912));
        let first = &initcalls.slowest[0];
        assert_eq!((first.name.as_str(), first.took), ("core_one", 4000));
        let last = initcalls.slowest.last().unwrap();
        assert_eq!(
            (last.name.as_str(), last.returned),
            ("virtio_init [virtio]", -19)
        );
    }

    #[test]
    fn a_kernel_that_says_less_has_fewer_phases() {
        let began = Instant::now();
        let old = [
            (10, "[    0.000000] Linux version 6.12"),
            (20, "[    0.1] calling  one+0x0/0x10 @ 1"),
            (20, "[    0.1] calling  two+0x0/0x10 @ 1"),
            (30, "[    0.2] Run /init as init process"),
        ];
        let phases = reader(&old, began).phases(0.0, None, 1.0);
        let names: Vec<_> = phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "before the log",
                "kernel, before initcalls",
                "initcalls",
                "init"
            ]
        );
        assert!(reader(&[], began).phases(0.0, None, 1.0).is_empty());
    }

    #[test]
    fn a_guest_that_lies_costs_nothing() {
        let began = Instant::now();
        let mut reader = Reader::new(began);
        let long = "x".repeat(10 << 20);
        reader.read(long.as_bytes(), began);
        assert!(reader.line.len() <= LINE_MAX);
        reader.read(b"\n", began);
        for number in 0..10 * KEPT as u64 {
            let name = "n".repeat(300);
            let line = format!(
                "initcall {name}{number} returned 0 after {} usecs\n",
                u64::MAX - 1
            );
            reader.read(line.as_bytes(), began);
            reader.read(b"[99999999.9] Run /init\n[0.1] Linux version\n", began);
        }
        let initcalls = reader.initcalls();
        assert_eq!(initcalls.slowest.len(), KEPT);
        assert!(initcalls
            .slowest
            .iter()
            .all(|call| call.name.len() <= NAME_MAX));
        assert_eq!(initcalls.total, u64::MAX);
        let phases = reader.phases(0.0, Some(f64::MAX), 1.0);
        assert!(phases.len() < 20, "{phases:?}");
        assert!(phases.iter().all(|phase| phase.length().is_finite()));
        for bad in [
            "[",
            "[]",
            "[1.2.3]",
            "[0.1",
            "[ ]x",
            "[0.1][",
            "initcall  returned  after  usecs",
        ] {
            reader.read(format!("{bad}\n").as_bytes(), began);
        }
    }
}
