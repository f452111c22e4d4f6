// SPDX-License-Identifier: GPL-2.0
//! The user's terminal: raw while the Guest has it, and as it was after that, whatever happens.

#![allow(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use nix::libc;
use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, SetArg, Termios};
use nix::unistd::Pid;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::watcher::Watcher;

/// The modes to go back to.
static SAVED: OnceLock<libc::termios> = OnceLock::new();
/// The terminal is raw.
static RAW: AtomicBool = AtomicBool::new(false);

/// The terminal at standard input, which has its modes back when this ends.
#[derive(Debug)]
pub struct Terminal {
    raw: Termios,
    /// For the ends at which nothing of ours runs.
    watcher: Watcher,
}

impl Terminal {
    /// The terminal at standard input. `None` when there is none.
    ///
    /// To be called before there is a VM, of which the watcher must have nothing.
    ///
    /// # Errors
    ///
    /// When its modes cannot be read, or it cannot be watched.
    pub fn find() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let modes = tcgetattr(&stdin)?;
        let mut raw = modes.clone();
        cfmakeraw(&mut raw);
        let watcher = Watcher::start(&stdin, &modes, &raw)?;
        SAVED.get_or_init(|| modes.into());
        Ok(Some(Self { raw, watcher }))
    }

    /// The process that watches it, which is told when it need not any more.
    pub fn watcher(&self) -> Pid {
        self.watcher.process()
    }

    /// Makes it raw.
    ///
    /// # Errors
    ///
    /// Those of tcsetattr().
    pub fn make_raw(&self) -> io::Result<()> {
        RAW.store(true, Ordering::Relaxed);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.raw)?;
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its modes back. No harm if it is not raw. Signal handlers may call this.
pub fn restore() {
    if !RAW.swap(false, Ordering::Relaxed) {
        return;
    }
    if let Some(modes) = SAVED.get() {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &(*modes).into());
    }
}

/// A panic of ours must not leave a raw terminal or a Guest without its Launcher.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
        std::process::exit(crate::end::LAUNCHER_ERROR.into());
    }));
}

fn is_raw() -> bool {
    RAW.load(Ordering::Relaxed)
}

/// Columns and rows of the terminal at standard output. `None` when there is none.
pub fn window_size() -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes a struct winsize.
    let result = unsafe { ioctl_with_mut_ref(&io::stdout(), libc::TIOCGWINSZ, &mut size) };
    (result == 0).then_some((size.ws_col, size.ws_row))
}

/// Prints a message of lg's to standard error.
pub fn say(message: &str) {
    let mut text = format!("lg: {message}\n");
    if is_raw() {
        text = text.replace('\n', "\r\n");
    }
    // Who closes standard error wants no messages.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Text which has plain newlines, such as a kernel's first messages, as the terminal wants it now.
pub fn lines_for_terminal(text: &[u8]) -> Vec<u8> {
    if !is_raw() {
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

/// `text` without what a terminal would take for commands, to be printed as part of a message.
pub fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_is_not_raw_does_its_own_lines() {
        assert_eq!(lines_for_terminal(b"one\ntwo\n"), b"one\ntwo\n");
    }

    #[test]
    fn messages_of_guests_are_harmless() {
        assert_eq!(printable(b"VFS: no root\n"), "VFS: no root\n");
        assert_eq!(
            printable(b"\x1b]0;title\x07\xff"),
            "\u{fffd}]0;title\u{fffd}\u{fffd}"
        );
    }
}
