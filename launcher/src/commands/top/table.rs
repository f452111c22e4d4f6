// SPDX-License-Identifier: GPL-2.0
//! The table of `lg top`: a line for each Guest.

use std::fmt::Write;

use crate::commands::top::look::Seen;

/// The columns of numbers, and how wide each is.
const HEAD: [(&str, usize); 11] = [
    ("PID", 7),
    ("AGE", 7),
    ("CPU%", 6),
    ("MEM", 6),
    ("RSS", 6),
    ("EXITS/s", 9),
    ("FAULTS/s", 9),
    ("HCALLS/s", 9),
    ("IRQS/s", 8),
    ("HALTS/s", 8),
    ("SYSCALLS/s", 11),
];

/// The Guests `now`, with rates since `before`, or since each began. Lines are no longer than `columns`.
pub(super) fn table(now: &[Seen], before: &[Seen], columns: usize) -> Vec<String> {
    let mut head = String::new();
    for (name, width) in HEAD {
        let _ = write!(head, "{name:>width$}");
    }
    head += "  KERNEL, COMMAND";
    let mut lines = vec![head];
    for seen in now {
        let earlier = before.iter().find(|other| other.pid == seen.pid);
        lines.push(line(seen, earlier));
    }
    if now.is_empty() {
        lines.push("no guest of yours is running".into());
    }
    let cut = |line: String| line.chars().take(columns).collect();
    lines.into_iter().map(cut).collect()
}

fn line(seen: &Seen, before: Option<&Seen>) -> String {
    let resident = seen.resident.map_or("-".into(), size);
    let Some(guest) = &seen.guest else {
        let why = match seen.stopped {
            true => "is stopped",
            false => "does not answer",
        };
        return format!(
            "{:>7}{:>7}{:>6}{:>6}{resident:>6}  {why}",
            seen.pid, "-", "-", "-"
        );
    };
    let then = before.and_then(|before| before.guest.as_ref());
    // One of before lg's process had that number is none.
    let then = then.filter(|then| then.age < guest.age);
    let before = before.filter(|_| then.is_some());
    let time = guest.age - then.map_or(0.0, |then| then.age);
    let per_second = |count: f64| match count / time {
        rate if rate.is_finite() => format!("{:.0}", rate.max(0.0)),
        _ => "-".into(),
    };
    let rate = |what: fn(&Seen) -> Option<u64>| {
        let old = before.map_or(Some(0), what);
        let change = what(seen)
            .zip(old)
            .map(|(new, old)| new as f64 - old as f64);
        change.map_or("-".into(), per_second)
    };
    let cpu = guest.cpu - then.map_or(0.0, |then| then.cpu);
    let cells = [
        seen.pid.to_string(),
        age(guest.age),
        per_second(100.0 * cpu),
        size(guest.memory),
        resident,
        rate(|seen| count(seen, "entries")),
        rate(|seen| count(seen, "page_faults")),
        rate(hypercalls),
        rate(|seen| count(seen, "interrupts")),
        rate(|seen| count(seen, "halts")),
        rate(|seen| count(seen, "direct_syscalls")),
    ];
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(HEAD) {
        let _ = write!(line, "{cell:>width$}");
    }
    let kernel = guest.kernel.path.file_name().unwrap_or_default();
    line + &format!("  {} {}", kernel.to_string_lossy(), guest.command)
}

fn count(seen: &Seen, name: &str) -> Option<u64> {
    seen.counters.as_ref()?.get(name).copied()
}

/// Those that were exits.
fn hypercalls(seen: &Seen) -> Option<u64> {
    let counters = seen.counters.as_ref()?.iter();
    let all = counters.filter(|(name, _)| name.starts_with("hypercall "));
    let all = all.fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
    Some(all.saturating_sub(count(seen, "direct_erets")?))
}

/// Bytes, in a few characters.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mebi if mebi < 10_000 => format!("{mebi}M"),
        mebi => format!("{}G", mebi >> 10),
    }
}

/// Seconds, in a few characters.
fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        3600..360_000 => format!("{}h{:02}", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::view::{Guest, Kernel};

    fn guest(age: f64, entries: u64) -> Seen {
        let counters = [
            ("entries", entries),
            ("direct_erets", 50),
            ("hypercall eret", 60),
            ("hypercall halt", 5),
        ];
        let counters = counters.map(|(name, count)| (name.to_string(), count));
        Seen {
            pid: 1234,
            stopped: false,
            resident: Some(100 << 20),
            guest: Some(Guest {
                kernel: Kernel {
                    path: "/usr/lib/lg/vmlinux".into(),
                    build_id: None,
                },
                command: "make check".into(),
                memory: 512 << 20,
                age,
                cpu: age / 2.0,
            }),
            counters: Some(counters.into()),
        }
    }

    fn cells(now: &Seen, before: &[Seen]) -> Vec<String> {
        let lines = table(&[now.clone()], before, 200);
        lines[1].split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn rates_are_since_the_time_before() {
        let row = cells(&guest(10.0, 1000), &[]);
        let expected = [
            "1234", "0:10", "50", "512M", "100M", "100", "-", "2", "-", "-", "-",
        ];
        assert_eq!(row[..11], expected);
        assert_eq!(row[11..], ["vmlinux", "make", "check"]);
        let row = cells(&guest(12.0, 1600), &[guest(10.0, 1000)]);
        assert_eq!(
            (row[2].as_str(), row[5].as_str(), row[7].as_str()),
            ("50", "300", "0")
        );
        // Without its counters the time before, there is nothing to compare with.
        let untold = Seen {
            counters: None,
            ..guest(10.0, 1000)
        };
        assert_eq!(cells(&guest(12.0, 1600), &[untold])[5], "-");
        // Another one with the same number.
        assert_eq!(cells(&guest(10.0, 1000), &[guest(20.0, 1)])[5], "100");
    }

    #[test]
    fn every_line_fits() {
        let silent = Seen {
            guest: None,
            counters: None,
            ..guest(1.0, 1)
        };
        let stopped = Seen {
            stopped: true,
            ..silent.clone()
        };
        let all = [guest(1e9, u64::MAX), silent, stopped, guest(0.0, 0)];
        let lines = table(&all, &[], 80);
        assert!(
            lines.iter().all(|line| line.chars().count() <= 80),
            "{lines:?}"
        );
        assert!(lines[2].contains("does not answer") && lines[3].contains("is stopped"));
        assert_eq!(table(&[], &[], 80)[1], "no guest of yours is running");
        assert_eq!([age(59.9), age(7260.0), age(1e6)], ["0:59", "2h01", "11d"]);
    }
}
