// SPDX-License-Identifier: GPL-2.0
//! VMs come and go by the hundred on CPU 0, in one process and in one process each. The other CPUs, which have nothing to
//! do with them, are left alone: nobody asks them to flush their TLBs.

use lguest_host_tests::{pin_to_cpu, Result, Vm};
use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::ptr;

const GUEST: &str = "/usr/lib/lg/guests/hello";
const ROUNDS: usize = 200;

fn main() -> Result<()> {
    pin_to_cpu(0)?;
    let trace = Trace::begin()?;
    for (what, round) in [
        ("one process", run_and_close as fn() -> Result<()>),
        ("a process each", in_a_process),
    ] {
        trace.clear()?;
        for _ in 0..ROUNDS {
            round()?;
        }
        let flushes = trace.flushes()?;
        println!("{ROUNDS} VMs of {what}: {flushes} flushes on other CPUs");
        // The rest of the kernel does that now and then, too.
        assert!(
            flushes < ROUNDS / 2,
            "each VM disturbs CPUs it never ran on"
        );
    }
    Ok(())
}

fn run_and_close() -> Result<()> {
    let vm = Vm::load(Path::new(GUEST), 4 << 20, "")?;
    // To its first exit: it is in there, and has printed something.
    vm.device.run()?;
    Ok(())
}

fn in_a_process() -> Result<()> {
    // SAFETY: the process has one thread, and the child leaves by `_exit`.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => {
            let status = i32::from(run_and_close().is_err());
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: a child of ours.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(status, 0, "the child");
            Ok(())
        }
    }
}

/// The kernel's record of functions that one CPU has had another one run.
struct Trace;

impl Trace {
    const DIRECTORY: &str = "/sys/kernel/tracing";
    const EVENT: &str = "events/csd/csd_queue_cpu/enable";

    fn begin() -> Result<Self> {
        let directory = CString::new(Self::DIRECTORY)?;
        // SAFETY: takes strings. That it is mounted already is fine.
        unsafe {
            libc::mount(
                c"none".as_ptr(),
                directory.as_ptr(),
                c"tracefs".as_ptr(),
                0,
                ptr::null(),
            )
        };
        Self::write(Self::EVENT, "1")?;
        Ok(Self)
    }

    fn write(file: &str, text: &str) -> Result<()> {
        let path = Path::new(Self::DIRECTORY).join(file);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    fn clear(&self) -> Result<()> {
        Self::write("trace", "")
    }

    /// Those that flush a TLB, and whatever lg asks for.
    fn flushes(&self) -> Result<usize> {
        let trace = fs::read_to_string(Path::new(Self::DIRECTORY).join("trace"))?;
        let calls = trace.lines().filter_map(|line| line.split_once("func="));
        Ok(calls
            .filter(|(_, function)| function.contains("flush") || function.contains("[lg]"))
            .count())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // The Host's next tests do not care.
        let _ = Self::write(Self::EVENT, "0");
    }
}
