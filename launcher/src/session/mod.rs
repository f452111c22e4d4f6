// SPDX-License-Identifier: GPL-2.0
//! The user's side of a run: terminal, streams, keys, signals and the time that is given.
//!
//! It makes the two devices that end here, the console and the ports of the streams, and is told where
//! in the machine they are: [`Session::start`]. One thread reads standard input, one writes each output,
//! one waits for signals, one for the end of the time. Each can report an [`End`].

pub(crate) mod deadline;
pub mod inherited;
pub mod keys;
pub mod log;
pub mod names;
pub(crate) mod signals;
pub mod stdin;
pub mod streams;
pub mod terminal;
mod watcher;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use crate::devices::bytes::{Input, Outlet, Output};
use crate::devices::console::ports::{self, Ports};
use crate::devices::console::{self, Console, WindowSize};
use crate::devices::virtio::Virtio;
use crate::report::end::End;
use crate::report::messages::{self, say};
use crate::report::system::setup;
use crate::report::Error;
use crate::session::log::KernelLog;
use crate::session::signals::{Signals, Window};
use crate::session::stdin::Stdin;
use crate::session::streams::{patient, Keyboard, Lost, Outputs, Streams};
use crate::session::terminal::Terminal;

/// The time that a reader of a run's output has, once the run is cut off, to take some more of it:
/// long for a program, short for a person who waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// The user's side of a machine that does not run yet.
pub(crate) struct Session {
    streams: Arc<Streams>,
    terminal: Option<Terminal>,
    stdin: Arc<Stdin>,
    outputs: Outputs,
    /// The bytes that are typed, or come by standard input.
    input: Arc<Input>,
    /// The words for guest-init.
    control: Arc<Input>,
    /// The command's status, when guest-init has told it.
    status: Arc<OnceLock<u8>>,
    /// That of our terminal, if there is one.
    size: Option<Arc<WindowSize>>,
}

impl Session {
    /// Opens what `streams` has found. To be called before there is RAM, of which the process that
    /// watches the terminal must have nothing.
    ///
    /// # Errors
    ///
    /// The terminal cannot be watched, or there are too many descriptors.
    pub(crate) fn open(streams: &Arc<Streams>) -> Result<Self, Error> {
        let place = streams.place.as_ref();
        let terminal = place.map(Terminal::watch).transpose();
        let terminal = terminal.map_err(setup("the terminal"))?.flatten();
        let control = Arc::<Input>::default();
        let size = place.map(|place| {
            let size = Arc::<WindowSize>::default();
            let now = terminal::window_size(place.output()).unwrap_or_default();
            size.set(now.0, now.1);
            Streams::tell_size(now, &control);
            size
        });
        Ok(Self {
            streams: streams.clone(),
            terminal,
            stdin: Arc::new(Stdin::find().map_err(setup("the streams"))?),
            outputs: Outputs::of(streams).map_err(setup("the streams"))?,
            input: Arc::default(),
            control,
            status: Arc::default(),
            size,
        })
    }

    /// The console.
    pub(crate) fn console(&self) -> Console {
        // What has a port is not for the console.
        let typed = match self.streams.input_port() {
            Some(_) => Arc::default(),
            None => self.input.clone(),
        };
        let shown = match (self.streams.console, &self.outputs.terminal) {
            (true, _) => patient(&self.outputs.stdout, false),
            (false, Some(terminal)) => {
                let terminal = terminal.clone();
                // Nobody has a reason to write there, and so nobody waits.
                Box::new(move |text: &[u8]| {
                    terminal.offer(text);
                })
            }
            (false, None) => Box::new(|_: &[u8]| {}) as Output,
        };
        Console::new(typed, self.size.clone(), shown)
    }

    /// The ports of the streams, if there are some.
    pub(crate) fn ports(&self) -> Option<Ports> {
        let (input, control) = (&self.input, &self.control);
        let (streams, outputs) = (&self.streams, &self.outputs);
        let ports = streams::ports(streams, outputs, input, control, &self.stdin, &self.status);
        (!ports.is_empty()).then(|| Ports::new(ports))
    }

    /// The place of the command's status, which guest-init tells on the control port.
    pub(crate) fn status(&self) -> Arc<OnceLock<u8>> {
        self.status.clone()
    }

    /// Takes what a Guest prints by hypercall: the log of a kernel, all that a bare Guest says.
    pub(crate) fn printed(&self, linux: bool, log: &KernelLog, verbose: bool) -> Output {
        let outputs = &self.outputs;
        let messages = || (outputs.stderr.clone(), outputs.stderr_is_terminal);
        match linux {
            true => log.output(verbose.then(messages)),
            false => patient(&outputs.stdout, outputs.stdout_is_terminal()),
        }
    }

    /// The process that watches the terminal.
    pub(crate) fn watcher(&self) -> Option<Pid> {
        self.terminal.as_ref().map(Terminal::watcher)
    }

    /// Takes the signals that are for the user's side from this thread and those that it starts.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(crate) fn take_signals(&self) -> Result<Signals, Error> {
        Signals::take(self.terminal.is_some()).map_err(setup("signals"))
    }

    /// Starts its threads. `console` and `ports` are the devices that it has made. `shell`: what runs
    /// is the user's to leave.
    ///
    /// # Errors
    ///
    /// There can be no thread, or too many descriptors are open.
    pub(crate) fn start(
        self,
        signals: Signals,
        console: &Arc<Virtio>,
        ports: Option<&Arc<Virtio>>,
        shell: bool,
        ends: &Sender<End>,
    ) -> Result<Open, Error> {
        let keyboard = self.keyboard(console, ports);
        let window = self.window(console, ports)?;
        let outlets = self.outputs.files().map_err(setup("the streams"))?;
        let Outputs {
            stderr,
            stderr_is_terminal,
            writers,
            ..
        } = self.outputs;
        let lost = Arc::<Lost>::default();
        for writer in writers {
            let losses = lost.clone();
            let (reporter, port) = (ends.clone(), ports.cloned().zip(writer.port));
            let on_room = move || {
                if let Some((ports, port)) = &port {
                    ports.process(ports::transmit_queue(*port));
                }
            };
            spawn("output", move || writer.write(&reporter, &losses, on_room))?;
        }
        streams::say_by(stderr, stderr_is_terminal);
        let claim = self.terminal.as_ref().map(|terminal| terminal.claim);
        let is_ours = claim.is_some_and(|claim| claim.begin());
        if is_ours && shell {
            say("Ctrl-a x ends the guest, Ctrl-a h tells more");
        }
        let look = EventFd::new(EFD_NONBLOCK).map_err(setup("signals"))?;
        let look = Arc::new(look);
        let (reporter, looks) = (ends.clone(), look.clone());
        spawn("signals", move || signals.serve(window, &looks, &reporter))?;
        let (reporter, input) = (ends.clone(), self.stdin.clone());
        spawn("input", move || match claim {
            Some(terminal) => keyboard.read_keys(terminal, &look, &reporter),
            None => keyboard.read(&input),
        })?;
        Ok(Open {
            terminal: self.terminal,
            is_ours,
            stdin: self.stdin,
            outlets,
            lost,
        })
    }

    fn keyboard(&self, console: &Virtio, ports: Option<&Arc<Virtio>>) -> Keyboard {
        let kick = match (self.streams.input_port(), ports) {
            (Some(port), Some(ports)) => kick_of(ports, ports::receive_queue(port)),
            _ => kick_of(console, console::RECEIVE),
        };
        let input = self.input.clone();
        Keyboard { input, kick }
    }

    fn window(
        &self,
        console: &Virtio,
        ports: Option<&Arc<Virtio>>,
    ) -> Result<Option<Window>, Error> {
        let (Some(size), Some(place)) = (&self.size, &self.streams.place) else {
            return Ok(None);
        };
        let terminal = place.output().try_clone().map_err(setup("the terminal"))?;
        Ok(Some(Window {
            terminal: terminal.into(),
            size: size.clone(),
            interrupt: console.interrupt().clone(),
            control: self.control.clone(),
            // The control port is the first.
            kick: ports.map(|ports| kick_of(ports, ports::receive_queue(0))),
        }))
    }
}

/// The user's side of a machine that runs, or has ended.
pub(crate) struct Open {
    terminal: Option<Terminal>,
    /// The Guest has had its keys.
    is_ours: bool,
    stdin: Arc<Stdin>,
    outlets: Vec<(Arc<Outlet>, OwnedFd)>,
    lost: Arc<Lost>,
}

impl Open {
    /// Takes all that the Guest still has to say, however much it is.
    pub(crate) fn take_all(&self) {
        self.outlets
            .iter()
            .for_each(|(outlet, _)| outlet.take_all());
    }

    /// Waits until what the Guest has written is out, and gives all back that is the user's. Who reads
    /// what was cut off is not waited for as long. Returns the end with which it has come to that.
    pub(crate) fn finish(self, end: End) -> End {
        self.stdin.settle();
        // What the Guest has left the cursor behind, where all that we write is our terminal.
        let is_alone = (self.terminal.as_ref()).is_some_and(|terminal| !terminal.claim.is_shared());
        if self.is_ours && is_alone && !matches!(end, End::PoweredOff(_)) {
            messages::print("\n");
        }
        streams::finish(&self.outlets, end.is_cut_off().then_some(PATIENCE));
        drop(self.terminal);
        self.lost.judge(end)
    }
}

fn kick_of(device: &Virtio, queue: usize) -> Arc<EventFd> {
    device.kick(queue).expect("a thread serves it").clone()
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread: io::Result<_> = thread::Builder::new().name(name.into()).spawn(body);
    thread.map(drop).map_err(setup("a thread"))
}
