// SPDX-License-Identifier: GPL-2.0
//! What the vCPUs did, over time, out of their records as they come. However long that is, it takes some ten KiB: there are so
//! many bins, each of which holds twice the time when a run has become too long for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lguest_abi::{lguest_stats, LHCALL_HALT};

use crate::boot_report::data::{self, Kind, EXITS, PARTS, REGIONS};
use crate::trace::event::{self, Event, Reason};
use crate::trace::summary;

/// There are never more bins.
const BINS: usize = 160;
/// A bin is at first this much of a second.
const FIRST_WIDTH: u64 = 4096;

/// What is in one of them.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    counts: [u32; EXITS],
    /// Ticks.
    time: [u64; PARTS.len()],
    fills: [u32; REGIONS.len()],
}

impl Bin {
    fn add(&mut self, other: &Self) {
        let add = |mine: &mut [u32], theirs: &[u32]| {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine = mine.saturating_add(*theirs);
            }
        };
        add(&mut self.counts, &other.counts);
        add(&mut self.fills, &other.fills);
        for (mine, theirs) in self.time.iter_mut().zip(other.time) {
            *mine += theirs;
        }
    }
}

/// The bins. Ticks are from the beginning of the record.
#[derive(Debug)]
struct Bins {
    width: u64,
    bins: Vec<Bin>,
}

impl Bins {
    /// The one of this moment.
    fn at(&mut self, ticks: u64) -> &mut Bin {
        while ticks / self.width >= BINS as u64 {
            self.double();
        }
        let index = (ticks / self.width) as usize;
        if index >= self.bins.len() {
            self.bins.resize(index + 1, Bin::default());
        }
        &mut self.bins[index]
    }

    fn double(&mut self) {
        self.width *= 2;
        let pairs = self.bins.chunks(2);
        let pairs = pairs.map(|pair| {
            let mut both = pair[0];
            pair[1..].iter().for_each(|bin| both.add(bin));
            both
        });
        self.bins = pairs.collect();
    }

    /// The time from one moment to another is of `part`.
    fn spend(&mut self, part: usize, from: u64, to: u64) {
        // Then no bin's width changes on the way.
        self.at(to);
        let mut from = from;
        while from < to {
            let end = ((from / self.width + 1) * self.width).min(to);
            self.at(from).time[part] += end - from;
            from = end;
        }
    }
}

/// What there is of the record.
#[derive(Debug)]
struct Collected {
    /// When it begins, from lg's start, and what the time stamp counter counts in a millisecond.
    began: f64,
    khz: u64,
    /// The counter at the first and at the last moment of it.
    first: Option<u64>,
    last: u64,
    /// Of each vCPU, its last moment, and the exit that it left by.
    vcpus: BTreeMap<u8, (u64, Option<&'static str>)>,
    bins: Bins,
    /// Count, ticks outside of the Guest, and the most of them at once.
    kinds: BTreeMap<String, (u64, u64, u64)>,
    stats: lguest_stats,
    guest: u64,
    recording: u64,
    lost: u64,
}

/// The record of all vCPUs, as it comes. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Exits {
    began: Instant,
    collected: Arc<Mutex<Option<Collected>>>,
}

impl Exits {
    /// There is none yet. Times are from `began`.
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            collected: Arc::default(),
        }
    }

    fn collected(&self) -> MutexGuard<'_, Option<Collected>> {
        let collected = self.collected.lock();
        collected.unwrap_or_else(PoisonError::into_inner)
    }

    /// It begins now. The time stamp counter has this frequency.
    pub fn begin(&self, tsc_khz: u32) {
        let khz = u64::from(tsc_khz.max(1));
        *self.collected() = Some(Collected {
            began: self.began.elapsed().as_secs_f64(),
            khz,
            first: None,
            last: 0,
            vcpus: BTreeMap::new(),
            bins: Bins {
                width: (khz * 1000 / FIRST_WIDTH).max(1),
                bins: Vec::new(),
            },
            kinds: BTreeMap::new(),
            stats: lguest_stats::default(),
            guest: 0,
            recording: 0,
            lost: 0,
        });
    }

    /// These are the next records of a vCPU, as a file has them.
    pub fn take(&self, bytes: &[u8]) {
        if let Some(collected) = &mut *self.collected() {
            for record in bytes.chunks_exact(event::SIZE) {
                match Event::parse(record.try_into().expect("of that size")) {
                    Ok(event) => collected.take(&event),
                    Err(_) => collected.lost += 1,
                }
            }
        }
    }

    /// So many records were lost.
    pub fn lost(&self, count: u64) {
        if let Some(collected) = &mut *self.collected() {
            collected.lost += count;
        }
    }

    /// All of it so far.
    pub fn data(&self) -> Option<data::Exits> {
        self.collected().as_ref().map(Collected::data)
    }
}

impl Collected {
    fn take(&mut self, event: &Event) {
        let first = *self.first.get_or_insert(event.entered);
        let before = self.vcpus.get(&event.vcpu).copied();
        let (last, exit) = before.unwrap_or((event.entered, None));
        let [last, entered, left, done] =
            [last, event.entered, event.left, event.done].map(|ticks| ticks.saturating_sub(first));
        let (part, outside) = (part(event), done - left);
        self.bins.spend(PARTS.len() - 1, last, entered);
        self.bins.spend(0, entered, left);
        self.bins.spend(part, left, done);
        self.recording += entered.saturating_sub(last);
        self.guest += left - entered;
        self.last = self.last.max(event.done);
        self.vcpus.insert(event.vcpu, (event.done, event.exit()));
        let bin = self.bins.at(left);
        if event.is_entry() {
            bin.counts[part - 1] += 1;
        }
        if event.did(lguest_abi::LGUEST_TRACE_FILLED) {
            bin.fills[region(event.address)] += 1;
        }
        summary::count(&mut self.stats, event);
        let kind = self.kinds.entry(event.kind_after(exit)).or_default();
        *kind = (kind.0 + 1, kind.1 + outside, kind.2.max(outside));
    }

    fn data(&self) -> data::Exits {
        let seconds = |ticks: u64| ticks as f64 / (self.khz as f64 * 1000.0);
        let kinds = self.kinds.iter().map(|(name, kind)| Kind {
            name: name.clone(),
            count: kind.0,
            total: seconds(kind.1),
            longest: seconds(kind.2),
        });
        let mut kinds: Vec<_> = kinds.collect();
        kinds.sort_by(|one, other| other.total.total_cmp(&one.total));
        let bins = &self.bins.bins;
        let vcpus = self.vcpus.len().max(1);
        data::Exits {
            vcpus,
            began: self.began,
            total: seconds(self.first.map_or(0, |first| self.last - first)),
            width: seconds(self.bins.width),
            counts: bins.iter().map(|bin| bin.counts).collect(),
            time: (bins.iter())
                .map(|bin| bin.time.map(|ticks| seconds(ticks) / vcpus as f64))
                .collect(),
            fills: bins.iter().map(|bin| bin.fills).collect(),
            kinds,
            guest: seconds(self.guest),
            recording: seconds(self.recording),
            counters: summary::of_exits(&self.stats),
            lost: self.lost,
        }
    }
}

/// Whose the time after this exit is: an index of [`PARTS`].
fn part(event: &Event) -> usize {
    use lguest_abi::{LGUEST_TRACE_FILLED, LGUEST_TRACE_INJECTED, LGUEST_TRACE_SPURIOUS};
    match event.reason {
        Reason::Launcher => 7,
        Reason::PageFault if event.did(LGUEST_TRACE_FILLED | LGUEST_TRACE_SPURIOUS) => 1,
        Reason::PageFault if event.did(LGUEST_TRACE_INJECTED) => 2,
        // A device's, above all: its own share is what lg does behind it.
        Reason::PageFault => 6,
        Reason::Hypercall if event.hypercall() == Some(LHCALL_HALT.into()) => 4,
        Reason::Hypercall => 3,
        Reason::Interrupted | Reason::Interrupt | Reason::Nmi | Reason::MachineCheck => 5,
        Reason::Syscall | Reason::Syscall32 | Reason::Int80 | Reason::Protection => 6,
        Reason::Exception | Reason::Impossible | Reason::Switcher => 6,
    }
}

/// Where this address is, by Linux's map (`linux:Documentation/arch/x86/x86_64/mm.rst`): an index of [`REGIONS`].
fn region(address: u64) -> usize {
    match address {
        0..0x0000_8000_0000_0000 => 0,
        0xffff_ffff_8000_0000.. => 1,
        0xffff_8880_0000_0000..0xffff_c880_0000_0000 => 2,
        _ => 3,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use lguest_abi::*;

    use super::*;
    use crate::trace::event::tests::{bytes, console, fault};
    use crate::trace::file::tests::small;
    use crate::trace::file::Trace;
    use crate::trace::summary::Summary;

    /// Two records, at 1 GHz.
    pub(crate) fn small_record() -> Exits {
        let exits = Exits::new(Instant::now());
        exits.begin(1_000_000);
        exits.take(&small()[64..]);
        exits
    }

    #[test]
    fn all_time_is_somebodys_and_all_exits_are_counted() {
        let mut file = small();
        file.extend(bytes(&lguest_trace_record {
            number: 9,
            entered: 7100,
            left: 7100,
            done: 50_000_000,
            ..Default::default()
        }));
        let exits = Exits::new(Instant::now());
        exits.begin(1_000_000);
        // As they come: not all at once.
        file[64..]
            .chunks(event::SIZE)
            .for_each(|record| exits.take(record));
        let data = exits.data().unwrap();
        let summary = Summary::of(&Trace::parse(&file).unwrap());
        assert_eq!(data.counters, summary.counters);
        assert!((data.total * 1e6 - summary.total).abs() < 1e-6);
        assert!((data.guest * 1e6 - summary.guest).abs() < 1e-6);
        let spent: f64 = data.time.iter().flatten().sum();
        assert!((spent - data.total).abs() < 1e-9, "{spent} {}", data.total);
        let kinds: u64 = data.kinds.iter().map(|kind| kind.count).sum();
        assert_eq!(kinds, 3);
        let counts: u32 = data.counts.iter().flatten().sum();
        assert_eq!(u64::from(counts), data.counters["entries"]);
        let fills: Vec<_> = data.fills.iter().map(|fills| fills[2]).collect();
        assert_eq!((fills[0], fills.iter().sum::<u32>()), (1, 1));
        assert_eq!(data.kinds[0].name, "in lg: console");
    }

    #[test]
    fn time_of_several_vcpus_is_on_the_average_what_has_passed() {
        let exits = Exits::new(Instant::now());
        exits.begin(1_000_000);
        let mut file = small()[..64].to_vec();
        // As rings are emptied: all of the one, then all of the other.
        for vcpu in [1, 0] {
            for number in 0..10 {
                let entered = number * 1000;
                let record = lguest_trace_record {
                    number,
                    entered,
                    left: entered + 300,
                    done: entered + 900 + u64::from(vcpu),
                    ..fault()
                };
                let mut record = bytes(&record);
                event::set_vcpu(&mut record, vcpu);
                exits.take(&record);
                file.extend(record);
            }
        }
        let data = exits.data().unwrap();
        assert_eq!(data.vcpus, 2);
        let spent: f64 = data.time.iter().flatten().sum();
        // The first of them ends a nanosecond before the other.
        assert!((spent - data.total).abs() < 1e-9, "{spent} {}", data.total);
        let summary = Summary::of(&Trace::parse(&file).unwrap());
        assert_eq!(data.counters, summary.counters);
        assert!((data.together() * 1e6 - summary.total).abs() < 2e-3);
        assert_eq!((summary.guest, summary.missing), (6.0, 0));
        assert!((data.guest * 1e6 - summary.guest).abs() < 1e-6);
        let shares: f64 = summary.kinds.iter().map(|kind| kind.share).sum();
        let others = (summary.guest + summary.recording) / summary.total;
        assert!((shares + others - 1.0).abs() < 1e-9, "{summary:?}");
    }

    #[test]
    fn a_long_run_takes_no_more_room() {
        let exits = Exits::new(Instant::now());
        exits.begin(1_000_000);
        let mut now = 0;
        for number in 0..5000 {
            let record = lguest_trace_record {
                number,
                entered: now,
                left: now + 1_000_000,
                done: now + 100_000_000,
                ..fault()
            };
            now = record.done;
            exits.take(&bytes(&record));
        }
        let data = exits.data().unwrap();
        assert!(data.counts.len() <= BINS && data.counts.len() > BINS / 2);
        assert!((data.total - 500.0).abs() < 1e-9);
        assert!(data.counts.len() as f64 * data.width >= data.total);
        let counts: u32 = data.counts.iter().flatten().sum();
        assert_eq!(counts, 5000);
        let guest: f64 = data.time.iter().map(|time| time[0]).sum();
        assert!((guest - 5.0).abs() < 1e-6);
    }

    #[test]
    fn a_record_that_makes_no_sense_is_lost() {
        let exits = small_record();
        let mut bad = bytes(&console());
        bad[16..24].fill(0);
        exits.take(&bad);
        exits.lost(2);
        assert_eq!(exits.data().unwrap().lost, 3);
        assert!(Exits::new(Instant::now()).data().is_none());
    }

    #[test]
    fn every_exit_has_a_part_of_its_own() {
        let of = |record: lguest_trace_record| part(&event::tests::event(&record));
        let halt = lguest_trace_record {
            rax: LHCALL_HALT.into(),
            ..console()
        };
        let guests = lguest_trace_record {
            did: LGUEST_TRACE_INJECTED as u16,
            ..fault()
        };
        let device = lguest_trace_record {
            did: LGUEST_TRACE_MMIO as u16,
            ..fault()
        };
        assert_eq!(
            [fault(), guests, console(), halt, device].map(of),
            [1, 2, 3, 4, 6]
        );
        for reason in 1..=LGUEST_TRACE_SWITCHER {
            let reason = reason as u16;
            let part = of(lguest_trace_record {
                reason,
                ..console()
            });
            assert!((1..=EXITS).contains(&part), "{reason}");
        }
        assert_eq!(
            [
                0x40_0000,
                0xffff_ffff_8100_0000,
                0xffff_8880_0000_1000,
                0xffff_c900_0000_0000
            ]
            .map(region),
            [0, 1, 2, 3]
        );
    }
}
