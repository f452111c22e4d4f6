// SPDX-License-Identifier: GPL-2.0
//! The log of the Guest's kernel: kept, and shown when something fails, or at once to who asks.
//!
//! It comes by hypercall, a line at a time, from the first message to the last. What the command or
//! the shell in the Guest prints comes by the console and is never mixed with it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::terminal::{lines_for_terminal, printable};
use crate::virtio::bytes::Output;

/// How much is kept, in bytes: the last of it.
const KEPT: usize = 256 << 10;
/// How many lines are shown when something fails.
const SHOWN: usize = 100;

/// The log.
#[derive(Clone, Default)]
pub struct KernelLog(Arc<Mutex<VecDeque<u8>>>);

impl KernelLog {
    /// Takes what the kernel prints. `live`: and shows it on standard error.
    pub fn output(&self, live: bool) -> Output {
        let log = self.clone();
        Box::new(move |text| {
            log.keep(text);
            if live {
                // Who closes standard error wants no log.
                let _ = io::stderr().write_all(&lines_for_terminal(text));
            }
        })
    }

    fn keep(&self, text: &[u8]) {
        let mut kept = self.kept();
        kept.extend(text);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// The last lines, as they can be printed.
    pub fn tail(&self) -> String {
        let text = printable(&self.kept().iter().copied().collect::<Vec<_>>());
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(SHOWN)..];
        tail.iter().flat_map(|line| ["    ", line, "\n"]).collect()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_is_kept() {
        let log = KernelLog::default();
        let mut output = log.output(false);
        for line in 0..100_000 {
            output(format!("line {line}\n").as_bytes());
        }
        let tail = log.tail();
        assert_eq!(tail.lines().count(), SHOWN);
        assert!(tail.starts_with("    line 99900\n"), "{tail}");
        assert!(tail.ends_with("    line 99999\n"), "{tail}");
        assert!(log.kept().len() <= KEPT);
    }

    #[test]
    fn a_guest_cannot_command_the_terminal() {
        let log = KernelLog::default();
        log.output(false)(b"\x1b]0;title\x07done\n");
        assert!(!log.tail().contains(['\x1b', '\x07']));
    }
}
