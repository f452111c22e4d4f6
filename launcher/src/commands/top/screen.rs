// SPDX-License-Identifier: GPL-2.0
//! The terminal of `lg top`: a screen of its own, without echo, and afterwards all as it was.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{raise, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{tcgetattr, tcsetattr, LocalFlags, SetArg, Termios};
use nix::unistd::read;

/// Another screen, without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The time is up, or the window has another size.
    Draw,
    /// The user has seen enough.
    Leave,
}

/// The terminal at standard input and output.
pub(super) struct Screen {
    before: Termios,
    signals: SignalFd,
}

impl Screen {
    /// Takes it.
    ///
    /// # Errors
    ///
    /// It is none.
    pub(super) fn take() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut signals = SigSet::empty();
        let ends = [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ];
        let others = [Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH];
        signals.extend(ends.into_iter().chain(others));
        signals.thread_block()?;
        let signals =
            SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let screen = Self { before, signals };
        screen.enter()?;
        Ok(screen)
    }

    fn enter(&self) -> io::Result<()> {
        let mut modes = self.before.clone();
        modes
            .local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &modes)?;
        io::stdout().write_all(ENTER)?;
        io::stdout().flush()
    }

    fn leave(&self) {
        let _ = io::stdout().write_all(LEAVE);
        let _ = io::stdout().flush();
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }

    /// Shows these lines, the first of them as a heading.
    ///
    /// # Errors
    ///
    /// The terminal takes no more.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (index, line) in lines.iter().enumerate() {
            let (on, off) = if index == 0 {
                ("\x1b[7m", "\x1b[m")
            } else {
                ("", "")
            };
            text += &format!("{on}{line}{off}\x1b[K\n");
        }
        text += "\x1b[Jq: leave";
        io::stdout().write_all(text.as_bytes())?;
        io::stdout().flush()
    }

    /// Waits so long, or until there is something else to do.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn wait(&self, time: Duration) -> io::Result<Next> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let stdin = io::stdin();
            let mut ready = [
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, left) {
                Ok(0) => return Ok(Next::Draw),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            let [typed, signalled] = [&ready[0], &ready[1]].map(is_ready);
            if signalled {
                if let Some(next) = self.signal()? {
                    return Ok(next);
                }
            }
            let mut keys = [0; 16];
            if typed {
                match read(&stdin, &mut keys) {
                    // The terminal has gone.
                    Ok(0) | Err(Errno::EIO) => return Ok(Next::Leave),
                    Ok(length) if keys[..length].contains(&b'q') => return Ok(Next::Leave),
                    _ => {}
                }
            }
        }
    }

    fn signal(&self) -> io::Result<Option<Next>> {
        let Some(signal) = self.signals.read_signal()? else {
            return Ok(None);
        };
        Ok(match Signal::try_from(signal.ssi_signo as i32) {
            Ok(Signal::SIGWINCH) => Some(Next::Draw),
            Ok(Signal::SIGTSTP) => {
                self.leave();
                raise(Signal::SIGSTOP)?;
                None
            }
            Ok(Signal::SIGCONT) => {
                self.enter()?;
                Some(Next::Draw)
            }
            _ => Some(Next::Leave),
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}
