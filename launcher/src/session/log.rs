// SPDX-License-Identifier: GPL-2.0
//! The log of the Guest's kernel: kept, and shown when something fails, or at once to who asks.
//!
//! It comes by hypercall, a line at a time, from the first message to the last. What the command or
//! the shell in the Guest prints comes by the console and is never mixed with it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::devices::bytes::{Outlet, Output};
use crate::report::messages::printable;
use crate::session::names::{COMMAND_STARTS, LAST_STATUS};
use crate::session::terminal::lines_for;

/// The number of bytes that are kept: the last ones.
const KEPT: usize = 256 << 10;
/// The number of lines that are shown when something fails.
const SHOWN: usize = 100;

/// The log.
#[derive(Clone, Default)]
pub struct KernelLog(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    text: VecDeque<u8>,
    command_started: Option<Instant>,
}

impl KernelLog {
    /// Takes what the kernel prints, and shows it by `live`, which may be the terminal. A kernel does
    /// not wait for who reads its log: if he is too slow, there is a gap, which is told.
    pub fn output(&self, live: Option<(Arc<Outlet>, bool)>) -> Output {
        let log = self.clone();
        let mut lost = 0;
        Box::new(move |text| {
            log.keep(text);
            let Some((outlet, is_terminal)) = &live else {
                return;
            };
            let gap = match lost {
                0 => String::new(),
                _ => format!("lg: here, {lost} bytes of the log found no reader\n"),
            };
            let shown = [gap.as_bytes(), text].concat();
            match outlet.offer(&lines_for(*is_terminal, &shown)) {
                true => lost = 0,
                false => lost += text.len(),
            }
        })
    }

    fn keep(&self, text: &[u8]) {
        let mut kept = self.kept();
        if kept.command_started.is_none() && holds(text, COMMAND_STARTS.as_bytes()) {
            kept.command_started = Some(Instant::now());
        }
        kept.text.extend(text);
        let surplus = kept.text.len().saturating_sub(KEPT);
        kept.text.drain(..surplus);
    }

    /// The last lines, as they can be printed.
    pub fn tail(&self) -> String {
        let text = self.kept().text.iter().copied().collect::<Vec<_>>();
        let text = printable(&text);
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(SHOWN)..];
        tail.iter().flat_map(|line| ["    ", line, "\n"]).collect()
    }

    /// The time when our own init started the command. It is unknown if the init is another, or the
    /// log is silenced.
    pub fn command_started(&self) -> Option<Instant> {
        self.kept().command_started
    }

    /// The status, if our own init has said one at the end.
    pub fn command_status(&self) -> Option<u8> {
        let line = self.last(LAST_STATUS)?;
        line.parse().ok()
    }

    /// The reason why the kernel has panicked, if it has said one.
    pub fn panic(&self) -> Option<String> {
        self.last("Kernel panic - not syncing: ")
    }

    /// The rest of the last line that has `words`.
    fn last(&self, words: &str) -> Option<String> {
        let text = self.kept().text.iter().copied().collect::<Vec<_>>();
        let mut windows = text.windows(words.len());
        let at = windows.rposition(|window| window == words.as_bytes())?;
        let line = text[at + words.len()..]
            .split(|&byte| byte == b'\n')
            .next()?;
        Some(printable(line.trim_ascii_end()))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn holds(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_of_a_command_counts() {
        let log = KernelLog::default();
        let mut output = log.output(None);
        output(b"[    0.1] booting\n");
        assert_eq!(log.command_started(), None);
        output(b"[    0.2] init: the command starts\n");
        let when = log.command_started();
        assert!(when.is_some_and(|when| when <= Instant::now()));
        output(b"[    0.3] init: the command starts\n");
        assert_eq!(log.command_started(), when);
    }

    #[test]
    fn what_a_kernel_without_words_of_its_own_says() {
        let log = KernelLog::default();
        let mut output = log.output(None);
        output(b"[    0.1] init: the status is 7 or so\n");
        assert_eq!((log.command_status(), log.panic()), (None, None));
        for part in [
            "[    0.1] init: the stat",
            "us is 12\r",
            "\n[ 2.0] reboot\n",
        ] {
            output(part.as_bytes());
        }
        assert_eq!(log.command_status(), Some(12));
        output(b"[    0.1] init: the status is 300\n");
        assert_eq!(log.command_status(), None);
        output(b"Kernel panic - not syncing: sysrq triggered crash\nCPU: 0\n");
        assert_eq!(log.panic().unwrap(), "sysrq triggered crash");
    }

    #[test]
    fn the_last_is_kept() {
        let log = KernelLog::default();
        let mut output = log.output(None);
        for line in 0..100_000 {
            output(format!("line {line}\n").as_bytes());
        }
        let tail = log.tail();
        assert_eq!(tail.lines().count(), SHOWN);
        assert!(tail.starts_with("    line 99900\n"), "{tail}");
        assert!(tail.ends_with("    line 99999\n"), "{tail}");
        assert!(log.kept().text.len() <= KEPT);
    }

    #[test]
    fn a_log_that_nobody_reads_stops_nothing() {
        let outlet = Arc::<Outlet>::default();
        let mut output = KernelLog::default().output(Some((outlet.clone(), false)));
        let line = [b'x'; 1 << 10];
        for _ in 0..1000 {
            output(&line);
        }
        assert_eq!(outlet.pending(), 64 << 10);
        outlet.take_all();
        output(b"last");
        let gap = "lg: here, 958464 bytes of the log found no reader\n";
        assert_eq!(outlet.pending(), (64 << 10) + gap.len() + 4);
    }

    #[test]
    fn a_guest_cannot_command_the_terminal() {
        let log = KernelLog::default();
        log.output(None)(b"\x1b]0;title\x07done\n");
        assert!(!log.tail().contains(['\x1b', '\x07']));
    }
}
