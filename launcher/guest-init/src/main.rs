// SPDX-License-Identifier: GPL-2.0
//! PID 1 of lg's default guest: mounts what every program expects, runs one command, ends the guest
//! with its status.
//!
//! The Launcher says what to run by files in /lg, see `launcher/src/guest.rs`: `cmd`, the
//! command, its words ended by NUL (absent: a shell); `env`, likewise, additions to the
//! environment; `shares`, what to mount below /mnt. The same image boots directly in QEMU, where the last line on the console is
//! `lguest-exit=STATUS`.

mod machine;
mod network;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{mount, MsFlags};
use nix::sys::termios;
use nix::sys::wait::{wait, WaitStatus};
use nix::unistd::{sethostname, Pid};

/// Status for a failure of init itself, as the Launcher's own.
const INIT_FAILED: i32 = 125;

const MOUNTS: [(&str, &str, Option<&str>); 7] = [
    ("proc", "/proc", None),
    ("sysfs", "/sys", None),
    ("devtmpfs", "/dev", None),
    ("devpts", "/dev/pts", Some("gid=5,mode=620")),
    ("tmpfs", "/dev/shm", Some("mode=1777")),
    ("tmpfs", "/tmp", Some("mode=1777")),
    ("tmpfs", "/run", Some("mode=755")),
];

/// What could not be done, and why.
struct Failure(String);

/// Names what failed with an error.
trait Doing<T> {
    fn doing(self, what: impl AsRef<str>) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl AsRef<str>) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("cannot {}: {error}", what.as_ref())))
    }
}

fn main() {
    let status = run().unwrap_or_else(|Failure(what)| {
        // Into the kernel's log, which the Launcher shows when something fails.
        let what = format!("init: {what}\n");
        if fs::write("/dev/kmsg", &what).is_err() {
            eprint!("{what}");
        }
        INIT_FAILED
    });
    machine::end(status)
}

fn run() -> Result<i32, Failure> {
    mount_all()?;
    mount_shares()?;
    network::complete()?;
    sethostname("lguest").doing("set the host name")?;

    let environment = environment()?;
    let command = words("/lg/cmd")?;
    let console = open_console()?;
    // The session is PID 1's: were it the command's, the terminal would be hung up, and its output
    // lost, at the end.
    machine::take_terminal(console.as_fd()).doing("take the console")?;

    let mut child = match command.split_first() {
        None => {
            let mut shell = Command::new("/bin/sh");
            shell.arg0("-sh");
            shell
        }
        Some((program, arguments)) => {
            let mut child = Command::new(program);
            child.args(arguments);
            child
        }
    };
    let program = Path::new(child.get_program()).display().to_string();
    child
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("TERM", "linux")
        .envs(environment)
        .current_dir("/root")
        .stdin(stream("lg.stdin", &console)?)
        .stdout(stream("lg.stdout", &console)?)
        .stderr(stream("lg.stderr", &console)?);
    let result = match child.spawn() {
        Ok(child) => wait_for(Pid::from_raw(child.id() as i32)),
        Err(error) => {
            eprintln!("init: cannot run {program}: {error}");
            // What a shell says.
            Ok(if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            })
        }
    };
    // The end must not overtake the output.
    termios::tcdrain(&console).doing("wait for the console")?;
    result
}

fn mount_all() -> Result<(), Failure> {
    for (kind, target, options) in MOUNTS {
        fs::create_dir_all(target).doing(format!("make {target}"))?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
            .doing(format!("mount {target}"))?;
    }
    Ok(())
}

/// Mounts what the Launcher shares.
fn mount_shares() -> Result<(), Failure> {
    for share in words("/lg/shares")?.chunks(2) {
        let tag = share[0].as_os_str();
        let flags = match share.get(1) {
            Some(mode) if mode == "ro" => MsFlags::MS_RDONLY,
            _ => MsFlags::empty(),
        };
        let target = Path::new("/mnt").join(tag);
        fs::create_dir_all(&target).doing(format!("make {}", target.display()))?;
        mount(Some(tag), &target, Some("virtiofs"), flags, None::<&str>)
            .doing(format!("mount {}", target.display()))?;
    }
    Ok(())
}

/// The words of a file in /lg; none if there is no such file.
fn words(path: &str) -> Result<Vec<OsString>, Failure> {
    match fs::read(path) {
        Ok(bytes) => {
            let words = bytes
                .strip_suffix(b"\0")
                .unwrap_or(&bytes)
                .split(|&byte| byte == 0);
            Ok(words
                .map(|word| OsString::from_vec(word.to_vec()))
                .collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).doing(format!("read {path}")),
    }
}

fn environment() -> Result<BTreeMap<OsString, OsString>, Failure> {
    let split = |word: OsString| {
        let bytes = word.as_bytes();
        let equals = bytes
            .iter()
            .position(|&byte| byte == b'=')
            .unwrap_or(bytes.len());
        let value = bytes.get(equals + 1..).unwrap_or_default();
        (
            OsStr::from_bytes(&bytes[..equals]).into(),
            OsStr::from_bytes(value).into(),
        )
    };
    Ok(words("/lg/env")?.into_iter().map(split).collect())
}

/// Opens the terminal behind /dev/console, which itself can't be a controlling terminal. Under lg
/// there is none: the kernel's log goes its own way, and the virtio console is the user's alone.
fn open_console() -> Result<File, Failure> {
    let active = fs::read_to_string("/sys/class/tty/console/active").doing("find the console")?;
    let name = active.split_whitespace().last().unwrap_or("hvc0");
    open(&Path::new("/dev").join(name))
}

fn open(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .doing(format!("open {}", path.display()))
}

/// A standard stream of the command: the port of this name if the Launcher has one, otherwise the
/// console. What is no terminal at the Launcher's end must be none here.
fn stream(name: &str, console: &File) -> Result<File, Failure> {
    if words("/lg/ports")?.iter().any(|word| word == name) {
        open(&find_port(name)?)
    } else {
        console.try_clone().doing("copy the console's descriptor")
    }
}

/// The device of a port, whose driver announces it some time after it has started.
fn find_port(name: &str) -> Result<PathBuf, Failure> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        for port in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
        {
            if fs::read_to_string(port.path().join("name")).is_ok_and(|found| found.trim() == name)
            {
                return Ok(Path::new("/dev").join(port.file_name()));
            }
        }
        sleep(Duration::from_millis(1));
    }
    Err(Failure(format!("the console has no port {name}")))
}

/// Reaps whatever ends, until `child` does. Its exit status, or 128 and the signal that killed it.
fn wait_for(child: Pid) -> Result<i32, Failure> {
    loop {
        match wait().doing("wait for the command")? {
            WaitStatus::Exited(pid, status) if pid == child => return Ok(status),
            WaitStatus::Signaled(pid, signal, _) if pid == child => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}
