// SPDX-License-Identifier: GPL-2.0
//! Our terminal, standard input, output and error, and what they are in the Guest.
//!
//! lg behaves in a pipeline as the command itself would. So no stream waits for another one: each
//! output has a thread that writes it. And of standard input, only what the command has read is used
//! up: the rest is for who has the same pipe or file, the next turn of a shell's loop for one.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::fcntl::{fcntl, FcntlArg};
use nix::poll::PollFlags;
use rustix::fs::fstat;
use rustix::io::Errno;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bytes::{Input, Outlet, Output};
use crate::devices::console::ports::{Stream, To};
use crate::report::end::End;
use crate::report::messages::{self, say};
use crate::session::inherited::was_closed;
use crate::session::keys::{Keys, Wish, HELP};
use crate::session::names::{
    CLOSED, COMMAND_ENDED, COMMAND_STATUS, CONSOLE, CONTROL, OUTPUT, STDERR, STDIN, STDOUT,
    TERMINAL,
};
use crate::session::stdin::{interrupted, state_of, wait_for, Stdin};
use crate::session::terminal::{self, lines_for, shown, Claim, Place};

/// This module connects our terminal and our standard streams with those of the Guest.
#[derive(Debug)]
pub struct Streams {
    /// Our terminal.
    pub place: Option<Place>,
    /// The Guest's terminal is the console, whether we have one or not, and has all streams that have
    /// no ports.
    pub console: bool,
    /// The names of the ports.
    pub names: Vec<&'static str>,
    /// The names of the streams that are closed.
    pub closed: Vec<&'static str>,
}

impl Streams {
    /// Looks at our standard streams. `linux`: it is no bare Guest; `own_init`: of which lg knows
    /// nothing.
    pub fn of(linux: bool, own_init: bool) -> Self {
        let place = Place::find();
        let console = !linux || own_init;
        let (mut names, mut closed) = (Vec::new(), Vec::new());
        // A bare Guest has no init to open ports, and prints by hypercall.
        if linux {
            let is_place = |stream: BorrowedFd| match &place {
                Some(place) => place.is(stream),
                None => false,
            };
            let is_open = [0, 1, 2].map(|stream| !was_closed(stream));
            let stdin = is_open[0] && !is_place(io::stdin().as_fd());
            let stdout = is_open[1] && !is_place(io::stdout().as_fd());
            let stderr = is_open[2] && !is_place(io::stderr().as_fd());
            let one = stdout && stderr && are_one_file(io::stdout(), io::stderr());
            let all = [
                (true, CONTROL),
                (place.is_some() && !console, TERMINAL),
                (stdin, STDIN),
                (one, OUTPUT),
                (stdout && !one, STDOUT),
                (stderr && !one, STDERR),
            ];
            names.extend(all.iter().filter(|(has, _)| *has).map(|(_, name)| *name));
            let named = is_open.into_iter().zip(CLOSED);
            closed.extend(named.filter(|(open, _)| !open).map(|(_, name)| name));
        }
        Self {
            place,
            console,
            names,
            closed,
        }
    }

    /// The words for the Guest's init.
    pub fn told(&self) -> Vec<&'static str> {
        let console = self.console.then_some(CONSOLE);
        let all = self.names.iter().chain(&self.closed).copied();
        all.chain(console).collect()
    }

    /// The number of the port which has the bytes that we read from standard input. Without one, they
    /// go to the console.
    pub fn input_port(&self) -> Option<usize> {
        let names = [STDIN, TERMINAL];
        let port = |name| self.names.iter().position(|&port| port == name);
        let keys = self.place.as_ref().is_some_and(|place| place.keys);
        match keys {
            false => port(names[0]),
            true => port(names[1]),
        }
    }

    /// The size of our terminal, as the control port tells it, and again when it has changed.
    pub fn tell_size(size: (u16, u16), control: &Input) {
        let (columns, rows) = size;
        control.offer(&[columns.to_le_bytes(), rows.to_le_bytes()].concat());
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

/// The outlets to which lg writes.
pub struct Outputs {
    /// The outlet for what the Guest's terminal shows, if there is one.
    pub terminal: Option<Arc<Outlet>>,
    /// Standard output.
    pub stdout: Arc<Outlet>,
    /// Standard error.
    pub stderr: Arc<Outlet>,
    /// Standard error is the terminal.
    pub stderr_is_terminal: bool,
    /// One for each of these that is another.
    pub writers: Vec<Writer>,
}

/// A thread that empties an outlet.
pub struct Writer {
    outlet: Arc<Outlet>,
    file: OwnedFd,
    is_terminal: bool,
    /// The number of the port that feeds it.
    pub port: Option<usize>,
    /// Our own init has that port open, and lets the command hear that nobody takes its output.
    is_heard: bool,
}

/// The first failure to write what a command has put out.
#[derive(Default)]
pub struct Lost(Mutex<Option<Loss>>);

struct Loss {
    error: io::Error,
    /// The command had ended by then.
    late: bool,
}

impl Lost {
    fn note(&self, error: io::Error, late: bool) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_worse = match &*first {
            None => true,
            // That nobody reads is no failure.
            Some(loss) => loss.error.kind() == io::ErrorKind::BrokenPipe,
        };
        if is_worse {
            *first = Some(Loss { error, late });
        }
    }

    /// The end of a run that has come to `end`. A command that nobody reads from has heard of it if it
    /// went on to write, as in any pipeline; and if it had ended by then, it would have. But what should
    /// be in a file, and is not, is missing, whatever the command makes of it.
    pub fn judge(&self, end: End) -> End {
        let lost = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Loss { error, late }) = lost else {
            return end;
        };
        match (end, error.kind()) {
            (End::PoweredOff(0), io::ErrorKind::BrokenPipe) if late => End::of_output(error),
            (end, io::ErrorKind::BrokenPipe) => end,
            (End::PoweredOff(_) | End::Restart, _) => End::of_output(error),
            (end, _) => end,
        }
    }
}

impl Outputs {
    /// Outlets for `streams`. What is one file is one outlet.
    ///
    /// # Errors
    ///
    /// There are too many descriptors.
    pub fn of(streams: &Streams) -> io::Result<Self> {
        let mut writers = Vec::new();
        let mut add = |file: BorrowedFd, is_terminal, names: &[&str]| {
            let outlet = Arc::<Outlet>::default();
            writers.push(Writer {
                outlet: outlet.clone(),
                file: file.try_clone_to_owned()?,
                is_terminal,
                port: (streams.names.iter()).position(|name| names.contains(name)),
                is_heard: !is_terminal && !streams.console,
            });
            io::Result::Ok(outlet)
        };
        let is_place = |stream: BorrowedFd| match &streams.place {
            Some(place) => place.is(stream),
            None => false,
        };
        let (out, err) = (io::stdout(), io::stderr());
        let terminal = match &streams.place {
            Some(place) => Some(add(place.output().as_fd(), true, &[TERMINAL])?),
            None => None,
        };
        let stdout = match &terminal {
            Some(terminal) if is_place(out.as_fd()) => terminal.clone(),
            _ => add(out.as_fd(), false, &[STDOUT, OUTPUT])?,
        };
        let stderr_is_terminal = is_place(err.as_fd());
        let stderr = match &terminal {
            Some(terminal) if stderr_is_terminal => terminal.clone(),
            _ if are_one_file(&out, &err) => stdout.clone(),
            _ => add(err.as_fd(), false, &[STDERR])?,
        };
        Ok(Self {
            terminal,
            stdout,
            stderr,
            stderr_is_terminal,
            writers,
        })
    }
}

impl Outputs {
    /// All outlets, and where each goes.
    ///
    /// # Errors
    ///
    /// There are too many descriptors.
    pub fn files(&self) -> io::Result<Vec<(Arc<Outlet>, OwnedFd)>> {
        let file = |writer: &Writer| Ok((writer.outlet.clone(), writer.file.try_clone()?));
        self.writers.iter().map(file).collect()
    }

    /// Standard output is the terminal.
    pub fn stdout_is_terminal(&self) -> bool {
        (self.terminal.as_ref()).is_some_and(|terminal| Arc::ptr_eq(terminal, &self.stdout))
    }
}

impl Writer {
    /// Its outlet.
    pub fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    /// Writes what comes, as long as somebody takes it. `on_room`: there is room for more, or nobody takes
    /// anything. That is the end of the run, unless the command hears of it: then `lost` has it.
    pub fn write(self, ends: &Sender<End>, lost: &Lost, on_room: impl Fn()) {
        let write = |bytes: &[u8]| match self.is_terminal {
            // Whoever hangs up has no need of what is to be shown, and its end is another's affair.
            true => match write_all(&self.file, &shown(bytes)) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(()),
                result => result,
            },
            false => write_all(&self.file, bytes),
        };
        let is_heard = self.is_heard && self.port.is_some();
        let write = |bytes: &[u8]| {
            let result = write(bytes);
            if let (Err(error), true) = (&result, is_heard) {
                // Before the command hears of it, and ends.
                lost.note(copy_of(error), self.outlet.has_last());
            }
            result
        };
        let error = self.outlet.empty(write, on_room);
        if !is_heard {
            // When nobody listens any more, another end was first.
            let _ = ends.send(End::of_output(error));
        }
    }
}

/// Takes what the Guest prints by hypercall, or a driver that cannot wait: who prints waits.
pub fn patient(outlet: &Arc<Outlet>, is_terminal: bool) -> Output {
    let outlet = outlet.clone();
    Box::new(move |text| outlet.add_patiently(&lines_for(is_terminal, text)))
}

/// lg is about to end. What nobody reads must not keep it, nor get lost: if `file` is a pipe, it gets
/// room for all of it, and keeps it for whoever reads later.
pub fn let_go(outlet: &Outlet, file: impl AsFd) {
    let pending = outlet.pending();
    if pending == 0 {
        return;
    }
    // Nothing else knows of sizes. A pipe has pages, of which the first and the last may not be full.
    if let Ok(size) = fcntl(&file, FcntlArg::F_GETPIPE_SZ) {
        let wanted = size as usize + pending + (2 << 12);
        if let Ok(wanted) = i32::try_from(wanted) {
            // Where that is more than the user may have, whoever reads decides.
            let _ = fcntl(&file, FcntlArg::F_SETPIPE_SZ(wanted));
        }
    }
}

/// From now on, messages go by `outlet`, which somebody empties to standard error.
pub fn say_by(outlet: Arc<Outlet>, on_terminal: bool) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let road = outlet.clone();
    let add = move |text: &str| road.add(&lines_for(on_terminal, text.as_bytes()));
    messages::go_by(add, move || {
        let_go(&outlet, io::stderr());
        outlet.wait(Some(PATIENCE));
    });
}

fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
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

/// Passes our input on to the Guest.
pub struct Keyboard {
    /// The source from which the Guest gets it.
    pub input: Arc<Input>,
    /// Says that there is more.
    pub kick: Arc<EventFd>,
}

impl Keyboard {
    /// Reads `stdin` to its end.
    pub fn read(&self, stdin: &Stdin) {
        self.input.wait_until_wanted();
        let result = stdin.read(|bytes| match bytes {
            [] => self.end(),
            bytes => self.pass(bytes, false),
        });
        if let Err(error) = result {
            say(&format!("standard input ends here: {error}"));
        }
        self.end();
    }

    /// Reads the keys of `terminal` to its end, as long as they are for us: some even are for lg.
    /// `look`: we may be in its foreground now.
    pub fn read_keys(&self, terminal: Claim, look: &EventFd, ends: &Sender<End>) {
        if let Err(error) = self.read_terminal(terminal, look, ends) {
            say(&format!("the terminal ends here: {error}"));
        }
        self.end();
    }

    fn read_terminal(&self, terminal: Claim, look: &EventFd, ends: &Sender<End>) -> io::Result<()> {
        let mut stdin = io::stdin();
        let epoll = Epoll::new()?;
        // By edge: keys may be for somebody else, who takes his time.
        let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, stdin.as_raw_fd(), edge)?;
        let level = EpollEvent::new(EventSet::IN, 1);
        epoll.ctl(ControlOperation::Add, look.as_raw_fd(), level)?;
        let mut events = [EpollEvent::default(); 2];
        let (mut keys, mut buffer) = (Keys::default(), [0; 4096]);
        if terminal.is_shared() {
            // By then, the other programs have looked at its modes. What is typed meanwhile waits.
            self.input.wait_until_wanted();
        }
        let mut ours = terminal.take();
        // Until we are told to go on, the terminal is not to be touched, although it may look like ours:
        // the shell has not heard of the stop yet.
        let mut stopped = false;
        loop {
            // Where somebody else has taken it meanwhile, the keys are for them.
            ours = ours && (!terminal.is_shared() || terminal.take());
            while ours && state_of(&stdin).intersects(PollFlags::POLLIN | PollFlags::POLLHUP) {
                let typed = match stdin.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => &buffer[..count],
                    Err(error) => match error.kind() {
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => continue,
                        _ => return Err(error),
                    },
                };
                let mut guest = Vec::new();
                for wish in keys.take(typed, &mut guest) {
                    match wish {
                        Wish::Leave => drop(ends.send(End::Left)),
                        Wish::Help => say(HELP),
                        Wish::Suspend => {
                            terminal::suspend();
                            (ours, stopped) = (false, true);
                        }
                    }
                }
                self.pass(&guest, true);
            }
            epoll.wait(-1, &mut events).or_else(interrupted)?;
            // Whatever woke us: once it is read, nobody reminds us of it.
            let looks = look.read().is_ok();
            stopped &= !looks;
            if looks || !(ours || stopped) {
                ours = terminal.take();
            }
        }
    }

    fn end(&self) {
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

/// The ports of `streams`, in the order of their names.
pub fn ports(
    streams: &Streams,
    outputs: &Outputs,
    input: &Arc<Input>,
    control: &Arc<Input>,
    stdin: &Arc<Stdin>,
    status: &Arc<OnceLock<u8>>,
) -> Vec<(&'static str, Stream)> {
    let keys = streams.place.as_ref().is_some_and(|place| place.keys);
    let outlet = |outlet: &Arc<Outlet>| To::Outlet(outlet.clone());
    let stream = |name: &str| {
        let (input, output) = match name {
            CONTROL => {
                let outlets = outputs.writers.iter().map(Writer::outlet).cloned();
                let taker = To::Taker(control_messages(
                    outlets.collect(),
                    stdin.clone(),
                    status.clone(),
                ));
                (Some(control.clone()), taker)
            }
            TERMINAL => {
                let shown = outputs.terminal.as_ref().map_or(To::Nobody, outlet);
                (keys.then(|| input.clone()), shown)
            }
            STDIN => (Some(input.clone()), To::Nobody),
            STDERR => (None, outlet(&outputs.stderr)),
            _ => (None, outlet(&outputs.stdout)),
        };
        Stream { input, output }
    };
    let port = |&name| (name, stream(name));
    streams.names.iter().map(port).collect()
}

/// Takes what guest-init says on the control port: numbers of 8 bytes. The first status that it tells counts.
fn control_messages(
    outlets: Vec<Arc<Outlet>>,
    stdin: Arc<Stdin>,
    status: Arc<OnceLock<u8>>,
) -> Output {
    let mut message = Vec::new();
    Box::new(move |bytes| {
        for &byte in bytes {
            message.push(byte);
            let Ok(number) = message[..].try_into().map(u64::from_le_bytes) else {
                continue;
            };
            message.clear();
            match number {
                COMMAND_ENDED => outlets.iter().for_each(|outlet| outlet.take_all()),
                told if told >= COMMAND_STATUS => {
                    let _ = status.set(told as u8);
                }
                count => stdin.is_read(count),
            }
        }
    })
}

/// Waits until what the Guest has written is out; with `patience`, as long as somebody reads within
/// such a time.
pub fn finish(outlets: &[(Arc<Outlet>, OwnedFd)], patience: Option<Duration>) {
    for (outlet, file) in outlets {
        let_go(outlet, file);
    }
    for (outlet, _) in outlets {
        outlet.wait(patience);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use std::fs::File;

    use nix::poll::{poll, PollFd, PollTimeout};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::session::stdin::{pipe, Source};

    fn writer(file: impl Into<OwnedFd>) -> (Arc<Outlet>, Writer) {
        let outlet = Arc::<Outlet>::default();
        let writer = Writer {
            outlet: outlet.clone(),
            file: file.into(),
            is_terminal: false,
            port: None,
            is_heard: false,
        };
        (outlet, writer)
    }

    #[test]
    fn a_stream_that_does_not_wait_gets_all() {
        let (mut reader, end) = UnixStream::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        let text: Vec<_> = (0..3_000_000u32).map(|n| n as u8).collect();
        let (ends, end_of_run) = mpsc::channel();
        let (outlet, writer) = writer(end);
        outlet.add(&text);
        thread::spawn(move || writer.write(&ends, &Lost::default(), || {}));
        let mut read = vec![0; text.len()];
        reader.read_exact(&mut read).unwrap();
        assert!(read == text);
        assert!(outlet.wait(None));
        assert!(end_of_run.try_recv().is_err());
    }

    #[test]
    fn a_pipe_keeps_what_nobody_reads() {
        let (mut reader, end) = pipe().unwrap();
        let (outlet, writer) = writer(end.try_clone().unwrap());
        let (ends, _end_of_run) = mpsc::channel();
        thread::spawn(move || writer.write(&ends, &Lost::default(), || {}));
        let text: Vec<_> = (0..300_000u32).map(|n| n as u8).collect();
        outlet.add(&text);
        // Somebody waits already for a reader.
        while state_of_writer(&end) {
            thread::yield_now();
        }
        let_go(&outlet, &end);
        assert!(outlet.wait(None));
        let mut read = vec![0; text.len()];
        reader.read_exact(&mut read).unwrap();
        assert!(read == text);
    }

    fn state_of_writer(pipe: &File) -> bool {
        let mut files = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
        poll(&mut files, PollTimeout::ZERO).unwrap() != 0
    }

    #[test]
    fn who_has_no_reader_any_more_waits_for_none() {
        let (reader, end) = pipe().unwrap();
        drop(reader);
        let (outlet, writer) = writer(end);
        let (ends, end_of_run) = mpsc::channel();
        outlet.add(b"lost");
        writer.write(&ends, &Lost::default(), || {});
        assert!(matches!(end_of_run.recv().unwrap(), End::Signal(_)));
        outlet.add_patiently(&[0; 1 << 20]);
        assert!(outlet.wait(None) && outlet.has_room());
    }

    #[test]
    fn a_command_hears_that_its_output_is_lost() {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let unread = || pipe().unwrap().1;
        let status_after = |file: File, last: bool, status| {
            let (outlet, writer) = writer(file);
            let writer = Writer {
                port: Some(0),
                is_heard: true,
                ..writer
            };
            let (ends, end_of_run) = mpsc::channel();
            let lost = Lost::default();
            if last {
                outlet.take_all();
            }
            outlet.add(b"text");
            let heard = Cell::new(0);
            writer.write(&ends, &lost, || heard.set(heard.get() + 1));
            assert_eq!(heard.get(), 1);
            assert!(end_of_run.try_recv().is_err());
            lost.judge(End::PoweredOff(status)).status()
        };
        for last in [false, true] {
            assert_eq!(status_after(full(), last, 0), 125);
            assert_eq!(status_after(full(), last, 7), 125);
            assert_eq!(status_after(unread(), last, 141), 141);
        }
        assert_eq!(status_after(unread(), false, 0), 0);
        assert_eq!(status_after(unread(), true, 0), 141);
        assert_eq!(Lost::default().judge(End::PoweredOff(7)).status(), 7);
    }

    #[test]
    fn control_messages_come_in_any_pieces() {
        let stdin = Arc::new(Stdin {
            source: Source::Stream,
            used: Mutex::default(),
            changed: EventFd::new(EFD_NONBLOCK).unwrap(),
        });
        stdin.send(100);
        let outlet = Arc::<Outlet>::default();
        outlet.add(&[0; 1 << 16]);
        let status = Arc::<OnceLock<u8>>::default();
        let mut take = control_messages(vec![outlet.clone()], stdin.clone(), status.clone());
        let read = || stdin.used.lock().unwrap().read;
        take(&70u64.to_le_bytes()[..5]);
        assert_eq!(read(), 0);
        take(&70u64.to_le_bytes()[5..]);
        assert_eq!(read(), 70);
        // A Guest that lies has read all, or no less than before.
        take(&[500u64.to_le_bytes(), 3u64.to_le_bytes()].concat());
        assert_eq!(read(), 100);
        take(
            &[COMMAND_STATUS | 7, COMMAND_STATUS]
                .map(u64::to_le_bytes)
                .concat(),
        );
        assert_eq!(status.get(), Some(&7));
        assert!(!outlet.has_room());
        take(&COMMAND_ENDED.to_le_bytes());
        assert!(outlet.has_room());
    }

    #[test]
    fn copies_of_a_descriptor_are_one_file() {
        let (one, other) = UnixStream::pair().unwrap();
        assert!(are_one_file(&one, one.try_clone().unwrap()));
        assert!(!are_one_file(one, other));
    }

    #[test]
    fn outlets_keep_their_order() {
        let (mut reader, end) = pipe().unwrap();
        let (outlet, writer) = writer(end);
        let (ends, _end_of_run) = mpsc::channel();
        outlet.add(b"one ");
        thread::spawn(move || writer.write(&ends, &Lost::default(), || {}));
        outlet.add_patiently(b"two");
        assert!(outlet.wait(None));
        let mut read = [0; 7];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one two");
    }
}
