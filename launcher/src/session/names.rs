// SPDX-License-Identifier: GPL-2.0
//! What lg and guest-init, which includes this file, say to each other.

#![allow(missing_docs)] // the names of ports say what they are

pub const CONTROL: &str = "lg.control";
pub const TERMINAL: &str = "lg.terminal";
pub const STDIN: &str = "lg.stdin";
pub const STDOUT: &str = "lg.stdout";
pub const STDERR: &str = "lg.stderr";
/// Standard output and standard error, which are one file.
pub const OUTPUT: &str = "lg.output";
/// No port: the terminal is the console.
pub const CONSOLE: &str = "console";
/// No ports: standard input, output and error, which are closed.
pub const CLOSED: [&str; 3] = ["closed.stdin", "closed.stdout", "closed.stderr"];

/// guest-init says this on the control port when the command has ended. Numbers below [`COMMAND_STATUS`] are
/// how many bytes of standard input it has read.
pub const COMMAND_ENDED: u64 = u64::MAX;

/// guest-init says this before, with the command's status in the lowest 8 bits: a kernel that runs by Xen's
/// ABI cannot power off with one.
pub const COMMAND_STATUS: u64 = 1 << 63;

/// guest-init says this in the kernel's log when it starts the command.
pub const COMMAND_STARTS: &str = "init: the command starts";

/// guest-init says this, and behind it the status, in the kernel's log at the end of a kernel that runs by
/// Xen's ABI: where there is no control port, or nobody has come as far as to open it.
pub const LAST_STATUS: &str = "init: the status is ";
