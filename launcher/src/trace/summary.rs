// SPDX-License-Identifier: GPL-2.0
//! What each kind of exit costs, and the counters of `--stats` as the records have them.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use lguest_abi::*;
use serde::Serialize;

use crate::report::stats;
use crate::trace::event::{Event, Reason};
use crate::trace::file::Trace;

/// One kind of exit, in microseconds outside of the Guest.
#[derive(Debug, PartialEq, Serialize)]
#[allow(missing_docs)] // the names say it
pub struct Row {
    pub kind: String,
    pub count: u64,
    pub median: f64,
    pub p99: f64,
    pub total: f64,
    /// Of the time of the whole trace.
    pub share: f64,
}

/// A whole trace.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The kinds, those first that take most time.
    pub kinds: Vec<Row>,
    /// Microseconds from the first record to the last; of several vCPUs, together.
    pub total: f64,
    /// Microseconds in the Guest.
    pub guest: f64,
    /// Microseconds in which records were written.
    pub recording: f64,
    /// The counters that the records account for, by their names.
    pub counters: BTreeMap<String, u64>,
    /// Records that are not in the file, between those that are.
    pub missing: u64,
}

impl Summary {
    /// Sums up.
    pub fn of(trace: &Trace) -> Self {
        let mut vcpus = BTreeMap::<u8, Vec<&Event>>::new();
        for event in &trace.events {
            vcpus.entry(event.vcpu).or_default().push(event);
        }
        let (mut total, mut inside, mut gaps, mut missing) = (0, 0, 0, 0);
        let mut kinds = BTreeMap::<String, Vec<u64>>::new();
        for events in vcpus.values() {
            if let (Some(first), Some(last)) = (events.first(), events.last()) {
                total += last.done - first.entered;
            }
            let mut exit = None;
            for event in events {
                let (guest, host) = event.ticks();
                inside += guest;
                kinds.entry(event.kind_after(exit)).or_default().push(host);
                exit = event.exit();
            }
            for pair in events.windows(2) {
                gaps += pair[1].entered - pair[0].done;
                missing += pair[1].number - pair[0].number - 1;
            }
        }
        let total = trace.duration(total);
        let rows = kinds.into_iter();
        let mut kinds: Vec<_> = rows
            .map(|(kind, ticks)| row(trace, kind, ticks, total))
            .collect();
        kinds.sort_by(|one, other| other.total.total_cmp(&one.total));
        Self {
            kinds,
            total,
            guest: trace.duration(inside),
            recording: trace.duration(gaps),
            counters: counters(&trace.events),
            missing,
        }
    }
}

fn row(trace: &Trace, kind: String, mut ticks: Vec<u64>, whole: f64) -> Row {
    ticks.sort_unstable();
    let at = |share: f64| ticks[((ticks.len() - 1) as f64 * share).round() as usize];
    let total = trace.duration(ticks.iter().sum());
    Row {
        kind,
        count: ticks.len() as u64,
        median: trace.duration(at(0.5)),
        p99: trace.duration(at(0.99)),
        total,
        share: if whole > 0.0 { total / whole } else { 0.0 },
    }
}

/// The counters of `--stats` that are of exits, and of what came of them.
fn counters(events: &[Event]) -> BTreeMap<String, u64> {
    let mut stats = lguest_stats::default();
    events.iter().for_each(|event| count(&mut stats, event));
    of_exits(&stats)
}

/// Adds what `event` is and what came of it to the counters.
pub fn count(stats: &mut lguest_stats, event: &Event) {
    stats.entries += u64::from(event.is_entry());
    match event.reason {
        Reason::Interrupt => stats.interrupts += 1,
        Reason::Interrupted | Reason::Nmi | Reason::MachineCheck => stats.nmis += 1,
        Reason::PageFault => stats.page_faults += 1,
        _ => {}
    }
    let count = |what, counter: &mut u64| *counter += u64::from(event.did(what));
    count(LGUEST_TRACE_FILLED, &mut stats.pf_filled);
    count(LGUEST_TRACE_SPURIOUS, &mut stats.pf_spurious);
    count(LGUEST_TRACE_INJECTED, &mut stats.pf_injected);
    count(LGUEST_TRACE_MMIO, &mut stats.pf_mmio);
    count(LGUEST_TRACE_GAVE_EXCEPTION, &mut stats.exceptions);
    count(LGUEST_TRACE_GAVE_INTERRUPT, &mut stats.irqs);
    count(LGUEST_TRACE_EMULATED, &mut stats.emulated);
    count(LGUEST_TRACE_HALTED, &mut stats.halts);
    stats.pf_spurious += u64::from(event.spurious);
    // There are no direct_faults where there is a record.
    stats.direct_syscalls += u64::from(event.direct_syscalls);
    stats.direct_erets += u64::from(event.direct_erets);
    stats.hypercalls[LHCALL_ERET as usize] += u64::from(event.direct_erets);
    let number = event.hypercall().map(usize::try_from);
    if let Some(counter) = number.and_then(|n| stats.hypercalls.get_mut(n.ok()?)) {
        *counter += 1;
    }
}

/// Those counters, by their names, of all.
pub fn of_exits(stats: &lguest_stats) -> BTreeMap<String, u64> {
    let known = |name: &str| NOT_OF_EXITS.iter().all(|other| *other != name);
    let all = stats::counters(stats).into_iter();
    all.filter(|(name, _)| known(name)).collect()
}

/// The counters that are not of exits.
const NOT_OF_EXITS: [&str; 8] = [
    "prefilled",
    "sections",
    "msr_writes",
    "cr3_loads",
    "tlb_flushes",
    "shadow_pages",
    "shadow_recycled",
    "known_pages",
];

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<40} {:>9} {:>11} {:>11} {:>13} {:>6}",
            "kind", "count", "median us", "p99 us", "total us", "share"
        )?;
        let guest = [
            ("the guest itself", self.guest),
            ("writing this record", self.recording),
        ];
        for row in &self.kinds {
            writeln!(
                f,
                "{:<40} {:>9} {:>11.3} {:>11.3} {:>13.1} {:>5.1}%",
                row.kind,
                row.count,
                row.median,
                row.p99,
                row.total,
                100.0 * row.share
            )?;
        }
        for (name, time) in guest {
            let share = if self.total > 0.0 {
                time / self.total
            } else {
                0.0
            };
            writeln!(f, "{name:<40} {:>47.1} {:>5.1}%", time, 100.0 * share)?;
        }
        writeln!(f, "{:<40} {:>47.1}", "all", self.total)?;
        if self.missing != 0 {
            writeln!(
                f,
                "{} records are missing: there was no room for them",
                self.missing
            )?;
        }
        writeln!(f)?;
        for (name, value) in &self.counters {
            writeln!(f, "{name:<24} {value:>12}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::event::tests::{bytes, console, fault};
    use crate::trace::file::tests::small;

    #[test]
    fn all_time_is_somebodys() {
        let mut file = small();
        // What lg did about the console.
        file.extend(bytes(&lguest_trace_record {
            number: 10,
            entered: 7100,
            left: 7100,
            done: 9100,
            ..Default::default()
        }));
        file.extend(bytes(&lguest_trace_record {
            number: 11,
            entered: 9100,
            left: 9200,
            done: 9300,
            ..fault()
        }));
        let summary = Summary::of(&Trace::parse(&file).unwrap());
        let find = |kind: &str| summary.kinds.iter().find(|row| row.kind == kind).unwrap();
        let faults = find("page fault, filled");
        assert_eq!((faults.count, faults.median, faults.total), (2, 3.0, 3.1));
        assert_eq!(find("hypercall console").total, 1.0);
        assert_eq!(find("in lg: console").total, 2.0);
        assert_eq!(summary.total, 8.3);
        assert_eq!(summary.missing, 1);
        let spent: f64 = summary.kinds.iter().map(|row| row.total).sum();
        let all = spent + summary.guest + summary.recording;
        assert!((all - summary.total).abs() < 1e-9, "{summary}");
        let text = summary.to_string();
        assert!(text.contains("1 records are missing"), "{text}");
    }

    #[test]
    fn counters_are_those_of_the_records() {
        let summary = Summary::of(&Trace::parse(&small()).unwrap());
        for (name, value) in [
            ("entries", 2),
            ("page_faults", 1),
            ("pf_filled", 1),
            ("pf_spurious", 1),
            ("direct_syscalls", 3),
            ("direct_erets", 2),
            ("hypercall eret", 2),
            ("hypercall console", 1),
            ("halts", 0),
        ] {
            assert_eq!(summary.counters[name], value, "{name}");
        }
        let all = stats::counters(&lguest_stats::default());
        assert_eq!(summary.counters.len() + NOT_OF_EXITS.len(), all.len());
        assert!(console().exit != 0);
    }

    #[test]
    fn nothing_is_nothing() {
        let summary = Summary::of(&Trace::parse(&small()[..64]).unwrap());
        assert!(
            summary.kinds.is_empty() && summary.total == 0.0,
            "{summary}"
        );
    }
}
