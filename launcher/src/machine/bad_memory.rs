// SPDX-License-Identifier: GPL-2.0
//! The Host's memory fails under a Guest: the kernel tells us by SIGBUS, and we the user.
//!
//! What the Guest uses itself ends `LGUEST_RUN`, and what lg uses of it, a device's queue such as, ends
//! lg; both say the same.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io::{self, Write};

use nix::libc::{self, c_void, siginfo_t};
use nix::sys::signal::{signal, SigHandler, Signal};
use vmm_sys_util::signal::register_signal_handler;

use crate::report::codes::Code;
use crate::report::end::LAUNCHER_ERROR;
use crate::report::Explain;
use crate::session::terminal;

/// Of SIGBUS (`linux:include/uapi/asm-generic/siginfo.h`): somebody here has used what is bad.
const BUS_MCEERR_AR: i32 = 4;
/// The Host has found it, and nobody has used it yet.
const BUS_MCEERR_AO: i32 = 5;

const WHY: &str = "there was an error in a page of the guest's that could not be corrected";

/// The Guest has met bad memory.
#[derive(Debug, thiserror::Error)]
#[error("{}", Code::BadMemory.title())]
pub struct BadMemory;

impl Explain for BadMemory {
    fn code(&self) -> Code {
        Code::BadMemory
    }

    fn why(&self) -> String {
        WHY.into()
    }
}

thread_local! {
    /// This thread runs the Guest.
    static RUNS: Cell<bool> = const { Cell::new(false) };
    /// It has used what is bad.
    static HIT: Cell<bool> = const { Cell::new(false) };
}

/// Has the user told of bad memory from now on.
pub(crate) fn watch() -> io::Result<()> {
    Ok(register_signal_handler(libc::SIGBUS, on_sigbus)?)
}

/// Calls `run`, in which the Guest runs. Says as well whether it has met bad memory.
pub(crate) fn during<T>(run: impl FnOnce() -> T) -> (T, bool) {
    RUNS.set(true);
    let result = run();
    RUNS.set(false);
    (result, HIT.take())
}

extern "C" fn on_sigbus(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel fills it in, and it lives as long as this call.
    match unsafe { (*info).si_code } {
        BUS_MCEERR_AO => {}
        BUS_MCEERR_AR if RUNS.get() => HIT.set(true),
        BUS_MCEERR_AR => tell_and_end(),
        // Something else of ours: it comes again, and is then the end, as without us.
        _ => {
            // SAFETY: the default is no code of ours.
            let _ = unsafe { signal(Signal::SIGBUS, SigHandler::SigDfl) };
        }
    }
}

/// Nothing may be allocated here, nor any lock be waited for: another thread may have it.
fn tell_and_end() -> ! {
    let mut text = [0; 512];
    let mut left = &mut text[..];
    let _ = write!(
        left,
        "\r\nlg: error[{}]: {}\r\n     why: {WHY}\r\n     fix: {}\r\n",
        Code::BadMemory,
        Code::BadMemory.title(),
        Code::BadMemory.fix()
    );
    let length = 512 - left.len();
    terminal::give_back();
    // SAFETY: reads `text`.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), length) };
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(LAUNCHER_ERROR.into()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const INSIDE: &str = "LG_TEST_SIGBUS";

    /// Sends this thread the signal as the kernel does.
    fn raise(code: i32) {
        // SAFETY: zeros are one; the kernel reads it, and lets a thread send itself any.
        unsafe {
            let mut info: siginfo_t = std::mem::zeroed();
            info.si_signo = libc::SIGBUS;
            info.si_code = code;
            let (process, thread) = (libc::getpid(), libc::gettid());
            let call = libc::SYS_rt_tgsigqueueinfo;
            let sent = libc::syscall(call, process, thread, libc::SIGBUS, &raw const info);
            assert_eq!(sent, 0);
        }
    }

    #[test]
    fn bad_memory_is_told() {
        if std::env::var_os(INSIDE).is_some() {
            watch().unwrap();
            raise(BUS_MCEERR_AO);
            assert_eq!(during(|| 7), (7, false));
            assert!(during(|| raise(BUS_MCEERR_AR)).1);
            assert_eq!(during(|| 7), (7, false));
            raise(BUS_MCEERR_AR);
            unreachable!("the end");
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "machine::bad_memory::tests::bad_memory_is_told",
                "--nocapture",
            ])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(LAUNCHER_ERROR.into()), "{text}");
        assert!(
            text.contains("error[LG0056]") && text.contains("fix: "),
            "{text}"
        );
        assert!(!text.contains("panicked"), "{text}");
    }

    #[test]
    fn another_error_is_the_end_as_ever() {
        if std::env::var_os(INSIDE).is_some() {
            watch().unwrap();
            const BUS_ADRERR: i32 = 2;
            raise(BUS_ADRERR);
            raise(BUS_ADRERR);
            unreachable!("the end");
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "machine::bad_memory::tests::another_error_is_the_end_as_ever",
            ])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS));
    }
}
