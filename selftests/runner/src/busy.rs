// SPDX-License-Identifier: GPL-2.0
//! Guests that never end, and on which CPU they do not.

use crate::command::{self, Running};
use crate::test::{text, Outcome, HERE};
use std::fs;
use std::time::Duration;

/// A Guest that spins with interrupts off, by now, until somebody ends it.
pub(crate) fn start_spinner(timeout: Duration) -> Result<Running, String> {
    start_busy("tell-and-spin-with-interrupts-off", timeout)
}

/// A Guest that is committing a crime which never ends.
pub(crate) fn start_busy(crime: &str, timeout: Duration) -> Result<Running, String> {
    let path = format!("{HERE}/selftests/hostile/events");
    let argv = [
        "lg",
        "run",
        &path,
        "-m",
        "64M",
        "--append",
        &format!("crime={crime}"),
    ];
    let launcher = command::start(&argv).map_err(text)?;
    launcher.prints(timeout, |output| output.contains("spinning"))?;
    Ok(launcher)
}

/// Pins one thread; 0 is the calling one.
pub(crate) fn pin(pid: u32, cpu: usize) -> Outcome {
    // SAFETY: an empty set, which is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set of ours.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: reads the set.
    match unsafe { libc::sched_setaffinity(pid as i32, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(text(std::io::Error::last_os_error())),
    }
}

/// Pins every thread of a Launcher.
pub(crate) fn pin_launcher(launcher: &Running, cpu: usize) -> Outcome {
    for thread in fs::read_dir(format!("/proc/{}/task", launcher.id())).map_err(text)? {
        let thread = thread.map_err(text)?;
        let pinned = pin(
            thread.file_name().to_string_lossy().parse().map_err(text)?,
            cpu,
        );
        // The one that reads standard input ends with that.
        if thread.path().exists() {
            pinned?;
        }
    }
    Ok(())
}

pub(crate) fn unpin() {
    // SAFETY: a set of all CPUs, which is all ones.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (0..libc::CPU_SETSIZE as usize).for_each(|cpu| libc::CPU_SET(cpu, &mut set));
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

/// The number of CPUs.
pub(crate) fn online() -> usize {
    // SAFETY: has no preconditions.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) as usize }
}
