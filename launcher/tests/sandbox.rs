// SPDX-License-Identifier: GPL-2.0
//! The sandbox, from inside: each test runs itself once more, in a process that goes in there and
//! tries something.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use launcher::sandbox::{self, Grant};
use nix::libc;
use nix::unistd::{getpid, getppid, Pid};

const SIGSYS: i32 = 31;
const INSIDE: &str = "LG_TEST_INSIDE";

/// Runs the test `name` again, as the process that goes into the sandbox. It has an empty directory,
/// which goes when it has ended.
fn inside(name: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, directory.path())
        .output()
        .unwrap()
}

/// The directory, in that process.
fn is_inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

fn confined(output: &Output) -> String {
    format!("{output:?}")
}

#[test]
fn files_elsewhere_are_gone_and_open_ones_stay() {
    if let Some(dir) = is_inside() {
        let open = File::open("/proc/thread-self/status").unwrap();
        fs::write(dir.join("file"), "shared").unwrap();
        let grants = [Grant {
            directory: dir.clone(),
            write: false,
        }];
        let entered = sandbox::enter(&grants, None).unwrap();
        assert_eq!(
            fs::read_to_string(dir.join("file")).unwrap(),
            "shared",
            "granted"
        );
        let status = std::io::read_to_string(open).unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        if entered.landlock {
            File::open("/etc/passwd").unwrap_err();
            fs::write(dir.join("file"), "changed").unwrap_err();
            fs::remove_file(dir.join("file")).unwrap_err();
            println!("confined");
        }
        return;
    }
    let output = inside("files_elsewhere_are_gone_and_open_ones_stay");
    assert!(output.status.success(), "{}", confined(&output));
    let said = String::from_utf8_lossy(&output.stdout).contains("confined");
    assert!(said || !sandbox::has_landlock(), "{}", confined(&output));
}

#[test]
fn what_may_be_written_is_writable() {
    if let Some(dir) = is_inside() {
        let grants = [Grant {
            directory: dir.clone(),
            write: true,
        }];
        sandbox::enter(&grants, None).unwrap();
        fs::write(dir.join("file"), "made").unwrap();
        fs::remove_file(dir.join("file")).unwrap();
        return;
    }
    let output = inside("what_may_be_written_is_writable");
    assert!(output.status.success(), "{}", confined(&output));
}

/// The end of a process that makes a forbidden call: our own status, and the reason.
fn stopped(output: &Output) {
    assert_eq!(output.status.code(), Some(125), "{}", confined(output));
    assert_eq!(output.status.signal(), None);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("lg: error[LG0026]: system call"), "{text}");
    assert!(text.contains("why: ") && text.contains("fix: "), "{text}");
}

#[test]
fn no_network() {
    if is_inside().is_some() {
        sandbox::enter(&[], None).unwrap();
        let _ = TcpStream::connect("127.0.0.1:1");
        return;
    }
    stopped(&inside("no_network"));
}

#[test]
fn no_signals_for_other_processes() {
    if is_inside().is_some() {
        sandbox::enter(&[], None).unwrap();
        let none = |pid: Pid| {
            let pid = pid.as_raw();
            // SAFETY: takes numbers only, and no signal is sent.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) }
        };
        assert_eq!(none(getpid()), 0);
        println!("still here");
        none(getppid());
        return;
    }
    let output = inside("no_signals_for_other_processes");
    stopped(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("still here"));
}

#[test]
fn no_programs() {
    if is_inside().is_some() {
        sandbox::enter(&[], None).unwrap();
        let _ = Command::new("/bin/true").status();
        return;
    }
    let output = inside("no_programs");
    // The C library starts programs with all signals blocked, so that nothing can be said there.
    assert_eq!(
        output.status.signal(),
        Some(SIGSYS),
        "{}",
        confined(&output)
    );
}
