// SPDX-License-Identifier: GPL-2.0
//! A small process that gives a terminal its modes back when lg can no longer do it: after SIGKILL,
//! or after a crash.
//!
//! The kernel tells it when lg's main thread ends, which is before all of lg has ended and the user's
//! shell hears of it: a shell that looks at the terminal's modes then, finds them as they were. The
//! process is made before there is a VM, and closes what it has inherited, so that nothing of a
//! Guest outlives lg by it. In a session of its own, it gets no signals of the terminal's, and none
//! that are for lg's process group.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::termios::{tcgetattr, tcsetattr, SetArg, Termios};
use nix::sys::wait::waitpid;
use nix::unistd::{dup2_stdin, fork, getpid, getppid, setsid, write, ForkResult, Pid};

/// lg has ended, or has no more need of a watcher.
const END: Signal = Signal::SIGUSR1;

/// The name of the watcher, once it can be relied on.
const NAME: &CStr = c"tty-restore";

/// A watcher, as long as this lives. It belongs to the thread that starts it.
#[derive(Debug)]
pub(crate) struct Watcher(Pid);

impl Watcher {
    /// Starts a watcher of `terminal`: when this thread has ended, and the terminal's modes are
    /// `raw` then, they become `saved`.
    ///
    /// # Errors
    ///
    /// When there can be no process.
    pub(crate) fn start(terminal: impl AsFd, saved: &Termios, raw: &Termios) -> io::Result<Self> {
        let lg = getpid();
        // From its first instruction on the child has them blocked: an end that is told before it waits for that must
        // not be lost to a handler of lg's.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        // SAFETY: the child makes system calls, and nothing else, until it ends.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            let _ = watch(terminal, lg, saved, raw);
            // SAFETY: ends the process without running anything of lg's.
            unsafe { libc::_exit(0) }
        }
        mask.thread_set_mask()?;
        match forked? {
            ForkResult::Parent { child } => Ok(Self(child)),
            ForkResult::Child => unreachable!("it has ended"),
        }
    }

    pub(crate) fn process(&self) -> Pid {
        self.0
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let process = self.0.as_raw();
        // SAFETY: a child that nobody has waited for yet, so its number is still its own. (The
        // sandbox has no kill().)
        unsafe { libc::syscall(libc::SYS_tgkill, process, process, END as libc::c_int) };
        // Leaves no zombie to whoever started us.
        let _ = waitpid(self.0, None);
    }
}

/// The watcher's work. All signals are blocked.
fn watch(terminal: impl AsFd, lg: Pid, saved: &Termios, raw: &Termios) -> nix::Result<()> {
    setsid()?;
    dup2_stdin(terminal)?;
    // SAFETY: nobody uses any of these descriptors again.
    unsafe { libc::close_range(1, libc::c_uint::MAX, 0) };
    let terminal = io::stdin();

    prctl::set_pdeathsig(END)?;
    // Who kills all that is called lg must not hit this.
    prctl::set_name(NAME)?;
    if getppid() == lg {
        SigSet::from(END).wait()?;
    }
    let modes = tcgetattr(&terminal)?;
    // If lg has restored it, or somebody else has put it as they want it, there is nothing to do.
    if is_like(&modes, raw) {
        tcsetattr(&terminal, SetArg::TCSANOW, saved)?;
        // The Guest has left the cursor anywhere.
        write(&terminal, b"\r\n")?;
    }
    Ok(())
}

/// Control modes are left out: not every terminal takes them as they are given.
pub(crate) fn is_like(one: &Termios, other: &Termios) -> bool {
    let modes = |all: &Termios| (all.input_flags, all.output_flags, all.local_flags);
    modes(one) == modes(other)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::thread;

    use nix::pty::openpty;
    use nix::sys::termios::{cfmakeraw, LocalFlags};

    use super::*;
    use crate::signal;

    /// A terminal, its modes, and those when it is raw; and the user's end of it.
    fn terminal() -> (OwnedFd, Termios, Termios, File) {
        let pty = openpty(None, None).unwrap();
        let saved = tcgetattr(&pty.slave).unwrap();
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        (pty.slave, saved, raw, pty.master.into())
    }

    #[test]
    fn a_terminal_that_is_left_raw_gets_its_modes_back() {
        let (terminal, saved, raw, mut user) = terminal();
        let (saved, terminal) = thread::spawn(move || {
            let watcher = Watcher::start(&terminal, &saved, &raw).unwrap();
            tcsetattr(&terminal, SetArg::TCSANOW, &raw).unwrap();
            // It must hear of the end of this thread.
            let name = format!("/proc/{}/comm", watcher.0);
            while fs::read(&name).unwrap() != b"tty-restore\n" {
                thread::yield_now();
            }
            std::mem::forget(watcher);
            (saved, terminal)
        })
        .join()
        .unwrap();
        // The terminal, which is no longer raw, adds another carriage return. They need not come at once.
        let mut shown = [0; 3];
        user.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"\r\r\n");
        assert_eq!(tcgetattr(&terminal).unwrap(), saved);
    }

    /// Also before it waits for that, and whatever lg does with the signal.
    #[test]
    fn it_ends_when_it_is_told() {
        signal::only_interrupt(END).unwrap();
        let (terminal, saved, raw, _user) = terminal();
        for _ in 0..100 {
            drop(Watcher::start(&terminal, &saved, &raw).unwrap());
        }
    }

    #[test]
    fn modes_of_somebody_elses_stay() {
        let (terminal, saved, mut modes, _user) = terminal();
        let watcher = Watcher::start(&terminal, &saved, &modes).unwrap();
        modes.local_flags |= LocalFlags::ISIG;
        tcsetattr(&terminal, SetArg::TCSANOW, &modes).unwrap();
        drop(watcher);
        assert_eq!(tcgetattr(&terminal).unwrap(), modes);
    }
}
