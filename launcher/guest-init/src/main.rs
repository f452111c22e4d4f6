// SPDX-License-Identifier: GPL-2.0
//! PID 1 of lg's default Guest: mounts what every program expects, runs one command, ends the Guest
//! with its status.
//!
//! The Launcher says what to run, as whom and where by files in /lg, see [`config`]. In an archive
//! without them a shell runs, as root. The same image boots directly in QEMU, where the last line
//! on the console is `lguest-exit=STATUS`.

mod clock;
mod config;
mod machine;
mod modules;
#[path = "../../src/session/names.rs"]
#[allow(unreachable_pub)] // the Launcher's, too
mod names;
mod network;
mod root;
mod streams;

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{umask, Mode};
use nix::sys::termios;
use nix::sys::wait::{wait, WaitStatus};
use nix::unistd::{fchown, sethostname, setsid, Pid, Uid};

use crate::config::{Config, User};
use crate::machine::Kind;
use crate::streams::Streams;

/// Status for a failure of init itself, as the Launcher's own.
const INIT_FAILED: i32 = 125;

/// The directory of what the Launcher says.
const TOLD: &str = "/lg";

const HOST_NAME: &str = "lguest";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The deed that failed, and the reason.
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
    // Into the kernel's log, which the Launcher shows when something fails. The node is the archive's.
    let log = OpenOptions::new().write(true).open("/dev/kmsg").ok();
    let kind = Kind::told(Path::new(TOLD));
    let status = run(kind, log.as_ref()).unwrap_or_else(|Failure(what)| {
        let what = format!("init: {what}\n");
        if log
            .as_ref()
            .is_none_or(|mut log| log.write_all(what.as_bytes()).is_err())
        {
            eprint!("{what}");
        }
        INIT_FAILED
    });
    machine::end(kind, status, log.as_ref())
}

/// `log` is the kernel's.
fn run(kind: Kind, log: Option<&File>) -> Result<i32, Failure> {
    let config = Config::read(Path::new(TOLD))?;
    if let Some(clock) = &config.clock {
        clock.set()?;
    }
    modules::load(log)?;
    if let Some(root) = &config.root {
        root::enter(root)?;
    }
    let directory = config.directory.as_deref();
    let directory = directory.filter(|directory| !directory.as_os_str().is_empty());
    let root = config.root.as_ref();
    let made = root::furnish(root, &config.shares, directory)?;
    let may_make = root::may_make(root);
    network::complete(may_make)?;
    sethostname(HOST_NAME).doing("set the host name")?;
    network::know_own_name(HOST_NAME, may_make).doing("make the host name known")?;

    let result = run_command(kind, &config, log);
    let _ = std::env::set_current_dir("/");
    made.remove();
    result
}

/// Runs the command, and returns its status.
fn run_command(kind: Kind, config: &Config, log: Option<&File>) -> Result<i32, Failure> {
    let (
        Streams {
            terminal,
            stdin,
            stdout,
            stderr,
            closed,
        },
        pipes,
    ) = streams::open_all(kind, &config.ports)?;
    if let Some(terminal) = &terminal {
        // The session is PID 1's: were it the command's, the terminal would be hung up, and its output
        // lost, at the end.
        machine::take_terminal(terminal.as_fd()).doing("take the terminal")?;
    } else {
        setsid().doing("start a session")?;
    }
    let mut messages = stderr.try_clone().doing("copy a descriptor")?;
    if let Some(user) = &config.user {
        for file in terminal.iter().chain([&stdin, &stdout, &stderr]) {
            fchown(file, Some(Uid::from_raw(user.uid)), None).doing("give away the terminal")?;
        }
        give_disks(user).doing("give away the disks")?;
    }
    go_to(config, log);

    let mut child = command(config);
    if let Some(user) = &config.user {
        let directory = root::runtime_directory(user.uid, user.gid);
        let directory = directory.doing("make the user's directory in /run")?;
        child.env("XDG_RUNTIME_DIR", directory);
    }
    let program = Path::new(child.get_program()).display().to_string();
    child
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("TERM", "linux")
        .envs(&config.environment)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    machine::inherit(&mut child, closed, config.ignored, &config.limits);
    if let Some(user) = &config.user {
        umask(Mode::from_bits_truncate(user.umask));
        machine::run_as(&mut child, user);
    }
    tell_start(log);
    let started = child.spawn();
    // Nobody else has the command's ends of its pipes.
    drop(child);
    // After the fork, where threads would be in the way.
    let carriers = pipes.carry()?;
    let status = match started {
        Ok(child) => wait_for(Pid::from_raw(child.id() as i32))?,
        Err(error) => {
            say(&mut messages, format_args!("cannot run {program}: {error}"));
            status_of(&error)
        }
    };
    drop(messages);
    carriers.finish(status);
    if let Some(terminal) = terminal {
        // The end must not overtake the output. A command may have hung the terminal up: then there
        // is none to wait for.
        let _ = termios::tcdrain(&terminal);
    }
    Ok(status)
}

/// Tells the Launcher, which sees the log and takes the time, that the command starts. Without this it knows
/// that no command was run (`launcher/src/session/log.rs`), so it must be told to whom the log is `quiet`, too.
fn tell_start(log: Option<&File>) {
    if let Some(mut log) = log {
        // Each write is a message.
        let message = format!("<0>{}\n", names::COMMAND_STARTS);
        let _ = log.write_all(message.as_bytes());
    }
}

/// The status of a command that could not be run, as a shell has it.
fn status_of(error: &io::Error) -> i32 {
    match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    }
}

/// Lets `user` open the disks, which are his own files.
fn give_disks(user: &User) -> io::Result<()> {
    for node in fs::read_dir("/dev")? {
        let node = node?;
        if node.file_name().as_bytes().starts_with(b"vd") {
            chown(node.path(), Some(user.uid), None)?;
        }
    }
    Ok(())
}

/// A message for the user. That nobody hears it is no failure.
fn say(messages: &mut File, what: fmt::Arguments<'_>) {
    let _ = writeln!(messages, "init: {what}");
}

/// Makes the command's directory ours, which it inherits. That there is none goes to the log: the
/// command's standard error is its own.
fn go_to(config: &Config, log: Option<&File>) {
    let directory = config.directory.as_deref().unwrap_or(Path::new("/root"));
    if directory.as_os_str().is_empty() && go_nowhere().is_ok() {
        return;
    }
    if let Err(error) = std::env::set_current_dir(directory) {
        if let (Some(_), Some(mut log)) = (&config.directory, log) {
            let directory = directory.display();
            let line = format!("<5>init: in / instead of {directory}: {error}\n");
            let _ = log.write_all(line.as_bytes());
        }
    }
}

/// Makes ours a directory that is gone, as the caller's is: what the command means by names without a
/// beginning must not be other files.
fn go_nowhere() -> io::Result<()> {
    let directory = Path::new("/run/gone");
    fs::create_dir(directory)?;
    std::env::set_current_dir(directory)?;
    fs::remove_dir(directory)
}

/// The program to run: the command, or a shell.
fn command(config: &Config) -> Command {
    if let Some((program, arguments)) = config.command.split_first() {
        let mut child = Command::new(program);
        child.args(arguments);
        return child;
    }
    match config.environment.get(&OsString::from("SHELL")) {
        Some(shell) if is_program(Path::new(shell)) => Command::new(shell),
        _ => {
            let mut shell = Command::new("/bin/sh");
            if config.user.is_none() {
                // Nobody has read the profile yet.
                shell.arg0("-sh");
            }
            shell
        }
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Opens the terminal behind /dev/console, which itself can't be a controlling terminal. Under lg
/// there is none: the kernel's log goes its own way, and the virtio console is the user's alone. By
/// Xen's ABI, the first console is the kernel's.
fn open_console(kind: Kind) -> Result<File, Failure> {
    if kind == Kind::Xen {
        return open(Path::new("/dev/hvc1"));
    }
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
