// SPDX-License-Identifier: GPL-2.0
//! A small process that gives a terminal its modes back when lg can no longer do it: after SIGKILL,
//! or after a crash.
//!
//! It waits for the end of a pipe of which lg has the other end, so that no death goes unnoticed.
//! It is made before there is a VM, and closes what it has inherited: nothing of a guest outlives
//! lg by it. In a session of its own, it gets no signals of the terminal's, and none of those that
//! are for lg's process group.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::sys::termios::{tcgetattr, tcsetattr, SetArg, Termios};
use nix::sys::wait::waitpid;
use nix::unistd::{dup2_stdin, dup2_stdout, fork, pipe2, read, setsid, write, ForkResult, Pid};

/// A watcher, as long as this lives.
#[derive(Debug)]
pub(crate) struct Watcher {
    /// Closed when lg ends, in whatever way.
    lifeline: Option<OwnedFd>,
    process: Pid,
}

impl Watcher {
    /// Starts a watcher of `terminal`: when lg has ended, and the terminal's modes are `raw` then,
    /// they become `saved`.
    ///
    /// # Errors
    ///
    /// When there can be no pipe or process.
    pub(crate) fn start(terminal: impl AsFd, saved: &Termios, raw: &Termios) -> io::Result<Self> {
        let (end, lifeline) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child makes system calls, and nothing else, until it ends.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                lifeline: Some(lifeline),
                process: child,
            }),
            ForkResult::Child => {
                let _ = watch(terminal, end, saved, raw);
                // SAFETY: ends the process without running anything of lg's.
                unsafe { libc::_exit(0) }
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.lifeline = None;
        // Leaves no zombie to whoever started us. It can only fail when there is none.
        let _ = waitpid(self.process, None);
    }
}

/// What the watcher does.
fn watch(terminal: impl AsFd, end: OwnedFd, saved: &Termios, raw: &Termios) -> nix::Result<()> {
    SigSet::all().thread_block()?;
    setsid()?;
    // Who kills all that is called lg must not hit this.
    prctl::set_name(c"tty-restore")?;
    dup2_stdin(terminal)?;
    dup2_stdout(end)?;
    // SAFETY: nobody uses any of these descriptors again.
    unsafe { libc::close_range(2, libc::c_uint::MAX, 0) };
    let (terminal, end) = (io::stdin(), io::stdout());

    while read(&end, &mut [0])? != 0 {}
    let modes = tcgetattr(&terminal)?;
    // If lg has restored it, or a shell with modes of its own was faster, there is nothing to do.
    if is_like(&modes, raw) {
        tcsetattr(&terminal, SetArg::TCSANOW, saved)?;
        // The Guest has left the cursor anywhere.
        write(&terminal, b"\r\n")?;
    }
    Ok(())
}

/// Control modes are left out: not every terminal takes them as they are given.
fn is_like(one: &Termios, other: &Termios) -> bool {
    let modes = |all: &Termios| (all.input_flags, all.output_flags, all.local_flags);
    modes(one) == modes(other)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::pty::openpty;
    use nix::sys::termios::{cfmakeraw, LocalFlags};

    use super::*;

    /// A terminal with a watcher, made raw: the user's end, the terminal, the modes before, and now.
    fn watched() -> (File, OwnedFd, Termios, Termios, Watcher) {
        let pty = openpty(None, None).unwrap();
        let saved = tcgetattr(&pty.slave).unwrap();
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        let watcher = Watcher::start(&pty.slave, &saved, &raw).unwrap();
        tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).unwrap();
        (pty.master.into(), pty.slave, saved, raw, watcher)
    }

    #[test]
    fn a_terminal_that_is_left_raw_gets_its_modes_back() {
        let (user, terminal, saved, _, watcher) = watched();
        drop(watcher);
        assert_eq!(tcgetattr(&terminal).unwrap(), saved);
        let mut shown = [0; 16];
        let count = read(&user, &mut shown).unwrap();
        // The terminal, which is no longer raw, adds another carriage return.
        assert_eq!(&shown[..count], b"\r\r\n");
    }

    #[test]
    fn modes_of_somebody_elses_stay() {
        let (_user, terminal, _, mut modes, watcher) = watched();
        modes.local_flags |= LocalFlags::ISIG;
        tcsetattr(&terminal, SetArg::TCSANOW, &modes).unwrap();
        drop(watcher);
        assert_eq!(tcgetattr(&terminal).unwrap(), modes);
    }
}
