// SPDX-License-Identifier: GPL-2.0
//! Running a program with a time limit, in a process group of its own, its output kept.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The end of a program.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum End {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It was still running when the time was up, and has been killed.
    TimeOut,
}

/// Its end, and what it printed on both outputs.
pub(crate) struct Finished {
    pub(crate) end: End,
    pub(crate) output: String,
}

/// A program that runs. It does not outlive this.
pub(crate) struct Running {
    child: Child,
    output: File,
}

/// Starts `argv`.
pub(crate) fn start(argv: &[&str]) -> io::Result<Running> {
    // SAFETY: makes a new descriptor, which is ours alone.
    let output = unsafe {
        match libc::memfd_create(c"output".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    let child = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", argv[0])))?;
    Ok(Running { child, output })
}

/// Runs `argv` to its end, or for `timeout`.
pub(crate) fn run(argv: &[&str], timeout: Duration) -> io::Result<Finished> {
    start(argv)?.finish(timeout)
}

impl Running {
    /// Process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to the program (not to its whole group).
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: a child of ours that nobody has waited for yet, so its number is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits until it has printed what `enough` is looking for.
    ///
    /// # Errors
    ///
    /// A report: it has ended before, or the time was up.
    pub(crate) fn prints(
        &self,
        timeout: Duration,
        enough: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let deadline = Instant::now() + timeout;
        loop {
            // In this order: what it printed at its end is seen too.
            let ended = self.ends_within(Duration::ZERO).map_err(text)?;
            let output = self.output_so_far().map_err(text)?;
            if enough(&output) {
                return Ok(());
            }
            if ended || Instant::now() > deadline {
                let what = if ended { "has ended" } else { "still runs" };
                return Err(report(&output, &format!("{what}, and printed only")));
            }
            sleep(Duration::from_millis(7));
        }
    }

    /// Its output so far.
    fn output_so_far(&self) -> io::Result<String> {
        // The position in the file is the program's.
        let mut output = vec![0; self.output.metadata()?.len() as usize];
        self.output.read_exact_at(&mut output, 0)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Waits until the program ends, at most for `timeout`.
    pub(crate) fn ends_within(&self, timeout: Duration) -> io::Result<bool> {
        // SAFETY: as in `signal`; the new descriptor is ours alone.
        let fd = unsafe {
            match libc::syscall(libc::SYS_pidfd_open, self.child.id(), 0) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd as i32),
            }
        };
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one element.
        match unsafe { libc::poll(&mut poll, 1, timeout.as_millis() as i32) } {
            -1 => Err(io::Error::last_os_error()),
            ready => Ok(ready != 0),
        }
    }

    /// Waits for the end, or kills the program's group after `timeout`.
    pub(crate) fn finish(mut self, timeout: Duration) -> io::Result<Finished> {
        let in_time = self.ends_within(timeout)?;
        if !in_time {
            self.kill_group();
        }
        let status = self.child.wait()?;
        let end = match (in_time, status.code(), status.signal()) {
            (false, ..) => End::TimeOut,
            (_, Some(code), _) => End::Exit(code),
            (_, None, signal) => End::Signal(signal.unwrap_or_default()),
        };
        let mut output = Vec::new();
        self.output.rewind()?;
        self.output.read_to_end(&mut output)?;
        Ok(Finished {
            end,
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }

    /// Only as long as nobody has waited for the program.
    fn kill_group(&self) {
        // SAFETY: the group that `start` made, whose leader nobody has waited for yet.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

/// `message`, and the end of `output`.
fn report(output: &str, message: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<_> = output.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    format!("{message}\n{}\n", tail.join("\n"))
}

impl Finished {
    /// `Ok` if it ended as `expected`; else a report with the end of the output.
    pub(crate) fn expect(&self, expected: End) -> Result<(), String> {
        if self.end == expected {
            Ok(())
        } else {
            Err(self.report(&format!(
                "ended with {:?} instead of {expected:?}",
                self.end
            )))
        }
    }

    /// `message`, and the end of the output.
    pub(crate) fn report(&self, message: &str) -> String {
        report(&self.output, message)
    }
}
