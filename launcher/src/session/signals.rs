// SPDX-License-Identifier: GPL-2.0
//! The signals that lg gets while a Guest runs: those that end it, and those of its terminal.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::process;
use std::sync::mpsc::Sender;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bytes::Input;
use crate::devices::console::WindowSize;
use crate::devices::Interrupt;
use crate::report::end::End;
use crate::session::streams::Streams;
use crate::session::terminal;

/// The signals that end a run, unless they are ignored when it begins.
const FATAL: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];
/// The window has another size.
const RESIZED: Signal = Signal::SIGWINCH;
/// Somebody wants lg to stop, and to go on again: with the terminal in between.
const STOPPED: Signal = Signal::SIGTSTP;
const CONTINUED: Signal = Signal::SIGCONT;

/// The signals that are waited for. This thread, and those that it starts, get them no other way.
pub(crate) struct Signals(SigSet);

impl Signals {
    /// Takes them from this thread. `on_terminal`: those of a terminal, too.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(crate) fn take(on_terminal: bool) -> io::Result<Self> {
        let of_terminal = if on_terminal {
            &[STOPPED, CONTINUED][..]
        } else {
            &[]
        };
        let signals = FATAL.iter().chain([&RESIZED]).chain(of_terminal).copied();
        let signals: SigSet = signals
            .filter(|&signal| !terminal::is_ignored(signal))
            .collect();
        signals.thread_block()?;
        Ok(Self(signals))
    }

    /// Waits for them: a new size goes to the Guest, a stop leaves the terminal to others until we go
    /// on, the others end the run; or lg, where the run has ended and what is left to be done does not
    /// come to its end: nobody may read the output. `looks`: whoever reads the keys is to look whose
    /// terminal it is.
    pub(crate) fn serve(&self, window: Option<Window>, looks: &EventFd, ends: &Sender<End>) {
        while let Ok(signal) = self.0.wait() {
            match signal {
                RESIZED => window.iter().for_each(Window::look),
                STOPPED => terminal::suspend(),
                CONTINUED => {
                    // It may also have another size.
                    let _ = looks.write(1);
                    window.iter().for_each(Window::look);
                }
                signal => {
                    let end = End::Signal(signal);
                    let status = end.status();
                    if ends.send(end).is_err() {
                        terminal::give_back();
                        process::exit(status.into());
                    }
                }
            }
        }
    }
}

/// Our end of the window's size.
pub(crate) struct Window {
    /// Whose it is.
    pub(crate) terminal: OwnedFd,
    /// What the console says of it.
    pub(crate) size: Arc<WindowSize>,
    /// Says that it has changed.
    pub(crate) interrupt: Arc<Interrupt>,
    /// Where guest-init hears of it.
    pub(crate) control: Arc<Input>,
    /// Says that there is something to hear.
    pub(crate) kick: Option<Arc<EventFd>>,
}

impl Window {
    /// Looks how large it is, and tells the Guest.
    fn look(&self) {
        if let Some((columns, rows)) = terminal::window_size(&self.terminal) {
            self.size.set(columns, rows);
            self.interrupt.config_changed();
            Streams::tell_size((columns, rows), &self.control);
            // It can only fail when 2^64 kicks are waiting.
            let _ = self.kick.as_ref().map(|kick| kick.write(1));
        }
    }
}
