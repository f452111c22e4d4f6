// SPDX-License-Identifier: GPL-2.0
//! A trace in the JSON trace event format, which ui.perfetto.dev opens (and chrome://tracing): each vCPU is a process, the
//! Guest, lg.ko and the Launcher are its tracks, and what one of them does in one go is a slice.
//!
//! The format: "Trace Event Format" of the Chromium project. Times are in microseconds.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{json, Value};

use crate::trace::event::Event;
use crate::trace::file::Trace;
use crate::trace::symbols::Symbols;
use crate::trace::text;

/// The tracks of vCPU 0: their numbers and names. Another's follow, three for each.
const GUEST: (u32, &str) = (1, "guest");
const MODULE: (u32, &str) = (2, "lg.ko");
const LAUNCHER: (u32, &str) = (3, "lg");
const TRACKS: u32 = 3;
/// The process of vCPU 0; those of others follow. Perfetto would take a track of the same number for its main thread.
const PROCESS: u32 = 1000;
const _: () = assert!((u8::MAX as u32 + 1) * TRACKS < PROCESS);

/// The process and the track of `event`.
fn place(event: &Event, (track, _): (u32, &str)) -> (u32, u32) {
    let vcpu = u32::from(event.vcpu);
    (PROCESS + vcpu, track + TRACKS * vcpu)
}

/// Writes `trace` to `out`.
///
/// # Errors
///
/// `out` takes no more.
pub fn write(trace: &Trace, symbols: &Symbols, out: &mut impl Write) -> io::Result<()> {
    let name = |what: &str, (process, track): (u32, u32), name: &str| json!({"ph": "M", "name": what, "pid": process, "tid": track, "args": {"name": name}});
    out.write_all(b"{\"displayTimeUnit\": \"ns\", \"traceEvents\": [\n")?;
    let mut separator = "";
    // Of each vCPU that was there so far, how its last record has ended.
    let mut exits = BTreeMap::new();
    for event in &trace.events {
        if !exits.contains_key(&event.vcpu) {
            let (process, _) = place(event, GUEST);
            let title = format!("vCPU {}", event.vcpu);
            let line = name("process_name", (process, 0), &title);
            write!(out, "{separator}{line}")?;
            separator = ",\n";
            for track in [GUEST, MODULE, LAUNCHER] {
                let line = name("thread_name", place(event, track), track.1);
                write!(out, "{separator}{line}")?;
            }
        }
        let exit = exits.insert(event.vcpu, event.exit()).flatten();
        let kind = event.kind_after(exit);
        for slice in slices(trace, event, &kind, symbols).into_iter().flatten() {
            write!(out, "{separator}{slice}")?;
        }
    }
    out.write_all(b"\n]}\n")
}

/// The slices of a record of this kind: in the Guest, if it was in, and outside.
fn slices(trace: &Trace, event: &Event, kind: &str, symbols: &Symbols) -> [Option<Value>; 2] {
    let slice = |track: (u32, &str), name: String, from: u64, to: u64, args: Value| {
        let (process, track) = place(event, track);
        json!({
            "ph": "X", "cat": "lg", "name": name, "pid": process, "tid": track,
            "ts": trace.microseconds(from), "dur": trace.duration(to - from), "args": args,
        })
    };
    let mode = if event.user_mode {
        "user mode"
    } else {
        "kernel mode"
    };
    let inside = event.is_entry().then(|| {
        let args = json!({
            "direct system calls": event.direct_syscalls, "direct returns": event.direct_erets,
            "root": format!("{:#x}", event.root),
        });
        slice(GUEST, mode.into(), event.entered, event.left, args)
    });
    let line = text::line(trace, event, symbols);
    let args = match event.is_entry() {
        true => json!({
            "record": event.number, "rip": symbols.name(event.rip), "line": line.trim_end(),
        }),
        false => json!({"record": event.number}),
    };
    let track = if event.is_entry() { MODULE } else { LAUNCHER };
    let outside = slice(track, kind.into(), event.left, event.done, args);
    [inside, Some(outside)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::file::tests::small;

    /// What a viewer relies on, whatever the trace.
    pub(crate) fn check(text: &[u8]) -> Vec<Value> {
        let all: Value = serde_json::from_slice(text).unwrap();
        let events = all["traceEvents"].as_array().unwrap().clone();
        let mut ends = BTreeMap::<_, f64>::new();
        for event in &events {
            let track = event["tid"].as_u64().unwrap();
            assert!(
                event["pid"].is_u64() && event["name"].is_string(),
                "{event}"
            );
            if event["ph"] == "M" {
                assert!(event["args"]["name"].is_string(), "{event}");
                continue;
            }
            assert_eq!(event["ph"], "X");
            let (from, length) = (
                event["ts"].as_f64().unwrap(),
                event["dur"].as_f64().unwrap(),
            );
            // On one track, nothing overlaps: slices would nest.
            let end = ends.entry(track).or_default();
            assert!(from + 1e-6 >= *end && length >= 0.0, "{event}");
            *end = from + length;
        }
        events
    }

    #[test]
    fn slices_are_on_their_tracks() {
        let trace = Trace::parse(&small()).unwrap();
        let mut text = Vec::new();
        write(&trace, &Symbols::default(), &mut text).unwrap();
        let events = check(&text);
        // Names of a process and three threads; two records with two slices each.
        assert_eq!(events.len(), 4 + 4);
        let fault = &events[5];
        assert_eq!(fault["name"], "page fault, filled");
        assert_eq!(
            (fault["tid"].as_u64(), fault["ts"].as_f64()),
            (Some(2), Some(0.5))
        );
        assert_eq!(fault["dur"], 3.0);
        assert_eq!(events[4]["name"], "kernel mode");
    }
}
