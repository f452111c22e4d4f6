// SPDX-License-Identifier: GPL-2.0
//! This module has the ways in which a run can end, the exit status of each, and what the user is
//! told.

use std::io;

use lguest_abi::lguest_regs;
use nix::sys::signal::Signal;

use crate::report::messages::say;
use crate::report::system::{is_of_output, Refusal};
use crate::report::{Error, Report};

/// Exit status when `--timeout` was up.
const TIMED_OUT: u8 = 124;
/// Exit status when lg itself failed.
pub const LAUNCHER_ERROR: u8 = 125;
/// Exit status when the Guest's kernel panicked or was killed.
const GUEST_DIED: u8 = 255;

/// The end of a run.
#[derive(Debug)]
pub enum End {
    /// The Guest has powered off with this status.
    PoweredOff(u8),
    /// The Guest wants to be started again, which ends it here.
    Restart,
    /// The Guest's kernel panicked.
    Panic(String),
    /// The Guest did what it may not.
    Death {
        /// Its deed.
        reason: String,
        /// Its registers then.
        regs: Box<lguest_regs>,
    },
    /// The user has typed Ctrl-a x.
    Left,
    /// `--timeout` was up.
    TimedOut,
    /// lg got this signal.
    Signal(Signal),
    /// It was only planned.
    NotRun,
    /// lg failed.
    Failed(Error),
}

impl End {
    /// The end when the Guest's output can't be written.
    pub fn of_output(error: io::Error) -> Self {
        match error.kind() {
            // Nobody reads it any more: ends without a word, as other programs do.
            io::ErrorKind::BrokenPipe => Self::Signal(Signal::SIGPIPE),
            _ => Self::Failed(Refusal::Output(error).into()),
        }
    }

    /// Has it come while the Guest had more to do?
    pub fn is_cut_off(&self) -> bool {
        matches!(self, Self::Signal(_) | Self::Left | Self::TimedOut)
    }

    /// Is it one that the Guest's kernel may have words on?
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Panic(_) | Self::Death { .. } | Self::TimedOut => true,
            // A file system that is full is not its matter.
            Self::Failed(error) => !is_of_output(error),
            // What the Guest's init ends with when it cannot run the command.
            Self::PoweredOff(status) => *status == LAUNCHER_ERROR,
            Self::Restart | Self::Left | Self::Signal(_) | Self::NotRun => false,
        }
    }

    /// The exit status of lg.
    pub fn status(&self) -> u8 {
        match self {
            Self::PoweredOff(status) => *status,
            Self::Restart | Self::Left | Self::NotRun => 0,
            Self::Panic(_) | Self::Death { .. } => GUEST_DIED,
            Self::TimedOut => TIMED_OUT,
            // As a shell tells it.
            Self::Signal(signal) => 128 + *signal as u8,
            Self::Failed(_) => LAUNCHER_ERROR,
        }
    }

    /// The end in one word for programs, which stays the same for ever.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PoweredOff(_) => "exited",
            Self::Restart => "restart",
            Self::Panic(_) => "panic",
            Self::Death { .. } => "killed",
            Self::Left => "left",
            Self::TimedOut => "timeout",
            Self::Signal(_) => "signal",
            Self::NotRun => "dry-run",
            Self::Failed(_) => "error",
        }
    }

    /// The message beyond the reason.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::PoweredOff(_) | Self::Restart | Self::Left | Self::TimedOut | Self::NotRun => {
                None
            }
            Self::Panic(message) => Some(message.clone()),
            Self::Death { reason, .. } => Some(reason.clone()),
            Self::Signal(signal) => Some(signal.to_string()),
            Self::Failed(error) => Some(error.to_string()),
        }
    }

    /// Tells the user, if there is something to tell.
    pub fn tell(&self) {
        match self {
            Self::PoweredOff(_) | Self::Left | Self::Signal(_) | Self::NotRun => {}
            Self::Restart => say("the guest restarts, and so ends"),
            Self::Panic(message) => say(&format!("the guest's kernel panicked: {message}")),
            Self::Death { reason, regs } => {
                say(&format!(
                    "the guest was killed: {reason}\n{}",
                    registers(regs)
                ));
            }
            Self::TimedOut => say("the time is up"),
            Self::Failed(error) => say(&Report(error).to_string()),
        }
    }
}

/// A dump of the registers, in the layout of the kernel's.
pub fn registers(regs: &lguest_regs) -> String {
    let mode = if regs.user_mode == 0 {
        "kernel"
    } else {
        "user"
    };
    let rows: [[(&str, u64); 3]; 7] = [
        [("rax", regs.rax), ("rbx", regs.rbx), ("rcx", regs.rcx)],
        [("rdx", regs.rdx), ("rsi", regs.rsi), ("rdi", regs.rdi)],
        [("rbp", regs.rbp), ("r8 ", regs.r8), ("r9 ", regs.r9)],
        [("r10", regs.r10), ("r11", regs.r11), ("r12", regs.r12)],
        [("r13", regs.r13), ("r14", regs.r14), ("r15", regs.r15)],
        [("cr2", regs.cr2), ("cr3", regs.cr3), ("flg", regs.rflags)],
        [
            ("rsp", regs.rsp),
            ("fs ", regs.fs_base),
            ("gs ", regs.gs_base),
        ],
    ];
    let mut text = format!("    rip {:016x} (guest {mode} mode)", regs.rip);
    for row in rows {
        text.push_str("\n   ");
        for (name, value) in row {
            text.push_str(&format!(" {name} {value:016x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        assert_eq!(End::PoweredOff(7).status(), 7);
        assert_eq!(End::Panic(String::new()).status(), 255);
        assert_eq!(End::TimedOut.status(), 124);
        assert_eq!(End::of_output(io::Error::other("full")).status(), 125);
        assert_eq!(End::Signal(Signal::SIGTERM).status(), 143);
    }

    #[test]
    fn the_register_dump_has_them_all() {
        let mut regs = lguest_regs {
            rip: 0x1234,
            user_mode: 1,
            ..Default::default()
        };
        regs.r15 = 0xdead_beef;
        let dump = registers(&regs);
        assert!(
            dump.contains("rip 0000000000001234 (guest user mode)"),
            "{dump}"
        );
        assert!(dump.contains("r15 00000000deadbeef"), "{dump}");
        assert_eq!(dump.lines().count(), 8);
    }
}
