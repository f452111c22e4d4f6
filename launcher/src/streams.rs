// SPDX-License-Identifier: GPL-2.0
//! Our standard input, output and error, and what they are in the Guest.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::Arc;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use rustix::fs::fstat;
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::end::End;
use crate::keys::{Keys, Wish, HELP};
use crate::terminal::say;
use crate::virtio::bytes::{Input, Output};
use crate::virtio::ports::Stream;

// guest-init knows them by these names.
const STDIN: &str = "lg.stdin";
const STDOUT: &str = "lg.stdout";
const STDERR: &str = "lg.stderr";
/// Standard output and standard error, which are one file.
const OUTPUT: &str = "lg.output";

/// Which of the standard streams have ports of their own. Those that are terminals at our end are
/// the console in the Guest.
pub struct Streams {
    /// Somebody types for a shell, or for a bare guest.
    pub typed: bool,
    /// The names of the ports; that of standard input is first.
    pub names: Vec<&'static str>,
}

impl Streams {
    /// All is the console.
    pub(crate) const TYPED: Self = Self {
        typed: true,
        names: Vec::new(),
    };

    /// Looks at our standard streams. `linux`: it is no bare guest; `command`: nor a shell.
    pub fn of(linux: bool, command: bool) -> Self {
        if !linux {
            // It has no init to open ports, and prints by hypercall.
            return Self::TYPED;
        }
        let stdin = !io::stdin().is_terminal();
        let typed = !stdin && !command;
        // Somebody may keep a record of what they do in a shell.
        let stdout = !typed && !io::stdout().is_terminal();
        let stderr = !typed && !io::stderr().is_terminal();
        let one = stdout && stderr && are_one_file(io::stdout(), io::stderr());
        let names = [
            (stdin, STDIN),
            (one, OUTPUT),
            (stdout && !one, STDOUT),
            (stderr && !one, STDERR),
        ];
        let names = names.into_iter().filter(|(has_port, _)| *has_port);
        Self {
            typed,
            names: names.map(|(_, name)| name).collect(),
        }
    }

    /// Standard input has a port.
    pub fn has_stdin(&self) -> bool {
        self.names.first() == Some(&STDIN)
    }

    /// The ports, in the order of their names. Standard input, if it has one, is `input`.
    pub fn ports(&self, input: &Arc<Input>, ends: &Sender<End>) -> Vec<(&'static str, Stream)> {
        let stream = |name| match name {
            STDIN => Stream::Input(input.clone()),
            STDERR => Stream::Output(output(io::stderr(), ends)),
            _ => Stream::Output(output(io::stdout(), ends)),
        };
        let port = |&name| (name, stream(name));
        self.names.iter().map(port).collect()
    }
}

/// What a command writes to two ports arrives in any order. In a log that has both (`>log 2>&1`) the
/// lines must stay as they were written, so these two share a port.
fn are_one_file(one: impl AsFd, other: impl AsFd) -> bool {
    let Ok(files) = fstat(one).and_then(|one| Ok([one, fstat(other)?])) else {
        // One is closed.
        return false;
    };
    let [one, other] = files.map(|file| (file.st_dev, file.st_ino));
    one == other
}

/// Writes to `stream`. A failure is the end.
pub fn output(stream: impl AsFd + Send + 'static, ends: &Sender<End>) -> Output {
    let ends = ends.clone();
    Box::new(move |bytes| {
        if let Err(error) = write_all(&stream, bytes) {
            // When nobody listens any more, another end was first.
            let _ = ends.send(End::of_output(error));
        }
    })
}

fn write_all(stream: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(stream, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(stream, PollFlags::POLLOUT),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits for a stream that whoever gave it to us, or has it too, made one that nobody waits for:
/// that is a property of the open file.
fn wait_for(stream: &impl AsFd, events: PollFlags) {
    // Who is interrupted tries again.
    let _ = poll(
        &mut [PollFd::new(stream.as_fd(), events)],
        PollTimeout::NONE,
    );
}

/// Passes standard input on to the Guest.
pub struct Keyboard {
    /// Where the Guest gets it from.
    pub input: Arc<Input>,
    /// Says that there is more.
    pub kick: Arc<EventFd>,
}

impl Keyboard {
    /// Reads standard input to its end. On a terminal, some keys are for us.
    pub fn read(&self, is_terminal: bool, ends: &Sender<End>) {
        let mut keys = Keys::default();
        let mut buffer = [0; 4096];
        loop {
            let typed = match io::stdin().read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => &buffer[..count],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for(&io::stdin(), PollFlags::POLLIN);
                    continue;
                }
                Err(error) => {
                    say(&format!("standard input ends here: {error}"));
                    break;
                }
            };
            let mut guest = Vec::new();
            if is_terminal {
                for wish in keys.take(typed, &mut guest) {
                    match wish {
                        Wish::Leave => drop(ends.send(End::Left)),
                        Wish::Help => say(HELP),
                    }
                }
            } else {
                guest.extend(typed);
            }
            self.pass(&guest, is_terminal);
        }
        self.input.end();
        self.kick();
    }

    /// Gives `bytes` to the Guest. When too many wait, keys are dropped, as a tty does, but a file
    /// or a pipe waits.
    fn pass(&self, mut bytes: &[u8], drop_overflow: bool) {
        loop {
            let taken = self.input.offer(bytes);
            bytes = &bytes[taken..];
            if taken != 0 {
                self.kick();
            }
            if bytes.is_empty() || drop_overflow {
                return;
            }
            self.input.wait();
        }
    }

    fn kick(&self) {
        // It can only fail when 2^64 kicks are waiting.
        let _ = self.kick.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_stream_that_does_not_wait_gets_all() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let text: Vec<_> = (0..3_000_000u32).map(|n| n as u8).collect();
        let (ends, end) = mpsc::channel();
        let mut write = output(writer, &ends);
        let written = text.clone();
        let writer = thread::spawn(move || write(&written));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        writer.join().unwrap();
        assert!(read == text);
        assert!(end.try_recv().is_err());
    }

    #[test]
    fn copies_of_a_descriptor_are_one_file() {
        let (one, other) = UnixStream::pair().unwrap();
        assert!(are_one_file(&one, one.try_clone().unwrap()));
        assert!(!are_one_file(one, other));
    }
}
