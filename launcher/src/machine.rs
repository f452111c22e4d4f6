// SPDX-License-Identifier: GPL-2.0
//! `lg run`: puts a machine together, runs it, and waits for its end.
//!
//! Threads: one runs the vCPU, one serves each device's queues, one reads standard input, one waits
//! for signals, one for the end of the time. Each can report an [`End`]; this one waits for the first.
//! The others end with the process, wherever they are: a Guest that does not stop by itself is never
//! waited for.

use std::ffi::c_void;
use std::io::{self, Write};
use std::path::Path;
use std::process;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::Arc;
use std::thread;

use nix::libc::siginfo_t;
use nix::sys::signal::{SigSet, Signal};
use vmm_sys_util::signal::register_signal_handler;

use crate::cgroup;
use crate::cli::Run;
use crate::deadline::{Deadline, Watch};
use crate::devices::{self, Devices};
use crate::disk::ring::Ring;
use crate::disk::Disk;
use crate::end::End;
use crate::error::Error;
use crate::fs::attributes;
use crate::fs::share::{self, Share};
use crate::gdb::Gdb;
use crate::guest::Guest;
use crate::log::KernelLog;
use crate::memory::{self, Memory};
use crate::net;
use crate::record::Record;
use crate::sandbox::{self, Grant, Needs};
use crate::socket_file::SocketFile;
use crate::speculation;
use crate::stats;
use crate::streams::{output, Keyboard, Streams};
use crate::terminal::{self, lines_for_terminal, say, Terminal};
use crate::vcpu::{Executor, RunningVcpu};
use crate::virtio::blk::{self, Blk};
use crate::virtio::bytes::Input;
use crate::virtio::console::{self, Console, WindowSize};
use crate::virtio::mmio::Mmio;
use crate::virtio::net::Net;
use crate::virtio::ports::{self, Ports};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::virtio::{Device, Interrupt};
use crate::vm::{Vcpu, Vm};
use crate::vsock::{self, Hub};

/// The signals that end a run, and the one that says that the window has another size.
const FATAL: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];
const RESIZED: Signal = Signal::SIGWINCH;

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
    keyboard: Keyboard,
    window: Option<Window>,
    socket_file: Option<SocketFile>,
    grants: Vec<Grant>,
}

/// Our end of the window's size.
struct Window {
    size: Arc<WindowSize>,
    interrupt: Arc<Interrupt>,
}

/// Reads and checks everything, and makes the machine.
fn prepare(options: &Run, log: &KernelLog, record: &Record) -> Result<Machine, Error> {
    let terminal = Terminal::find().map_err(setup("the terminal"))?;
    let disks = disks(options)?;
    let guest = Guest::find(options)?;
    record.kernel(&guest.path);
    if options.verbose {
        let kind = if guest.image.linux {
            "Linux"
        } else {
            "a bare guest"
        };
        say(&format!(
            "{} is {kind}, entry {:#x}",
            guest.path.display(),
            guest.image.entry
        ));
    }
    let net = options.net.as_ref().map(network).transpose()?;
    let shares = share::open_all(&guest.shares)?;
    // Before there is RAM, of which it must have nothing.
    let writable = guest.shares.iter().filter(|share| !share.read_only);
    let writable: Vec<_> = writable.map(|share| share.directory.as_path()).collect();
    if !writable.is_empty() {
        attributes::start(Path::new("/proc/self/exe"), &writable)
            .map_err(setup("the process that changes attributes of files"))?;
    }
    let vsock = options.vsock.as_ref().map(Hub::listen).transpose();
    let (hub, socket_file) = vsock.map_err(Error::Vsock)?.unzip();
    let others = devices::in_order(
        shares.into_iter().map(boxed),
        net.map(boxed),
        hub.map(|hub| boxed(Vsock::new(hub))),
        disks.into_iter().map(boxed),
        boxed(Rng),
    );
    let memory = make_memory(options.memory)?;

    let (ends, end) = mpsc::channel();
    let vm = Arc::new(Vm::new(memory.clone())?);
    let (devices, keyboard, window) = make_devices(&vm, &memory, &guest.streams, &ends, others)?;
    devices.connect(&vm)?;
    let command_line = guest.command_line(devices.count())?;
    if options.verbose {
        say(&format!(
            "its command line: {}",
            command_line.to_string_lossy()
        ));
    }
    let entry = guest.load(&memory, &command_line)?;
    let vcpu = Vcpu::new(vm.clone(), &entry)?;
    // A kernel's log; all that a bare guest says.
    let printed = match guest.image.linux {
        true => log.output(options.verbose),
        false => {
            let mut shown = output(io::stdout(), &ends);
            Box::new(move |text: &[u8]| shown(&lines_for_terminal(text)))
        }
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
        keyboard,
        window,
        socket_file,
        grants: guest.shares.iter().map(Share::grant).collect(),
    })
}

/// Makes `size` bytes of RAM, if the Host has them.
pub fn make_memory(size: u64) -> Result<Memory, Error> {
    let available = memory::available().map_err(setup("memory"))?;
    if size > available.all {
        return Err(Error::HostMemory {
            size,
            available: available.all,
        });
    }
    let beside = memory::beside(size);
    if let Some(room) = cgroup::least_room(available.swap) {
        if size + beside > room.available {
            return Err(Error::GroupMemory { size, beside, room });
        }
    }
    memory::create(size).map_err(|source| Error::Memory { size, source })
}

fn setup(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Setup { what, source }
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

/// Makes the console, and ports for the streams that are no terminals, and adds the `others` after
/// them.
fn make_devices(
    vm: &Arc<Vm>,
    memory: &Memory,
    streams: &Streams,
    ends: &Sender<End>,
    others: impl IntoIterator<Item = Box<dyn Device>>,
) -> Result<(Devices, Keyboard, Option<Window>), Error> {
    let input = Arc::<Input>::default();
    // What is not typed is not for the console.
    let typed = if streams.has_stdin() {
        Arc::default()
    } else {
        input.clone()
    };
    let size = terminal::window_size().map(|(columns, rows)| {
        let size = Arc::<WindowSize>::default();
        size.set(columns, rows);
        size
    });
    let mut devices = Devices::default();
    let mut add = |device: Box<dyn Device>| devices.add(device, memory, raise(vm));
    let kick_of = |device: &Mmio, queue| device.kick(queue).expect("a thread serves it").clone();

    let console = Console::new(typed, size.clone(), output(io::stdout(), ends));
    let console = add(Box::new(console))?;
    let mut kick = kick_of(&console, console::RECEIVE);
    let window = size.map(|size| Window {
        size,
        interrupt: console.interrupt().clone(),
    });

    let ports = streams.ports(&input, ends);
    if !ports.is_empty() {
        let ports = add(Box::new(Ports::new(ports)))?;
        if streams.has_stdin() {
            // It is the first.
            kick = kick_of(&ports, ports::receive_queue(0));
        }
    }
    for device in others {
        add(device)?;
    }
    Ok((devices, Keyboard { input, kick }, window))
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
            keyboard,
            window,
            // Removed when this returns.
            socket_file: _socket_file,
            grants,
        } = self;
        let threads = setup("a thread");
        // Before there are threads: they inherit both. A refusal means that the kernel has its own mind.
        let _ = speculation::keep_predictions_apart();
        let signals: SigSet = FATAL.into_iter().chain([RESIZED]).collect();
        signals
            .thread_block()
            .map_err(|error| setup("signals")(error.into()))?;
        if let Some(terminal) = &terminal {
            terminal.make_raw().map_err(setup("the terminal"))?;
        }
        // From here on, nobody is waited for before there is somebody else to see to the time.
        drop(watch);
        let needs = Needs {
            grants: &grants,
            watcher: terminal.as_ref().map(Terminal::watcher),
            sockets: options.vsock.as_ref().map(vsock::Spec::directory),
        };
        let sandbox = sandbox::enter(&needs).map_err(setup("the sandbox"))?;
        if let Some(gaps) = sandbox.gaps() {
            say(&gaps);
        }
        if terminal.is_some() && options.command.is_empty() {
            say("Ctrl-a x ends the guest, Ctrl-a h tells more");
        }

        deadline.report(ends.clone(), record).map_err(&threads)?;
        let reporter = ends.clone();
        spawn("signals", move || {
            wait_for_signals(&signals, window, &reporter)
        })
        .map_err(&threads)?;
        let (reporter, is_terminal) = (ends.clone(), terminal.is_some());
        spawn("input", move || keyboard.read(is_terminal, &reporter)).map_err(&threads)?;
        for device in devices.iter() {
            let (reporter, device) = (ends.clone(), device.clone());
            spawn("device", move || {
                if let Err(error) = devices::serve(&device) {
                    let _ = reporter.send(End::Failed(setup("a device")(error)));
                }
            })
            .map_err(&threads)?;
        }
        record.starts();
        let vcpu = RunningVcpu::start(executor, gdb, ends).map_err(&threads)?;

        // The thread for the signals never lets go of its sender.
        let end = receiver.recv().unwrap_or(End::TimedOut);
        // Who sends another end is told that it is too late (`wait_for_signals`).
        drop(receiver);
        if !matches!(end, End::Signal(_) | End::Left | End::TimedOut) {
            devices.drain();
        }
        let on_terminal = terminal.is_some();
        drop(terminal);
        if on_terminal && !matches!(end, End::PoweredOff(_)) {
            // Where the Guest has left the cursor.
            let _ = io::stderr().write_all(b"\n");
        }
        // The counters are the running vCPU's own as long as it runs.
        if options.stats && vcpu.stop() {
            let stats = vm.stats()?;
            record.counters(&stats);
            let _ = write!(io::stderr(), "{}", stats::table(&stats));
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

/// Waits for signals: a new size goes to the console, the others end the run; or lg, where the run
/// has ended and what is left to be done does not come to its end: nobody may read the output.
fn wait_for_signals(signals: &SigSet, window: Option<Window>, ends: &Sender<End>) {
    while let Ok(signal) = signals.wait() {
        if signal != RESIZED {
            let end = End::Signal(signal);
            let status = end.status();
            if ends.send(end).is_err() {
                terminal::restore();
                process::exit(status.into());
            }
        } else if let (Some(window), Some((columns, rows))) = (&window, terminal::window_size()) {
            window.size.set(columns, rows);
            window.interrupt.config_changed();
        }
    }
}
