// SPDX-License-Identifier: GPL-2.0
//! `lg run`: puts a machine together, runs it, and waits for its end.
//!
//! Threads: one runs the vCPU, one serves each device's queues, one reads standard input, one writes
//! each output, one waits for signals, one for the end of the time. Each can report an [`End`]; this
//! one waits for the first. The others end with the process, wherever they are: a Guest that does not
//! stop by itself is never waited for.

pub mod bus;
pub mod cpu;
pub mod gdb;
pub mod insn;
pub mod module;
pub mod speculation;

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::libc::siginfo_t;
use nix::sys::signal::{SigSet, Signal};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};
use vmm_sys_util::signal::register_signal_handler;

use crate::cli::Run;
use crate::devices::blk::disk::ring::Ring;
use crate::devices::blk::disk::Disk;
use crate::devices::blk::{self, Blk};
use crate::devices::bytes::{Input, Outlet, Output};
use crate::devices::console::ports::{self, Ports};
use crate::devices::console::{self, Console, WindowSize};
use crate::devices::fs::attributes;
use crate::devices::fs::share::{self, Share};
use crate::devices::mmio::Mmio;
use crate::devices::net::options as net;
use crate::devices::net::Net;
use crate::devices::rng::Rng;
use crate::devices::vsock::hub::{self as vsock, Hub};
use crate::devices::vsock::Vsock;
use crate::devices::{Device, Interrupt};
use crate::machine::bus::Devices;
use crate::machine::cpu::{Driver, Executor, RunningVcpu};
use crate::machine::gdb::Gdb;
use crate::machine::module::{Vcpu, Vm};
use crate::memory::{self, Memory};
use crate::plan::guest::Guest;
use crate::report::end::End;
use crate::report::messages::{self, say};
use crate::report::record::Record;
use crate::report::stats;
use crate::report::system::setup;
use crate::report::Error;
use crate::sandbox::{self, Grant, Needs};
use crate::session::deadline::{Deadline, Watch};
use crate::session::log::KernelLog;
use crate::session::streams::{self, patient, Keyboard, Outputs, Stdin, Streams};
use crate::session::terminal::{self, Terminal};
use crate::socket_file::SocketFile;

/// The signals that end a run, unless they are ignored when it begins.
const FATAL: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];
/// The window has another size.
const RESIZED: Signal = Signal::SIGWINCH;
/// Somebody wants lg to stop, and to go on again: with the terminal in between.
const STOPPED: Signal = Signal::SIGTSTP;
const CONTINUED: Signal = Signal::SIGCONT;

/// How long who reads the output of a run that was cut off may take for some more of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs a guest as `options` say, to its end. Its kernel's messages go to `log`.
///
/// # Errors
///
/// What lg fails by, before the guest runs or later.
///
/// `watch` is who sees to the time until `deadline` is up for the Guest.
pub(crate) fn run(
    options: &Run,
    log: &KernelLog,
    record: &Record,
    deadline: Deadline,
    watch: Watch,
) -> Result<End, Error> {
    record.memory(options.memory);
    // A write beyond `ulimit -f` is an error, of the guest's or of ours, and not the end of lg.
    register_signal_handler(Signal::SIGXFSZ as i32, on_file_limit)
        .map_err(|error| setup("signals")(error.into()))?;
    prepare(options, log, record)?.run(options, record, deadline, watch)
}

/// Nothing is to be done: the call that is too much says so, once the signal has a handler.
extern "C" fn on_file_limit(_: i32, _: *mut siginfo_t, _: *mut c_void) {}

/// A machine that is ready to go.
struct Machine {
    ends: Sender<End>,
    end: Receiver<End>,
    vm: Arc<Vm>,
    executor: Executor,
    gdb: Option<Gdb>,
    terminal: Option<Terminal>,
    devices: Devices,
    outer: Outer,
    stdin: Arc<Stdin>,
    writers: Vec<streams::Writer>,
    messages: (Arc<Outlet>, bool),
    socket_file: Option<SocketFile>,
    grants: Vec<Grant>,
}

/// What the console and the ports have to do with the world outside.
struct Outer {
    keyboard: Keyboard,
    window: Option<Window>,
    /// The ports, if there are any.
    ports: Option<Arc<Mmio>>,
}

/// Our end of the window's size.
struct Window {
    /// Whose it is.
    terminal: OwnedFd,
    size: Arc<WindowSize>,
    interrupt: Arc<Interrupt>,
    /// Where guest-init hears of it.
    control: Arc<Input>,
    kick: Option<Arc<EventFd>>,
}

impl Window {
    /// Looks how large it is, and tells the Guest.
    fn look(&self) {
        if let Some((columns, rows)) = terminal::window_size(&self.terminal) {
            self.size.set(columns, rows);
            self.interrupt.config_changed();
            Streams::tell_size((columns, rows), &self.control);
            // It can only fail when 2^64 kicks are waiting.
            let _ = self.kick.as_ref().map(|kick| kick.write(1));
        }
    }
}

/// Reads and checks everything, and makes the machine.
fn prepare(options: &Run, log: &KernelLog, record: &Record) -> Result<Machine, Error> {
    let disks = disks(options)?;
    let guest = Guest::find(options)?;
    let place = guest.streams.place.as_ref();
    let terminal = place.map(Terminal::watch).transpose();
    let terminal = terminal.map_err(setup("the terminal"))?.flatten();
    record.kernel(&guest.image.path);
    if options.verbose {
        let kind = if guest.image.linux {
            "Linux"
        } else {
            "a bare guest"
        };
        say(&format!(
            "{} is {kind}, entry {:#x}",
            guest.image.path.display(),
            guest.image.entry
        ));
    }
    let net = options.net.as_ref().map(network).transpose()?;
    let shares = share::open_all(&guest.shares, options.memory)?;
    // Before there is RAM, of which it must have nothing.
    let writable = guest.shares.iter().filter(|share| !share.read_only);
    let writable: Vec<_> = writable.map(|share| share.directory.as_path()).collect();
    if !writable.is_empty() {
        attributes::start(Path::new("/proc/self/exe"), &writable)
            .map_err(setup("the process that changes attributes of files"))?;
    }
    let vsock = options.vsock.as_ref().map(Hub::listen).transpose();
    let (hub, socket_file) = vsock.map_err(vsock::VsockError)?.unzip();
    let others = crate::plan::in_order(
        shares,
        net.map(boxed),
        hub.map(|hub| boxed(Vsock::new(hub))),
        disks.into_iter().map(boxed),
        boxed(Rng),
    );
    memory::check(options.memory)?;
    let memory = memory::make(options.memory)?;

    let (ends, end) = mpsc::channel();
    let vm = Arc::new(Vm::new(memory.clone())?);
    let streams = setup("the streams");
    let stdin = Arc::new(Stdin::find().map_err(&streams)?);
    let outputs = Outputs::of(&guest.streams).map_err(&streams)?;
    let (devices, outer) = make_devices(&vm, &memory, &guest.streams, &outputs, &stdin, others)?;
    devices.connect(&vm)?;
    let command_line = guest.command_line(&crate::plan::slots(devices.count())?)?;
    if options.verbose {
        say(&format!(
            "its command line: {}",
            command_line.to_string_lossy()
        ));
    }
    let entry = guest.load(&memory, &command_line)?;
    let vcpu = Vcpu::new(vm.clone(), &entry)?;
    let messages = (outputs.stderr.clone(), outputs.stderr_is_terminal);
    // A kernel's log; all that a bare guest says.
    let printed = match guest.image.linux {
        true => log.output(options.verbose.then(|| messages.clone())),
        false => patient(&outputs.stdout, outputs.stdout_is_terminal()),
    };
    let gdb = options.gdb.as_deref().map(Gdb::wait).transpose()?;
    Ok(Machine {
        ends,
        end,
        vm,
        executor: Executor {
            vcpu,
            devices: devices.clone(),
            memory,
            printed,
        },
        gdb,
        terminal,
        devices,
        outer,
        stdin,
        writers: outputs.writers,
        messages,
        socket_file,
        grants: guest.shares.iter().map(Share::grant).collect(),
    })
}

/// Raises the lines of `vm`'s Guest.
fn raise(vm: &Arc<Vm>) -> impl Fn(u32) + Clone + Send + Sync + 'static {
    let vm = vm.clone();
    move |line| {
        if let Err(error) = vm.raise(line) {
            say(&format!("an interrupt of device {line} is lost: {error}"));
        }
    }
}

/// Makes the disks that `options` ask for.
fn disks(options: &Run) -> Result<Vec<Blk>, Error> {
    let disks = Disk::open_all(&options.disk)?;
    let blk = |disk| {
        let ring = disk_ring(&disk, options.verbose);
        Blk::new(disk, ring)
    };
    Ok(disks.into_iter().map(blk).collect())
}

/// A ring for `disk`, where it is of use and the system lets us have one.
fn disk_ring(disk: &Disk, verbose: bool) -> Option<Ring<blk::InFlight>> {
    let ring = Ring::new(disk.file()?, Blk::DEPTH);
    if let (Err(error), true) = (&ring, verbose) {
        let path = disk.path().display();
        say(&format!(
            "{path} is read and written without io_uring: {error}"
        ));
    }
    ring.ok()
}

/// Makes the network that `options` ask for.
fn network(options: &net::Options) -> Result<Net, Error> {
    let mac = options.mac().map_err(setup("an address"))?;
    let on_cut = |error: &io::Error| say(&format!("the guest has no network any more: {error}"));
    Ok(Net::new(mac, options.open()?, on_cut))
}

fn boxed(device: impl Device + 'static) -> Box<dyn Device> {
    Box::new(device)
}

/// Makes the console, and ports for the terminal and for the streams that are none, and adds the
/// `others` after them.
fn make_devices(
    vm: &Arc<Vm>,
    memory: &Memory,
    streams: &Streams,
    outputs: &Outputs,
    stdin: &Arc<Stdin>,
    others: impl IntoIterator<Item = Box<dyn Device>>,
) -> Result<(Devices, Outer), Error> {
    let (input, control) = (Arc::<Input>::default(), Arc::<Input>::default());
    let port = streams.input_port();
    // What has a port is not for the console.
    let typed = match port {
        Some(_) => Arc::default(),
        None => input.clone(),
    };
    let size = streams.place.as_ref().map(|place| {
        let size = Arc::<WindowSize>::default();
        let now = terminal::window_size(place.output()).unwrap_or_default();
        size.set(now.0, now.1);
        Streams::tell_size(now, &control);
        size
    });
    let mut devices = Devices::default();
    let mut add = |device: Box<dyn Device>| devices.add(device, memory, raise(vm));
    let kick_of = |device: &Mmio, queue| device.kick(queue).expect("a thread serves it").clone();

    let shown = match (streams.console, &outputs.terminal) {
        (true, _) => patient(&outputs.stdout, false),
        (false, Some(terminal)) => {
            let terminal = terminal.clone();
            // Nobody has a reason to write there, and so nobody waits.
            Box::new(move |text: &[u8]| {
                terminal.offer(text);
            })
        }
        (false, None) => Box::new(|_: &[u8]| {}) as Output,
    };
    let console = add(Box::new(Console::new(typed, size.clone(), shown)))?;
    let named = streams::ports(streams, outputs, &input, &control, stdin);
    let ports = match named.is_empty() {
        true => None,
        false => Some(add(Box::new(Ports::new(named)))?),
    };
    let kick = match (port, &ports) {
        (Some(port), Some(ports)) => kick_of(ports, ports::receive_queue(port)),
        _ => kick_of(&console, console::RECEIVE),
    };
    let window = match (size, &streams.place) {
        (Some(size), Some(place)) => Some(Window {
            terminal: place
                .output()
                .try_clone()
                .map_err(setup("the terminal"))?
                .into(),
            size,
            interrupt: console.interrupt().clone(),
            control,
            // The control port is the first.
            kick: ports
                .as_ref()
                .map(|ports| kick_of(ports, ports::receive_queue(0))),
        }),
        _ => None,
    };
    for device in others {
        add(device)?;
    }
    let outer = Outer {
        keyboard: Keyboard { input, kick },
        window,
        ports,
    };
    Ok((devices, outer))
}

impl Machine {
    /// Runs the Guest to its end.
    fn run(
        self,
        options: &Run,
        record: &Record,
        deadline: Deadline,
        watch: Watch,
    ) -> Result<End, Error> {
        let Self {
            ends,
            end: receiver,
            vm,
            executor,
            gdb,
            terminal,
            devices,
            outer,
            stdin,
            writers,
            messages,
            // Removed when this returns.
            socket_file: _socket_file,
            grants,
        } = self;
        let threads = setup("a thread");
        // Before there are threads: they inherit both. A refusal means that the kernel has its own mind.
        let _ = speculation::keep_predictions_apart();
        let of_terminal = terminal.as_ref().map_or(&[][..], |_| &[STOPPED, CONTINUED]);
        let signals = FATAL.iter().chain([&RESIZED]).chain(of_terminal).copied();
        let signals: SigSet = signals
            .filter(|&signal| !terminal::is_ignored(signal))
            .collect();
        signals
            .thread_block()
            .map_err(|error| setup("signals")(error.into()))?;
        // From here on, nobody is waited for before there is somebody else to see to the time.
        drop(watch);
        let needs = Needs {
            grants: &grants,
            watcher: terminal.as_ref().map(Terminal::watcher),
            sockets: options.vsock.as_ref().map(vsock::Spec::directory),
            last: Some(terminal::restore),
        };
        let sandbox = sandbox::enter(&needs).map_err(setup("the sandbox"))?;
        if let Some(gaps) = sandbox.gaps() {
            say(&gaps);
        }
        let Outer {
            keyboard,
            window,
            ports,
        } = outer;
        let files = writers
            .iter()
            .map(|writer| Ok((writer.outlet().clone(), writer.file()?)));
        let outlets: Vec<_> = files
            .collect::<io::Result<_>>()
            .map_err(setup("the streams"))?;
        for writer in writers {
            let (reporter, port) = (ends.clone(), ports.clone().zip(writer.port));
            let on_room = move || {
                if let Some((ports, port)) = &port {
                    ports.process(ports::transmit_queue(*port));
                }
            };
            spawn("output", move || writer.write(&reporter, on_room)).map_err(&threads)?;
        }
        streams::say_by(messages.0, messages.1);
        let claim = terminal.as_ref().map(|terminal| terminal.claim);
        let is_ours = claim.is_some_and(|claim| claim.begin());
        if is_ours && options.command.is_empty() {
            say("Ctrl-a x ends the guest, Ctrl-a h tells more");
        }

        deadline.report(ends.clone(), record).map_err(&threads)?;
        let look = EventFd::new(EFD_NONBLOCK).map_err(setup("signals"))?;
        let look = Arc::new(look);
        let (reporter, looks) = (ends.clone(), look.clone());
        spawn("signals", move || {
            wait_for_signals(&signals, window, &looks, &reporter)
        })
        .map_err(&threads)?;
        let (reporter, input) = (ends.clone(), stdin.clone());
        spawn("input", move || match claim {
            Some(terminal) => keyboard.read_keys(terminal, &look, &reporter),
            None => keyboard.read(&input),
        })
        .map_err(&threads)?;
        for device in devices.iter() {
            let (reporter, device) = (ends.clone(), device.clone());
            spawn("device", move || {
                if let Err(error) = bus::serve(&device) {
                    let _ = reporter.send(End::Failed(setup("a device")(error)));
                }
            })
            .map_err(&threads)?;
        }
        record.starts();
        let driver =
            gdb.map(|gdb| -> Driver { Box::new(move |guest, stopped| gdb.serve(guest, stopped)) });
        let vcpu = RunningVcpu::start(executor, driver, ends).map_err(&threads)?;

        // The thread for the signals never lets go of its sender.
        let end = receiver.recv().unwrap_or(End::TimedOut);
        // Who sends another end is told that it is too late (`wait_for_signals`).
        drop(receiver);
        let cut_off = matches!(end, End::Signal(_) | End::Left | End::TimedOut);
        if !cut_off {
            outlets.iter().for_each(|(outlet, _)| outlet.take_all());
            devices.drain();
        }
        stdin.settle();
        // What the Guest has left the cursor behind, where all that we write is our terminal.
        let is_alone = claim.is_some_and(|claim| !claim.is_shared());
        if is_ours && is_alone && !matches!(end, End::PoweredOff(_)) {
            messages::print("\n");
        }
        streams::finish(&outlets, cut_off.then_some(PATIENCE));
        drop(terminal);
        // The counters are the running vCPU's own as long as it runs.
        if options.stats && vcpu.stop() {
            let stats = vm.stats()?;
            record.counters(&stats);
            messages::print(&stats::table(&stats).to_string());
        }
        Ok(end)
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
}

/// Waits for signals: a new size goes to the Guest, a stop leaves the terminal to others until we go
/// on, the others end the run; or lg, where the run has ended and what is left to be done does not come
/// to its end: nobody may read the output.
fn wait_for_signals(signals: &SigSet, window: Option<Window>, looks: &EventFd, ends: &Sender<End>) {
    while let Ok(signal) = signals.wait() {
        match signal {
            RESIZED => window.iter().for_each(Window::look),
            STOPPED => terminal::suspend(),
            CONTINUED => {
                // Whoever reads the keys looks whose terminal it is. It may also have another size.
                let _ = looks.write(1);
                window.iter().for_each(Window::look);
            }
            signal => {
                let end = End::Signal(signal);
                let status = end.status();
                if ends.send(end).is_err() {
                    terminal::restore();
                    process::exit(status.into());
                }
            }
        }
    }
}
