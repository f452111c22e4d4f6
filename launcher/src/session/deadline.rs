// SPDX-License-Identifier: GPL-2.0
//! `--timeout`: whatever lg does or waits for, from its start, counts.
//!
//! Before the Guest runs, the one thread that does everything may wait anywhere: for gdb, for the
//! other end of a FIFO, for passt. So a second one watches the time and ends lg when it is up. It is
//! gone before the sandbox, which is for threads that start in it. From there on another one sends
//! an [`End`] like everybody else; should nobody take it, since what is left of lg is stuck on an
//! output that nobody reads, it ends lg as well.

#![forbid(unsafe_code)]

use std::io;
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

use crate::report::end::End;
use crate::report::record::Record;
use crate::session::terminal;

/// The time that the last words may take, once the time is up.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The moment when the time is up; never, unless `--timeout` says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `timeout` after `began`.
    pub(crate) fn new(began: Instant, timeout: Option<Duration>) -> Self {
        // One that no clock reaches is none.
        Self(timeout.and_then(|timeout| began.checked_add(timeout)))
    }

    /// There is none.
    pub(crate) fn is_none(self) -> bool {
        self.0.is_none()
    }

    /// Ends lg at the deadline, with that in `record`, unless what is returned is dropped before.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub(crate) fn watch(self, record: &Record) -> io::Result<Watch> {
        let Some(deadline) = self.0 else {
            return Ok(Watch(None));
        };
        let (here, watched) = mpsc::channel::<()>();
        let record = record.clone();
        let thread = thread::Builder::new().name("time".into()).spawn(move || {
            // They are for the other one, which blocks those that it waits for.
            let _ = SigSet::all().thread_block();
            let left = deadline.saturating_duration_since(Instant::now());
            if watched.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                give_up(&record);
            }
        })?;
        Ok(Watch(Some((here, thread))))
    }

    /// Reports an end at the deadline, and if that leads to none of lg soon, ends it.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub(crate) fn report(self, ends: Sender<End>, record: &Record) -> io::Result<()> {
        let Some(deadline) = self.0 else {
            return Ok(());
        };
        let record = record.clone();
        let report = move || {
            thread::sleep(deadline.saturating_duration_since(Instant::now()));
            match ends.send(End::TimedOut) {
                Ok(()) => exit_after_last_words(),
                // The Guest has ended, and what it has printed finds no reader.
                Err(_) => give_up(&record),
            }
        };
        thread::Builder::new().name("time".into()).spawn(report)?;
        Ok(())
    }
}

/// A thread watches the time as long as this lives.
#[derive(Debug)]
pub(crate) struct Watch(Option<(Sender<()>, JoinHandle<()>)>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((here, thread)) = self.0.take() {
            drop(here);
            // If the time was up just now, this is where it ends.
            let _ = thread.join();
        }
    }
}

/// Tells that the time is up, to who listens, and ends lg.
fn give_up(record: &Record) -> ! {
    // Without a thread, what is said below has all the time.
    let _ = thread::Builder::new().spawn(|| exit_after_last_words());
    terminal::give_back();
    End::TimedOut.tell();
    let _ = record.write(&End::TimedOut);
    exit()
}

fn exit_after_last_words() -> ! {
    thread::sleep(LAST_WORDS);
    terminal::give_back();
    exit()
}

fn exit() -> ! {
    process::exit(End::TimedOut.status().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ready_in_time_goes_on() {
        let record = Record::default();
        for timeout in [None, Some(Duration::from_secs(1000)), Some(Duration::MAX)] {
            let deadline = Deadline::new(Instant::now(), timeout);
            drop(deadline.watch(&record).unwrap());
        }
    }

    #[test]
    fn the_time_is_reported() {
        let (ends, end) = mpsc::channel();
        let before = Instant::now();
        let deadline = Deadline::new(before, Some(Duration::from_millis(20)));
        // The thread ends this process, unless the test has ended by then, so no test waits here.
        let Deadline(at) = deadline;
        assert_eq!(at, Some(before + Duration::from_millis(20)));
        Deadline(None).report(ends, &Record::default()).unwrap();
        assert!(end.recv().is_err());
    }
}
