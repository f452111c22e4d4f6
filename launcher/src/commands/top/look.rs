// SPDX-License-Identifier: GPL-2.0
//! One look at all of the user's Guests: what each answers, and what the kernel says of its process.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::machine::view::Guest;
use crate::queries::client::{self, NoAnswer};
use crate::queries::Query;
use crate::report::messages::printable;

/// So many are asked at once.
const AT_ONCE: usize = 64;

/// A Guest of the user's, as it is seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Seen {
    /// lg's process.
    pub(super) pid: u32,
    /// It is stopped, as by Ctrl-Z, and so it has not been asked.
    pub(super) stopped: bool,
    /// The memory that it has, in bytes, if the kernel says so.
    pub(super) resident: Option<u64>,
    /// Nothing if it does not answer.
    pub(super) guest: Option<Guest>,
    /// Those of `--stats`, if it tells them.
    pub(super) counters: Option<BTreeMap<String, u64>>,
}

/// All of the user's Guests, by the numbers of their processes. Each has so much time for each of two questions.
pub(super) fn all(patience: Duration) -> Vec<Seen> {
    let mut all = Vec::new();
    for some in client::guests().chunks(AT_ONCE) {
        thread::scope(|scope| {
            let look = |&pid| scope.spawn(move || Seen::look(pid, patience));
            let looks: Vec<_> = some.iter().map(look).collect();
            let seen = looks.into_iter().filter_map(|look| look.join().ok()?);
            all.extend(seen);
        });
    }
    all
}

impl Seen {
    /// Nothing if it is no Guest, or none any more.
    fn look(pid: u32, patience: Duration) -> Option<Self> {
        let status = fs::read(format!("/proc/{pid}/status")).ok()?;
        let (stopped, resident) = process(&String::from_utf8_lossy(&status));
        let mut seen = Self {
            pid,
            stopped,
            resident,
            guest: None,
            counters: None,
        };
        if stopped {
            return Some(seen);
        }
        seen.guest = match answer::<Guest>(pid, &Query::Guest, patience) {
            Err(NoAnswer::NoSuch(_)) => return None,
            answer => answer.ok().map(harmless),
        };
        if seen.guest.is_some() {
            seen.counters = answer(pid, &Query::Stats, patience).ok();
        }
        Some(seen)
    }
}

fn answer<T: DeserializeOwned>(pid: u32, query: &Query, patience: Duration) -> Result<T, NoAnswer> {
    let answer = client::ask_within(pid, query, patience)?;
    serde_json::from_value(answer).map_err(|error| NoAnswer::Refused(error.to_string()))
}

/// Whether a process is stopped, and the bytes that it has in memory, by its file `status`.
fn process(status: &str) -> (bool, Option<u64>) {
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let state = field("State:").map_or("", str::trim);
    let resident = field("VmRSS:").and_then(|text| text.trim().strip_suffix(" kB"));
    let kib = resident.and_then(|text| text.parse::<u64>().ok());
    (state.starts_with(['T', 't']), kib.map(|kib| kib << 10))
}

/// The same, with nothing in its words that a terminal would obey.
fn harmless(mut guest: Guest) -> Guest {
    let clean = |text: &str| printable(text.as_bytes()).replace('\n', " ");
    guest.kernel.path = clean(&guest.kernel.path.to_string_lossy()).into();
    guest.kernel.build_id = guest.kernel.build_id.map(|id| clean(&id));
    guest.command = clean(&guest.command);
    guest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::view::Kernel;

    #[test]
    fn what_the_kernel_says_of_a_process() {
        let text = "Name:\tlg\nState:\tT (stopped)\nVmRSS:\t  2048 kB\n";
        assert_eq!(process(text), (true, Some(2 << 20)));
        assert_eq!(process("State:\tS (sleeping)\n"), (false, None));
        assert_eq!(process(""), (false, None));
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert!(matches!(process(&own), (false, Some(1..))));
    }

    #[test]
    fn any_answer_is_harmless() {
        let guest = Guest {
            kernel: Kernel {
                path: "/\u{9b}2J".into(),
                build_id: Some("\u{7}".into()),
            },
            command: "\u{1b}[2Ja\nb".into(),
            memory: 0,
            age: 0.0,
            cpu: 0.0,
        };
        let guest = harmless(guest);
        assert_eq!(guest.command, "\u{fffd}[2Ja b");
        assert_eq!(guest.kernel.path.to_str(), Some("/\u{fffd}2J"));
        assert_eq!(guest.kernel.build_id.as_deref(), Some("\u{fffd}"));
    }
}
