// SPDX-License-Identifier: GPL-2.0
//! Our standard input, output and error, and what they are in the Guest.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::mpsc::Sender;
use std::sync::Arc;

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

/// Which of the standard streams have ports of their own. Those that are terminals at our end are
/// the console in the Guest.
pub struct Streams {
    /// Somebody types for a shell, or for a bare guest.
    pub typed: bool,
    /// Standard input has a port.
    pub stdin: bool,
    /// Standard output has one.
    pub stdout: bool,
    /// Standard error has one.
    pub stderr: bool,
}

impl Streams {
    /// All is the console.
    pub(crate) const TYPED: Self = Self {
        typed: true,
        stdin: false,
        stdout: false,
        stderr: false,
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
        Self {
            typed,
            stdin,
            stdout: !typed && !io::stdout().is_terminal(),
            stderr: !typed && !io::stderr().is_terminal(),
        }
    }

    /// The names of the ports.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let streams = [
            (self.stdin, STDIN),
            (self.stdout, STDOUT),
            (self.stderr, STDERR),
        ];
        streams
            .into_iter()
            .filter(|(has_port, _)| *has_port)
            .map(|(_, name)| name)
    }

    /// The ports: standard input first, if it has one, which is `input`.
    pub fn ports(&self, input: &Arc<Input>, ends: &Sender<End>) -> Vec<(&'static str, Stream)> {
        let stream = |name| match name {
            STDIN => Stream::Input(input.clone()),
            STDOUT => Stream::Output(output(io::stdout(), ends)),
            _ => Stream::Output(output(io::stderr(), ends)),
        };
        self.names().map(|name| (name, stream(name))).collect()
    }
}

/// Writes to `stream`. A failure is the end.
pub fn output(mut stream: impl Write + Send + 'static, ends: &Sender<End>) -> Output {
    let ends = ends.clone();
    Box::new(move |bytes| {
        if let Err(error) = stream.write_all(bytes).and_then(|()| stream.flush()) {
            // When nobody listens any more, another end was first.
            let _ = ends.send(End::of_output(error));
        }
    })
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
