// SPDX-License-Identifier: GPL-2.0
//! The command's standard input, output and error.
//!
//! What is a terminal at the Launcher's end is the console here. What is none has a port of the
//! virtio console's, and the command gets a pipe from or to it. It could have the port itself; but a
//! port opens only once, and programs do open their streams again, as /dev/stdout and /proc/self/fd/1.
//! Where both outputs are one file there, they are one pipe here, which keeps what is written in order.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::{self, sleep, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::pipe2;

use crate::{open, Doing, Failure};

const STDIN: &str = "lg.stdin";
const STDOUT: &str = "lg.stdout";
const STDERR: &str = "lg.stderr";
/// Both outputs.
const OUTPUT: &str = "lg.output";

/// The command's ends of its streams.
pub(crate) struct Streams {
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
}

/// What is to be carried between the command's pipes and their ports.
#[derive(Default)]
pub(crate) struct Pipes {
    input: Option<Pipe>,
    outputs: Vec<Pipe>,
}

/// Ends of two channels: bytes are to go from one to the other.
struct Pipe {
    from: File,
    to: File,
}

/// Makes the streams; `ports` are the names of the ports that there are.
pub(crate) fn open_all(ports: &[OsString], console: &File) -> Result<(Streams, Pipes), Failure> {
    let mut pipes = Pipes::default();
    let has = |name| ports.iter().any(|port| port == name);
    let mut stream = |name| {
        if !has(name) {
            return console.try_clone().doing("copy the console's descriptor");
        }
        let port = open(&find_port(name)?)?;
        let (outlet, inlet) = pipe2(OFlag::O_CLOEXEC).doing("make a pipe")?;
        let (outlet, inlet) = (File::from(outlet), File::from(inlet));
        if name == STDIN {
            pipes.input = Some(Pipe {
                from: port,
                to: inlet,
            });
            return Ok(outlet);
        }
        pipes.outputs.push(Pipe {
            from: outlet,
            to: port,
        });
        Ok(inlet)
    };
    let stdin = stream(STDIN)?;
    let (stdout, stderr) = if has(OUTPUT) {
        let both = stream(OUTPUT)?;
        (both.try_clone().doing("copy a descriptor")?, both)
    } else {
        (stream(STDOUT)?, stream(STDERR)?)
    };
    let streams = Streams {
        stdin,
        stdout,
        stderr,
    };
    Ok((streams, pipes))
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
    outputs: Vec<JoinHandle<()>>,
    /// Closed when the command has ended.
    running: File,
}

impl Pipes {
    /// Carries from now on, in threads: one stream that nobody reads must not stop the others.
    pub(crate) fn carry(self) -> Result<Carriers, Failure> {
        if let Some(input) = self.input {
            // Nobody waits for its end: the command may leave input unread.
            spawn(move || input.carry())?;
        }
        let (ended, running) = pipe2(OFlag::O_CLOEXEC).doing("make a pipe")?;
        let ended = File::from(ended);
        let output = |output: Pipe| {
            let ended = ended.try_clone().doing("copy a descriptor")?;
            spawn(move || output.carry_until(&ended))
        };
        Ok(Carriers {
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
    /// The command has ended: waits until all that it wrote has arrived.
    pub(crate) fn finish(self) {
        drop(self.running);
        for output in self.outputs {
            let _ = output.join();
        }
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    thread::Builder::new().spawn(body).doing("start a thread")
}

impl Pipe {
    /// Carries to the end of `from`, or as long as somebody takes it.
    fn carry(mut self) {
        let _ = io::copy(&mut self.from, &mut self.to);
    }

    /// As [`carry`](Self::carry); but once the other end of `ended` is closed, only what is there
    /// already: what the command leaves behind in the background may keep its output open.
    fn carry_until(mut self, ended: &File) {
        // As much as a pipe holds.
        let mut buffer = vec![0; 64 << 10];
        while wait_for_bytes(&self.from, ended) {
            let done = match self.from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => self.to.write_all(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if done.is_err() {
                return;
            }
        }
    }
}

/// Waits until `pipe` has bytes or has none left, which are both to be read. `false`: nothing waits
/// there, and `ended` is closed.
fn wait_for_bytes(pipe: &File, ended: &File) -> bool {
    let mut files = [pipe, ended].map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN));
    while poll(&mut files, PollTimeout::NONE) == Err(Errno::EINTR) {}
    files[0].any() != Some(false)
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
            input: None,
            outputs: vec![Pipe { from, to }],
        };
        let text = vec![b'x'; 200_000];
        let expected = text.len();
        let carriers = pipes.carry().ok().unwrap();
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            port.read_to_end(&mut text).map(|_| text.len())
        });
        command.write_all(&text).unwrap();
        carriers.finish();
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
            input: None,
            outputs,
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
    fn input_ends() {
        let (from, mut port) = pipe();
        let (mut command, to) = pipe();
        let input = Some(Pipe { from, to });
        let outputs = Vec::new();
        Pipes { input, outputs }.carry().ok().unwrap().finish();
        port.write_all(b"text").unwrap();
        drop(port);
        let mut text = String::new();
        command.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
}
