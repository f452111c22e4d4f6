// SPDX-License-Identifier: GPL-2.0
//! What std and nix have no safe call for: the controlling terminal, a child with groups, the time stamp
//! counter, and the end of the machine.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::libc;
use nix::unistd::{setgid, setgroups, setsid, setuid, Gid, Uid};

use crate::config::User;
use crate::names;

nix::ioctl_write_int_bad!(
    /// Makes a terminal the controlling one of the calling session leader.
    tiocsctty,
    libc::TIOCSCTTY
);

nix::ioctl_read_bad!(
    /// The number of bytes that wait in a pipe.
    fionread,
    libc::FIONREAD,
    libc::c_int
);

nix::ioctl_write_ptr_bad!(
    /// Sets a terminal's size.
    tiocswinsz,
    libc::TIOCSWINSZ,
    libc::winsize
);

/// The number of bytes that wait in `pipe`.
pub(crate) fn unread(pipe: &File) -> nix::Result<u64> {
    let mut count = 0;
    // SAFETY: FIONREAD writes an int.
    unsafe { fionread(pipe.as_raw_fd(), &mut count) }?;
    Ok(count as u64)
}

/// Sets the size of `terminal`, in characters.
pub(crate) fn set_size(terminal: &File, columns: u16, rows: u16) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a struct winsize.
    unsafe { tiocswinsz(terminal.as_raw_fd(), &size) }?;
    Ok(())
}

/// Starts a session with `terminal` as the controlling one, for the calling process and its
/// children to come.
pub(crate) fn take_terminal(terminal: BorrowedFd) -> nix::Result<()> {
    setsid()?;
    // SAFETY: TIOCSCTTY takes an integer and writes no memory.
    unsafe { tiocsctty(terminal.as_raw_fd(), 0) }?;
    Ok(())
}

/// Lets `command` run as `user`. (`Command::uid` would drop the supplementary groups.)
pub(crate) fn run_as(command: &mut Command, user: &User) {
    let groups: Vec<_> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let become_user = move || {
        setgroups(&groups)?;
        setgid(gid)?;
        Ok(setuid(uid)?)
    };
    // SAFETY: between fork and exec it allocates nothing, and there is no other thread whose locks a
    // copy of this process could find held.
    unsafe { command.pre_exec(become_user) };
}

/// The time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every 64-bit CPU has it, and Linux lets programs read it unless they ask not to.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The machines that we can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// lg's, by its own contract.
    Lguest,
    /// lg's, by Xen's ABI.
    Xen,
    /// Another, such as QEMU's.
    Other,
}

impl Kind {
    /// What the Launcher says in `directory`. (The kernel has signs of it as well; but they are in /sys, which is
    /// not there at once, and not for ever.)
    pub(crate) fn told(directory: &Path) -> Self {
        match fs::read(directory.join("machine")).as_deref() {
            Ok(b"lguest\0") => Self::Lguest,
            Ok(b"xen\0") => Self::Xen,
            _ => Self::Other,
        }
    }
}

/// Lets `command` start with what the Launcher has got from whoever started that: `closed` streams,
/// `ignored` signals, `limits`. To be called before [`run_as`]: root alone raises limits.
pub(crate) fn inherit(command: &mut Command, closed: [bool; 3], ignored: u64, limits: &[[u64; 2]]) {
    let most_files = fs::read_to_string("/proc/sys/fs/nr_open");
    let most_files = most_files.ok().and_then(|text| text.trim().parse().ok());
    let limits = limits.iter().enumerate().map(|(resource, &[now, most])| {
        // Another kernel may allow more of these.
        let files = resource == libc::RLIMIT_NOFILE as usize;
        let bound = most_files.filter(|_| files).unwrap_or(libc::RLIM_INFINITY);
        let limit = libc::rlimit {
            rlim_cur: now.min(bound),
            rlim_max: most.min(bound),
        };
        (resource, limit)
    });
    let limits: Vec<_> = limits.collect();
    let take_over = move || {
        for (resource, limit) in &limits {
            // SAFETY: reads a struct rlimit. What this kernel does not know, it refuses.
            unsafe { libc::setrlimit(*resource as _, limit) };
        }
        for signal in (1..=64).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
            // SAFETY: SIG_IGN is no function of ours that could be gone. A number that is none is refused.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        for descriptor in (0..3).filter(|&descriptor| closed[descriptor as usize]) {
            // SAFETY: std has put the command's stream there, which nobody else uses.
            unsafe { libc::close(descriptor) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec it allocates nothing.
    unsafe { command.pre_exec(take_over) };
}

/// Ends the machine, of this `kind`, and hands `status` to whoever started it. `log` is the kernel's.
pub(crate) fn end(kind: Kind, status: i32, log: Option<&File>) -> ! {
    let status = status & 0xff;
    let mut how = libc::LINUX_REBOOT_CMD_RESTART2;
    match kind {
        // The kernel's farewell on the console would end up in the command's output. If it can't be
        // silenced, so be it.
        Kind::Lguest => drop(fs::write("/proc/sys/kernel/printk", "0")),
        Kind::Xen => {
            // For the Launcher, if nobody has told it yet.
            let line = format!("<0>{}{status}\n", names::LAST_STATUS);
            let _ = log.map(|mut log| log.write_all(line.as_bytes()));
            how = libc::LINUX_REBOOT_CMD_POWER_OFF;
        }
        Kind::Other => println!("lguest-exit={status}"),
    }
    nix::unistd::sync();

    let command = format!("lguest-exit={status}\0");
    let command = CStr::from_bytes_with_nul(command.as_bytes()).expect("ends with the only NUL");
    // SAFETY: reboot(2) reads, if at all, a NUL-terminated string, which outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_reboot,
            libc::LINUX_REBOOT_MAGIC1,
            libc::LINUX_REBOOT_MAGIC2,
            how,
            command.as_ptr(),
        )
    };
    // PID 1 must not end, or the kernel panics: which is what is left to say, if it did not
    // restart.
    panic!("cannot restart: {}", io::Error::last_os_error());
}
