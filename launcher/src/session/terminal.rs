// SPDX-License-Identifier: GPL-2.0
//! The user's terminal: raw while the Guest has its keys, and as it was after that, whatever happens.
//!
//! It is shared: with the other programs of a pipeline, which go on writing lines to it; with the
//! shell, whose it is as long as lg is in the background; with whoever is started while lg is stopped.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::libc::{self, c_uint};
use nix::sys::signal::Signal;
use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, LocalFlags, SetArg, Termios};
use nix::unistd::{getpgrp, getpid, tcgetpgrp, Pid};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::session::watcher::{is_like, Watcher};

/// The number of a terminal's device, also behind /dev/tty (`linux:include/uapi/asm-generic/ioctls.h`).
const TIOCGDEV: c_uint = 0x8004_5432;

/// The change of the terminal's modes, made while the Guest has its keys.
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);
/// Nobody takes it any more: lg ends.
static OVER: AtomicBool = AtomicBool::new(false);
/// The terminal does not make lines of what is written to it.
static BARE_LINES: AtomicBool = AtomicBool::new(false);
struct Taken {
    before: libc::termios,
    raw: libc::termios,
}

/// The terminal that lg was started on.
#[derive(Debug)]
pub struct Place {
    device: u32,
    output: File,
    /// Its keys are our standard input.
    pub keys: bool,
    /// So are both of our outputs it.
    alone: bool,
}

impl Place {
    /// The terminal at standard input; else the one that controls us, or that one of our outputs is.
    pub fn find() -> Option<Self> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let controlling = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open("/dev/tty")
            .ok();
        let device = device(&stdin)
            .or_else(|| device(controlling.as_ref()?))
            .or_else(|| device(&stdout))
            .or_else(|| device(&stderr))?;
        let [keys, out, err] = streams.map(|stream| self::device(stream) == Some(device));
        let of_streams = [(out, streams[1]), (err, streams[2]), (keys, streams[0])]
            .into_iter()
            .find(|(is_it, stream)| *is_it && is_writable(stream))
            .map(|(_, stream)| stream.try_clone_to_owned());
        let output = match of_streams {
            Some(stream) => stream.ok()?.into(),
            None => controlling.filter(|file| self::device(file) == Some(device))?,
        };
        Some(Self {
            device,
            output,
            keys,
            alone: keys && out && err,
        })
    }

    /// Is `stream` this terminal?
    pub fn is(&self, stream: impl AsFd) -> bool {
        device(stream) == Some(self.device)
    }

    /// What is to be shown is written there.
    pub fn output(&self) -> &File {
        &self.output
    }
}

fn device(stream: impl AsFd) -> Option<u32> {
    let mut device = 0u32;
    // SAFETY: TIOCGDEV writes an unsigned int.
    let result = unsafe { ioctl_with_mut_ref(&stream.as_fd(), TIOCGDEV as _, &mut device) };
    (result == 0).then_some(device)
}

fn is_writable(stream: impl AsFd) -> bool {
    let flags = fcntl(stream, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE != OFlag::O_RDONLY)
}

/// The terminal at standard input, which has its modes back when this ends.
#[derive(Debug)]
pub struct Terminal {
    /// The way to take it.
    pub claim: Claim,
    /// For the ends at which nothing of ours runs.
    watcher: Watcher,
}

/// The right to take the terminal, and the way.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    alone: bool,
    /// Our process group.
    group: Pid,
}

impl Terminal {
    /// The terminal at standard input, which `place` has found. `None` if its keys are not for us.
    ///
    /// To be called before there is a VM, of which the watcher must have nothing.
    ///
    /// # Errors
    ///
    /// When its modes cannot be read, or it cannot be watched.
    pub fn watch(place: &Place) -> io::Result<Option<Self>> {
        if !place.keys {
            return Ok(None);
        }
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let watcher = Watcher::start(&stdin, &before, &raw(&before, place.alone))?;
        let claim = Claim {
            alone: place.alone,
            group: getpgrp(),
        };
        Ok(Some(Self { claim, watcher }))
    }

    /// The process that watches it, which is told when it need not any more.
    pub fn watcher(&self) -> Pid {
        self.watcher.process()
    }
}

impl Claim {
    /// At the start: takes it, unless other programs of a pipeline may just be looking at its modes, which
    /// they would give it back later. Tells whether its keys are for us.
    pub fn begin(&self) -> bool {
        match self.alone {
            true => self.take(),
            false => self.is_ours(),
        }
    }

    /// Are there, perhaps, other programs that use it at the same time, such as a pager?
    pub fn is_shared(&self) -> bool {
        !self.alone
    }

    /// Makes it raw if it is ours to do so: if we are in its foreground, and no other program reads its
    /// keys one by one. Tells whether it is; then its keys may be read.
    pub fn take(&self) -> bool {
        let mut taken = TAKEN.lock().unwrap();
        if OVER.load(Ordering::SeqCst) {
            return false;
        }
        if !self.is_ours() {
            *taken = None;
            return false;
        }
        let Ok(now) = tcgetattr(io::stdin()) else {
            return false;
        };
        let is_raw = |taken: &Taken| is_like(&now, &taken.raw.into());
        if taken.as_ref().is_some_and(is_raw) {
            return true;
        }
        // A pager has it, at the other end of the pipeline: natively a command that does not read keys
        // leaves them to it, and which one reads we cannot see.
        if self.is_shared() && !now.local_flags.contains(LocalFlags::ICANON) {
            *taken = None;
            return false;
        }
        let raw = raw(&now, self.alone);
        // Known before it is done: whoever comes in between may restore it.
        *taken = Some(Taken {
            before: now.into(),
            raw: raw.clone().into(),
        });
        BARE_LINES.store(self.alone, Ordering::Relaxed);
        // What is typed already stays.
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).is_ok()
    }

    /// Are we in its foreground? Where it does not control us, nobody is.
    fn is_ours(&self) -> bool {
        match tcgetpgrp(io::stdin()) {
            Ok(group) => group == self.group,
            Err(error) => error == Errno::ENOTTY,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The thread that reads the keys may be about to take it, which it has done soon, unless nobody
        // reads what was shown before. Then it does not get that far.
        const PATIENCE: Duration = Duration::from_secs(1);
        OVER.store(true, Ordering::SeqCst);
        let began = Instant::now();
        while matches!(TAKEN.try_lock(), Err(TryLockError::WouldBlock)) {
            if began.elapsed() > PATIENCE {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        restore();
    }
}

/// Nothing is done to keys any more. What is shown is done nothing to, either, if all that there is to
/// show comes from the Guest; other programs' lines must still become lines.
fn raw(modes: &Termios, alone: bool) -> Termios {
    let mut raw = modes.clone();
    cfmakeraw(&mut raw);
    if !alone {
        // By way of the C struct, which a field of nix's does not change until it is set.
        let mut all: libc::termios = raw.into();
        all.c_oflag = modes.output_flags.bits();
        raw = all.into();
    }
    raw
}

/// Gives the terminal its modes back for good: who reads the keys does not take it again. No harm if it is not
/// raw, or if somebody has given it others since. Signal handlers may call this.
pub fn give_back() {
    OVER.store(true, Ordering::SeqCst);
    restore();
}

/// Gives the terminal its modes back.
fn restore() {
    // Who has it locked is about to change it, and the watcher looks after that.
    let Ok(mut taken) = TAKEN.try_lock() else {
        return;
    };
    let Some(Taken { before, raw }) = taken.take() else {
        return;
    };
    BARE_LINES.store(false, Ordering::Relaxed);
    let terminal = io::stdin();
    if tcgetattr(&terminal).is_ok_and(|now| is_like(&now, &raw.into())) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &before.into());
    }
}

/// Stops lg, the terminal as it was. SIGCONT lets it go on, and [`Claim::take`] is then due.
pub fn suspend() {
    restore();
    let process = getpid().as_raw();
    // SAFETY: a signal for ourselves. (The sandbox has no kill().)
    unsafe { libc::syscall(libc::SYS_tgkill, process, process, Signal::SIGSTOP as i32) };
}

/// Is `signal` ignored, as nohup(1) has it for its command, and shells for what is in the background?
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: all bits of the struct may be 0, and the call fills it, and changes nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal as i32, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// A panic of ours must not leave a raw terminal or a Guest without its Launcher.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        give_back();
        print(panic);
        std::process::exit(crate::report::end::LAUNCHER_ERROR.into());
    }));
}

/// Columns and rows of `terminal`. `None` when nobody knows.
pub fn window_size(terminal: &impl AsRawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes a struct winsize.
    let result = unsafe { ioctl_with_mut_ref(terminal, libc::TIOCGWINSZ, &mut size) };
    (result == 0).then_some((size.ws_col, size.ws_row))
}

/// Text which has plain newlines, such as a kernel's first messages, as a stream wants it now which is
/// the terminal or not.
pub fn lines_for(terminal: bool, text: &[u8]) -> Vec<u8> {
    if !terminal || !BARE_LINES.load(Ordering::Relaxed) {
        return text.into();
    }
    let mut before = b'\n';
    let mut lines = Vec::with_capacity(text.len());
    for &byte in text {
        if byte == b'\n' && before != b'\r' {
            lines.push(b'\r');
        }
        lines.push(byte);
        before = byte;
    }
    lines
}

/// What the Guest's terminal shows, as ours wants it now: if ours makes a carriage return and a newline
/// of a newline, the Guest's carriage return is one too many.
pub fn shown(text: &[u8]) -> Vec<u8> {
    if BARE_LINES.load(Ordering::Relaxed) {
        return text.into();
    }
    let mut lines = Vec::with_capacity(text.len());
    for &byte in text {
        if byte == b'\n' && lines.last() == Some(&b'\r') {
            lines.pop();
        }
        lines.push(byte);
    }
    lines
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::sys::termios::OutputFlags;

    use super::*;

    #[test]
    fn a_terminal_that_is_not_raw_does_its_own_lines() {
        assert_eq!(lines_for(true, b"one\ntwo\n"), b"one\ntwo\n");
        assert_eq!(
            shown(b"one\r\ntwo\n\rthree\r\r\n"),
            b"one\ntwo\n\rthree\r\n"
        );
    }

    #[test]
    fn lines_of_others_stay_lines() {
        let modes = tcgetattr(openpty(None, None).unwrap().slave).unwrap();
        let post = OutputFlags::OPOST | OutputFlags::ONLCR;
        let shared = raw(&modes, false);
        assert!(shared.output_flags.contains(post));
        // What is kept of it is the same.
        let kept: libc::termios = shared.clone().into();
        assert!(is_like(&shared, &kept.into()));
        assert!(!raw(&modes, true)
            .output_flags
            .intersects(OutputFlags::OPOST));
    }
}
