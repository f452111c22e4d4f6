// SPDX-License-Identifier: GPL-2.0
//! The command's terminal, standard input, output and error.
//!
//! What is a terminal at the Launcher's end is one here: a pseudo-terminal whose other end is a port
//! of the virtio console's. (The console itself would do, but who writes to it has the kernel spin
//! until the Launcher's user has seen it.) What is none has a port as well, and the command gets a
//! pipe from or to it. It could have the port itself; but a port opens only once, and programs do open
//! their streams again, as /dev/stdout and /proc/self/fd/1. Where both outputs are one file there,
//! they are one pipe here, which keeps what is written in order.
//!
//! One port more is for what both sides have to tell each other: to here, the terminal's size,
//! columns and rows of 2 bytes; from here, numbers of 8 bytes: how much of standard input the command
//! has read, and at last that it has ended.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::pipe2;

use crate::machine::Kind;
use crate::machine::{set_size, unread};
use crate::names::{
    CLOSED, COMMAND_ENDED, COMMAND_STATUS, CONSOLE, CONTROL, OUTPUT, STDERR, STDIN, STDOUT,
    TERMINAL,
};
use crate::{open, open_console, Doing, Failure};
/// A pipe has a page for each write that does not fit into the one before.
const PAGE: usize = 4096;
/// What the pipe of standard input holds. The Launcher counts with it: what is here and not read yet
/// must fit into the Launcher's own.
const INPUT_HOLDS: usize = 4 * PAGE;
/// More than this is never on its way through a pseudo-terminal.
const TERMINAL_HOLDS: usize = 64 << 10;

/// The command's ends of its streams.
pub(crate) struct Streams {
    /// The terminal that is to control it.
    pub(crate) terminal: Option<File>,
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    /// Those of standard input, output and error that are closed for the command.
    pub(crate) closed: [bool; 3],
}

/// The streams that are carried between the command's ends and their ports.
#[derive(Default)]
pub(crate) struct Pipes {
    control: Option<File>,
    /// The pseudo-terminal's other end.
    terminal: Option<File>,
    input: Option<Pipe>,
    /// Keys.
    typed: Option<Pipe>,
    outputs: Vec<Pipe>,
}

/// Ends of two channels: bytes are to go from one to the other.
struct Pipe {
    from: File,
    to: File,
}

/// Makes the streams; `ports` says which are ports.
pub(crate) fn open_all(kind: Kind, ports: &[OsString]) -> Result<(Streams, Pipes), Failure> {
    let mut pipes = Pipes::default();
    let has = |name: &str| ports.iter().any(|port| port == name);
    let copy = |file: &File| file.try_clone().doing("copy a descriptor");
    if has(CONTROL) {
        pipes.control = Some(open(&find_port(CONTROL)?)?);
    }
    let terminal = if has(TERMINAL) {
        let port = open(&find_port(TERMINAL)?)?;
        let (inner, outer) = pseudo_terminal().doing("make a terminal")?;
        if let Some(control) = &mut pipes.control {
            // The first that is said there.
            take_size(control, &outer).doing("set the terminal's size")?;
        }
        let pipe = |from: &File, to: &File| {
            Ok::<_, Failure>(Pipe {
                from: copy(from)?,
                to: copy(to)?,
            })
        };
        pipes.typed = Some(pipe(&port, &outer)?);
        pipes.outputs.push(pipe(&outer, &port)?);
        pipes.terminal = Some(outer);
        Some(inner)
    } else if ports.is_empty() || has(CONSOLE) {
        Some(open_console(kind)?)
    } else {
        None
    };
    let closed = CLOSED.map(has);
    let mut stream = |name: &str| {
        let index = [STDIN, STDOUT, STDERR]
            .iter()
            .position(|&stream| stream == name);
        if index.is_some_and(|index| closed[index]) {
            // In its place, until the command starts, is a pipe without another end.
            let (outlet, inlet) = pipe2(OFlag::O_CLOEXEC).doing("make a pipe")?;
            return Ok(if name == STDIN { outlet } else { inlet }.into());
        }
        if !has(name) {
            let terminal = terminal.as_ref();
            return copy(terminal.ok_or_else(|| Failure(format!("there is no {name}")))?);
        }
        let port = open(&find_port(name)?)?;
        let (outlet, inlet) = pipe2(OFlag::O_CLOEXEC).doing("make a pipe")?;
        let (outlet, inlet) = (File::from(outlet), File::from(inlet));
        if name == STDIN {
            let size = FcntlArg::F_SETPIPE_SZ(INPUT_HOLDS as i32);
            fcntl(&inlet, size).doing("set a pipe's size")?;
            pipes.input = Some(Pipe {
                from: port,
                to: inlet,
            });
            return Ok(outlet);
        }
        // Who waits to write there would not hear that nobody takes it any more.
        fcntl(&port, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing("set a port's mode")?;
        pipes.outputs.push(Pipe {
            from: outlet,
            to: port,
        });
        Ok(inlet)
    };
    let stdin = stream(STDIN)?;
    let (stdout, stderr) = if has(OUTPUT) {
        let both = stream(OUTPUT)?;
        (copy(&both)?, both)
    } else {
        (stream(STDOUT)?, stream(STDERR)?)
    };
    let streams = Streams {
        terminal,
        stdin,
        stdout,
        stderr,
        closed,
    };
    Ok((streams, pipes))
}

/// Both ends of a new terminal: the one for programs, and the one for keys and the screen.
fn pseudo_terminal() -> io::Result<(File, File)> {
    let outer = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&outer)?;
    unlockpt(&outer)?;
    let inner = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&outer)?)?;
    let outer = outer.as_fd().try_clone_to_owned()?;
    Ok((inner, outer.into()))
}

/// Waits for the next size of the terminal, and sets it. Its programs are told by the kernel.
fn take_size(mut control: &File, terminal: &File) -> io::Result<()> {
    let mut size = [0; 4];
    control.read_exact(&mut size)?;
    let [columns, columns1, rows, rows1] = size;
    let columns = u16::from_le_bytes([columns, columns1]);
    let rows = u16::from_le_bytes([rows, rows1]);
    set_size(terminal, columns, rows)?;
    Ok(())
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

/// Threads that carry the command's output, as long as this is not [`finish`](Self::finish)ed.
pub(crate) struct Carriers {
    control: Option<File>,
    read: Option<Arc<Inlet>>,
    outputs: Vec<JoinHandle<()>>,
    /// Closed when the command has ended.
    running: File,
}

impl Pipes {
    /// Carries from now on, in threads: one stream that nobody reads must not stop the others.
    pub(crate) fn carry(self) -> Result<Carriers, Failure> {
        let control = self.control;
        let copy = |control: &File| control.try_clone().doing("copy a descriptor");
        // Nobody waits for the ends of these three: the command may leave input unread.
        if let Some(typed) = self.typed {
            spawn(move || typed.carry())?;
        }
        if let (Some(terminal), Some(control)) = (self.terminal, &control) {
            let control = copy(control)?;
            spawn(move || while take_size(&control, &terminal).is_ok() {})?;
        }
        let read = self.input.map(|Pipe { from, to }| {
            let inlet = Arc::new(Inlet(Mutex::new(Written {
                count: 0,
                pipe: Some(to),
            })));
            (from, inlet)
        });
        let read = match (read, &control) {
            (Some((from, inlet)), Some(control)) => {
                let (control, carrier) = (copy(control)?, inlet.clone());
                spawn(move || drop(carrier.carry(from, &control)))?;
                Some(inlet)
            }
            _ => None,
        };
        let (ended, running) = pipe2(OFlag::O_CLOEXEC).doing("make a pipe")?;
        let ended = File::from(ended);
        let output = |output: Pipe| {
            let ended = ended.try_clone().doing("copy a descriptor")?;
            spawn(move || drop(output.carry_until(&ended)))
        };
        Ok(Carriers {
            control,
            read,
            outputs: self
                .outputs
                .into_iter()
                .map(output)
                .collect::<Result<_, _>>()?,
            running: running.into(),
        })
    }
}

impl Carriers {
    /// The command has ended with `status`: tells so, and waits until all that it wrote has arrived.
    pub(crate) fn finish(self, status: i32) {
        if let Some(control) = &self.control {
            // What nobody reads there, the Launcher takes from here on.
            let read = self.read.as_ref().map(|inlet| inlet.last());
            let status = COMMAND_STATUS | u64::from(status as u8);
            let last = read.into_iter().chain([status, COMMAND_ENDED]);
            // If the Launcher does not hear it, it will hear of nothing.
            let _ = last
                .into_iter()
                .try_for_each(|number| tell(control, number));
        }
        drop(self.running);
        for output in self.outputs {
            let _ = output.join();
        }
    }
}

fn tell(mut control: &File, number: u64) -> io::Result<()> {
    control.write_all(&number.to_le_bytes())
}

fn spawn(body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    thread::Builder::new().spawn(body).doing("start a thread")
}

/// Our end of the pipe that is the command's standard input. Nothing is written while somebody counts.
struct Inlet(Mutex<Written>);

struct Written {
    /// The number of bytes that went in.
    count: u64,
    /// An end of the pipe; at first, the one to write to.
    pipe: Option<File>,
}

impl Written {
    /// The number of bytes of it that are read.
    fn read(&self) -> u64 {
        let left = self.pipe.as_ref().map_or(Ok(0), unread).unwrap_or(0);
        self.count.saturating_sub(left)
    }
}

impl Inlet {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries all of `from`, and tells `control` how much of it is read.
    fn carry(&self, mut from: File, control: &File) -> io::Result<()> {
        let Some(mut pipe) = self
            .written()
            .pipe
            .as_ref()
            .map(File::try_clone)
            .transpose()?
        else {
            return Ok(());
        };
        let (mut buffer, mut told) = ([0; PAGE], 0);
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if !has_room(&pipe) {
                return Ok(());
            }
            // There is a page, so it does not wait.
            let mut written = self.written();
            pipe.write_all(&buffer[..count])?;
            written.count += count as u64;
            let read = written.read();
            if read - told >= INPUT_HOLDS as u64 / 2 || read + count as u64 == written.count {
                tell(control, read)?;
                told = read;
            }
        }
        // The command shall see the end, and yet what it has left there shall be counted.
        let name = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        self.written().pipe = File::open(name).ok();
        Ok(())
    }

    /// The number of bytes that are read, now that there will be nothing more.
    fn last(&self) -> u64 {
        let written = self.written();
        let read = written.read();
        // Whoever would write waits for ever.
        std::mem::forget(written);
        read
    }
}

/// Waits until there is room for a page in `pipe`. `false`: nobody will read it any more.
fn has_room(pipe: &File) -> bool {
    let mut files = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
    while poll(&mut files, PollTimeout::NONE) == Err(Errno::EINTR) {}
    files[0].revents() == Some(PollFlags::POLLOUT)
}

impl Pipe {
    /// Carries to the end of `from`, or as long as somebody takes it.
    fn carry(mut self) {
        let _ = io::copy(&mut self.from, &mut self.to);
    }

    /// As [`carry`](Self::carry); but once the other end of `ended` is closed, only what is there
    /// already: what the command leaves behind in the background may keep its output open, and go on
    /// writing. When nobody takes it, this ends, and who writes hears of it.
    fn carry_until(mut self, ended: &File) -> io::Result<()> {
        // As much as a pipe holds.
        let mut buffer = vec![0; 64 << 10];
        let mut left = None;
        loop {
            let patience = match left {
                None => PollTimeout::NONE,
                Some(0) => return Ok(()),
                Some(_) => PollTimeout::ZERO,
            };
            let [bytes, end, gone] = self.look(ended, patience);
            if gone {
                return Ok(());
            }
            if left.is_none() && end {
                left = Some(self.holds());
                continue;
            }
            if !bytes {
                // Nothing waits there any more.
                return Ok(());
            }
            match self.from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.write(&buffer[..count])?;
                    left = left.map(|left| left.saturating_sub(count));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all of `bytes`.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.to.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !has_room(&self.to) {
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until there are bytes or none are left, which are both to be read, or `ended` is closed, or
    /// nobody takes anything any more.
    fn look(&self, ended: &File, patience: PollTimeout) -> [bool; 3] {
        let waited = [
            (&self.from, PollFlags::POLLIN),
            (ended, PollFlags::POLLIN),
            (&self.to, PollFlags::empty()),
        ];
        let mut files = waited.map(|(file, events)| PollFd::new(file.as_fd(), events));
        while poll(&mut files, patience) == Err(Errno::EINTR) {}
        files.map(|file| file.any() != Some(false))
    }

    /// The most bytes that there can be.
    fn holds(&self) -> usize {
        let size = fcntl(&self.from, FcntlArg::F_GETPIPE_SZ);
        size.map_or(TERMINAL_HOLDS, |size| size as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (File, File) {
        let (outlet, inlet) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (outlet.into(), inlet.into())
    }

    #[test]
    fn what_was_written_arrives_though_the_pipe_stays_open() {
        let (from, mut command) = pipe();
        let (mut port, to) = pipe();
        let pipes = Pipes {
            outputs: vec![Pipe { from, to }],
            ..Pipes::default()
        };
        let text = vec![b'x'; 200_000];
        let expected = text.len();
        let carriers = pipes.carry().ok().unwrap();
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            port.read_to_end(&mut text).map(|_| text.len())
        });
        command.write_all(&text).unwrap();
        carriers.finish(3);
        assert_eq!(reader.join().unwrap().unwrap(), expected);
        // Nobody reads any more.
        assert_eq!(
            command.write(b"y").unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn an_output_that_nobody_reads_stops_no_other() {
        let ((from1, mut command1), (_unread, to1)) = (pipe(), pipe());
        let ((from2, mut command2), (mut port2, to2)) = (pipe(), pipe());
        let outputs = vec![
            Pipe {
                from: from1,
                to: to1,
            },
            Pipe {
                from: from2,
                to: to2,
            },
        ];
        let _carriers = Pipes {
            outputs,
            ..Pipes::default()
        }
        .carry()
        .ok()
        .unwrap();
        command1.write_all(&vec![0; 100_000]).unwrap();
        command2.write_all(b"heard").unwrap();
        let mut heard = [0; 5];
        port2.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"heard");
    }

    #[test]
    fn who_writes_for_ever_in_the_background_keeps_nobody() {
        let (from, mut command) = pipe();
        let (mut port, to) = pipe();
        let outputs = vec![Pipe { from, to }];
        let pipes = Pipes {
            outputs,
            ..Pipes::default()
        };
        let carriers = pipes.carry().ok().unwrap();
        let background = thread::spawn(move || while command.write_all(&[0; 100]).is_ok() {});
        let reader = thread::spawn(move || port.read_to_end(&mut Vec::new()));
        carriers.finish(3);
        reader.join().unwrap().unwrap();
        background.join().unwrap();
    }

    /// The numbers that were told, up to the last.
    fn told(control: &mut File) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.last() != Some(&COMMAND_ENDED) {
            let mut number = [0; 8];
            control.read_exact(&mut number).unwrap();
            numbers.push(u64::from_le_bytes(number));
        }
        numbers
    }

    #[test]
    fn input_ends_and_is_told_of() {
        let (from, mut port) = pipe();
        let (mut command, to) = pipe();
        let (mut launcher, control) = pipe();
        fcntl(&to, FcntlArg::F_SETPIPE_SZ(INPUT_HOLDS as i32)).unwrap();
        let pipes = Pipes {
            control: Some(control),
            input: Some(Pipe { from, to }),
            ..Pipes::default()
        };
        let carriers = pipes.carry().ok().unwrap();
        let text = vec![b'x'; 3 * PAGE];
        port.write_all(&text).unwrap();
        let mut read = vec![0; 2 * PAGE + 7];
        command.read_exact(&mut read).unwrap();
        drop(port);
        // To here it has come, though nobody has read it.
        while unread(&command).unwrap() != (PAGE - 7) as u64 {
            thread::yield_now();
        }
        carriers.finish(3);
        let numbers = told(&mut launcher);
        assert_eq!(
            numbers[numbers.len() - 3..],
            [(2 * PAGE + 7) as u64, COMMAND_STATUS | 3, COMMAND_ENDED]
        );
        assert!(numbers.is_sorted());
    }

    #[test]
    fn a_terminal_carries_lines_and_its_size() {
        let (inner, mut outer) = pseudo_terminal().unwrap();
        let (control, mut launcher) = pipe();
        launcher.write_all(&[100, 0, 30, 0]).unwrap();
        take_size(&control, &outer).unwrap();
        outer.write_all(b"typed\r").unwrap();
        let mut line = [0; 6];
        (&inner).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"typed\n");
        let (from, to) = (outer, pipe());
        let (mut screen, to) = to;
        let carriers = Pipes {
            outputs: vec![Pipe { from, to }],
            ..Pipes::default()
        };
        let carriers = carriers.carry().ok().unwrap();
        (&inner).write_all(b"last\n").unwrap();
        carriers.finish(3);
        let mut shown = String::new();
        screen.read_to_string(&mut shown).unwrap();
        assert_eq!(shown, "typed\r\nlast\r\n");
    }
}
