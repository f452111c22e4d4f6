// SPDX-License-Identifier: GPL-2.0
//! `lg run`: puts a machine together, runs it, and waits for its end.
//!
//! Threads: one runs the vCPU, one serves the devices' queues, one reads standard input, one waits
//! for signals. Each can report an [`End`]; this one waits for the first. The others end with the
//! process, wherever they are: a Guest that does not stop by itself is never waited for.

use std::env;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootError};
use crate::cli::Run;
use crate::cpio::{self, Archive};
use crate::devices::Devices;
use crate::end::End;
use crate::error::Error;
use crate::image::{Image, ImageError};
use crate::keys::{Keys, Wish, HELP};
use crate::memory::{self, Memory};
use crate::stats;
use crate::terminal::{self, say, Raw};
use crate::vcpu::RunningVcpu;
use crate::virtio::bytes::{Input, Output};
use crate::virtio::console::{self, Console, WindowSize};
use crate::virtio::mmio::Mmio;
use crate::virtio::ports::{self, Ports, Stream};
use crate::virtio::{Device, Fault, Interrupt};
use crate::vm::{Vcpu, Vm};

/// Where an installed lg finds its guest.
const INSTALLED_KERNEL: &str = "/usr/lib/lg/vmlinux";
const INSTALLED_INITRD: &str = "/usr/lib/lg/initramfs.cpio";
/// The console is device 0; device 1 is there when streams need ports.
const CONSOLE: usize = 0;
const PORTS: usize = 1;
/// The signals that end a run, and the one that says that the window has another size.
const FATAL: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];
const RESIZED: Signal = Signal::SIGWINCH;

/// Runs a guest as `options` say, and tells the user how it ended.
pub fn run(options: &Run) -> End {
    let end = prepare(options).and_then(|machine| machine.run(options));
    let end = end.unwrap_or_else(End::Failed);
    end.tell();
    end
}

/// A machine that is ready to go.
struct Machine {
    ends: Sender<End>,
    end: Receiver<End>,
    early: Output,
    vm: Arc<Vm>,
    vcpu: Vcpu,
    memory: Memory,
    devices: Devices,
    keyboard: Keyboard,
    window: Option<Window>,
}

/// Our end of what the Guest reads.
struct Keyboard {
    input: Arc<Input>,
    kick: Arc<EventFd>,
}

/// Our end of the window's size.
struct Window {
    size: Arc<WindowSize>,
    interrupt: Arc<Interrupt>,
}

/// Reads and checks everything, and makes the machine.
fn prepare(options: &Run) -> Result<Machine, Error> {
    let path = find_kernel(options.kernel.as_deref())?;
    let refused = |source: ImageError| Error::Image {
        path: path.clone(),
        source,
    };
    let image = Image::parse(read(&path)?).map_err(refused)?;
    if !options.command.is_empty() && !image.linux {
        return Err(Error::CommandForBareGuest(path));
    }
    let streams = Streams::of(options, &image);
    let initrd = initrd(options, &image, &streams)?;
    let command_line = command_line(options, &image, &streams);
    if options.verbose {
        let kind = if image.linux { "Linux" } else { "a bare guest" };
        say(&format!(
            "{} is {kind}, entry {:#x}",
            path.display(),
            image.entry
        ));
        say(&format!("its command line: {command_line}"));
    }
    let size = options.memory;
    let memory = memory::create(size).map_err(|source| Error::Memory { size, source })?;
    let entry =
        boot::load(&memory, &image, &initrd, &command_line).map_err(|error| match error {
            BootError::Image(source) => refused(source),
            BootError::Other(error) => error,
        })?;

    let (ends, end) = mpsc::channel();
    let vm = Arc::new(Vm::new(memory.clone())?);
    let (devices, keyboard, window) = make_devices(&vm, &memory, &streams, &ends)?;
    devices.connect(&vm)?;
    let vcpu = Vcpu::new(vm.clone(), &entry)?;
    // The first messages of a kernel; all that a bare guest says.
    let early = match image.linux {
        true => streams.console(&ends),
        false => output(io::stdout(), &ends),
    };
    Ok(Machine {
        ends,
        end,
        early,
        vm,
        vcpu,
        memory,
        devices,
        keyboard,
        window,
    })
}

/// The kernel that was named, or the first of the usual ones.
fn find_kernel(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(named) = named {
        return Ok(named.into());
    }
    let mut trees = vec![PathBuf::new()];
    trees.extend(env::var_os("KBUILD_OUTPUT").map(PathBuf::from));
    let in_tree = |tree: &PathBuf| ["vmlinux", "arch/x86/boot/bzImage"].map(|file| tree.join(file));
    let mut tried: Vec<_> = trees.iter().flat_map(in_tree).collect();
    tried.push(INSTALLED_KERNEL.into());
    tried
        .iter()
        .find(|path| path.exists())
        .cloned()
        .ok_or(Error::NoKernel { tried })
}

/// The initrd, with what the Guest's init is to know behind it.
fn initrd(options: &Run, image: &Image, streams: &Streams) -> Result<Vec<u8>, Error> {
    let mut initrd = match &options.initrd {
        Some(path) => read(path)?,
        None if !image.linux => return Ok(Vec::new()),
        None if Path::new(INSTALLED_INITRD).exists() => read(Path::new(INSTALLED_INITRD))?,
        None => return Err(Error::NoInitrd(INSTALLED_INITRD.into())),
    };
    if image.linux {
        initrd.resize(initrd.len().next_multiple_of(cpio::ALIGN), 0);
        initrd.extend(init_files(options, streams));
    }
    Ok(initrd)
}

/// What the Guest's init finds in /lg, in files of words which are ended by NUL: `cmd`, the
/// command; `env`, its environment; `ports`, the names of the console's ports which are its
/// standard input, output and error, where that is not the console itself.
fn init_files(options: &Run, streams: &Streams) -> Vec<u8> {
    let mut archive = Archive::default().directory("lg");
    if !options.command.is_empty() {
        let words = options
            .command
            .iter()
            .flat_map(|word| [word.as_bytes(), b"\0"]);
        archive = archive.file("lg/cmd", &words.collect::<Vec<_>>().concat());
    }
    if let Some(term) = env::var_os("TERM") {
        archive = archive.file("lg/env", &[b"TERM=", term.as_bytes(), b"\0"].concat());
    }
    let ports = streams.names().map(|name| format!("{name}\0"));
    archive
        .file("lg/ports", ports.collect::<String>().as_bytes())
        .finish()
}

/// Which of the standard streams have ports of their own. Those that are terminals at our end are
/// the console in the Guest.
struct Streams {
    /// It is a shell for which somebody types.
    typed: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Streams {
    const STDIN: &'static str = "lg.stdin";
    const STDOUT: &'static str = "lg.stdout";
    const STDERR: &'static str = "lg.stderr";

    fn of(options: &Run, image: &Image) -> Self {
        if !image.linux {
            // It has no init to open ports, and prints by hypercall.
            return Self {
                typed: true,
                stdin: false,
                stdout: false,
                stderr: false,
            };
        }
        let stdin = !io::stdin().is_terminal();
        let typed = !stdin && options.command.is_empty();
        // Somebody may keep a record of what they do in a shell.
        Self {
            typed,
            stdin,
            stdout: !typed && !io::stdout().is_terminal(),
            stderr: !typed && !io::stderr().is_terminal(),
        }
    }

    /// Where the console's output goes. When the command's goes elsewhere, the kernel's messages
    /// must not get into that.
    fn console(&self, ends: &Sender<End>) -> Output {
        if self.stdout {
            output(io::stderr(), ends)
        } else {
            output(io::stdout(), ends)
        }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        let streams = [
            (self.stdin, Self::STDIN),
            (self.stdout, Self::STDOUT),
            (self.stderr, Self::STDERR),
        ];
        streams
            .into_iter()
            .filter(|(has_port, _)| *has_port)
            .map(|(_, name)| name)
    }
}

fn command_line(options: &Run, image: &Image, streams: &Streams) -> String {
    let mut words = vec![Devices::announcement(CONSOLE)];
    if streams.names().next().is_some() {
        words.push(Devices::announcement(PORTS));
    }
    if image.linux {
        words.push("console=hvc0".into());
        if !streams.typed && !options.verbose {
            words.push("quiet".into());
        }
    }
    if !options.append.is_empty() {
        words.push(options.append.clone());
    }
    words.join(" ")
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

fn setup(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Setup { what, source }
}

/// Puts `device` behind registers.
fn mmio(
    device: impl Device + 'static,
    memory: &Memory,
    interrupt: Arc<Interrupt>,
) -> Result<Mmio, Error> {
    let on_fault = |name: &str, fault: &Fault| {
        say(&format!(
            "{name}: stopped until the guest resets it: {fault}"
        ));
    };
    Mmio::new(Box::new(device), memory.clone(), interrupt, on_fault).map_err(setup("a device"))
}

/// The interrupt of device `number`.
fn interrupt(vm: &Arc<Vm>, number: usize) -> Arc<Interrupt> {
    let vm = vm.clone();
    Arc::new(Interrupt::new(move || {
        if let Err(error) = vm.raise(number as u32) {
            say(&format!("an interrupt of device {number} is lost: {error}"));
        }
    }))
}

/// Makes the devices: the console, and ports for the streams that are no terminals.
fn make_devices(
    vm: &Arc<Vm>,
    memory: &Memory,
    streams: &Streams,
    ends: &Sender<End>,
) -> Result<(Devices, Keyboard, Option<Window>), Error> {
    let input = Arc::<Input>::default();
    // What is not typed is not for the console.
    let typed = if streams.stdin {
        Arc::default()
    } else {
        input.clone()
    };
    let console_interrupt = interrupt(vm, CONSOLE);
    let window = terminal::window_size().map(|(columns, rows)| {
        let size = Arc::<WindowSize>::default();
        size.set(columns, rows);
        Window {
            size,
            interrupt: console_interrupt.clone(),
        }
    });
    let size = window.as_ref().map(|window| window.size.clone());
    let console = Console::new(typed, size, streams.console(ends));
    let console = mmio(console, memory, console_interrupt)?;
    let kick_of = |device: &Mmio, queue| device.kick(queue).expect("a thread serves it").clone();
    let mut kick = kick_of(&console, console::RECEIVE);
    let mut devices = Devices::default();
    devices.add(console);

    let mut ports = Vec::new();
    for name in streams.names() {
        let stream = match name {
            Streams::STDIN => Stream::Input(input.clone()),
            Streams::STDOUT => Stream::Output(output(io::stdout(), ends)),
            _ => Stream::Output(output(io::stderr(), ends)),
        };
        ports.push((name, stream));
    }
    if !ports.is_empty() {
        let ports = mmio(Ports::new(ports), memory, interrupt(vm, PORTS))?;
        if streams.stdin {
            // It is the first.
            kick = kick_of(&ports, ports::receive_queue(0));
        }
        devices.add(ports);
    }
    Ok((devices, Keyboard { input, kick }, window))
}

/// Writes what a port of the console puts out to `stream`. A failure is the end.
fn output(mut stream: impl Write + Send + 'static, ends: &Sender<End>) -> Output {
    let ends = ends.clone();
    Box::new(move |bytes| {
        if let Err(error) = stream.write_all(bytes).and_then(|()| stream.flush()) {
            // When nobody listens any more, another end was first.
            let _ = ends.send(End::of_output(error));
        }
    })
}

impl Machine {
    /// Runs the Guest to its end.
    fn run(self, options: &Run) -> Result<End, Error> {
        let Self {
            ends,
            end,
            early,
            vm,
            vcpu,
            memory,
            devices,
            keyboard,
            window,
        } = self;
        let threads = setup("a thread");
        // Before there are threads: they inherit it.
        let signals: SigSet = FATAL.into_iter().chain([RESIZED]).collect();
        signals
            .thread_block()
            .map_err(|error| setup("signals")(error.into()))?;
        let terminal = Raw::enter().map_err(setup("the terminal"))?;
        if terminal.is_some() && options.command.is_empty() {
            say("Ctrl-a x ends the guest, Ctrl-a h tells more");
        }

        let reporter = ends.clone();
        spawn("signals", move || {
            wait_for_signals(&signals, window, &reporter)
        })
        .map_err(&threads)?;
        let (reporter, is_terminal) = (ends.clone(), terminal.is_some());
        spawn("input", move || keyboard.read(is_terminal, &reporter)).map_err(&threads)?;
        let (reporter, server) = (ends.clone(), devices.clone());
        spawn("devices", move || {
            if let Err(error) = server.serve() {
                let _ = reporter.send(End::Failed(setup("the devices")(error)));
            }
        })
        .map_err(&threads)?;
        let vcpu =
            RunningVcpu::start(vcpu, devices.clone(), memory, early, ends).map_err(&threads)?;

        let end = match options.timeout {
            Some(timeout) => end.recv_timeout(timeout),
            None => end.recv().map_err(RecvTimeoutError::from),
        };
        let end = end.unwrap_or(End::TimedOut);
        if !matches!(end, End::Signal(_) | End::Left | End::TimedOut) {
            devices.drain();
        }
        drop(terminal);
        // The counters are the running vCPU's own as long as it runs.
        if options.stats && vcpu.stop() {
            let _ = write!(io::stderr(), "{}", stats::table(&vm.stats()?));
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

/// Waits for signals: a new size goes to the console, the others end the run.
fn wait_for_signals(signals: &SigSet, window: Option<Window>, ends: &Sender<End>) {
    while let Ok(signal) = signals.wait() {
        if signal != RESIZED {
            let _ = ends.send(End::Signal(signal));
        } else if let (Some(window), Some((columns, rows))) = (&window, terminal::window_size()) {
            window.size.set(columns, rows);
            window.interrupt.config_changed();
        }
    }
}

/// Says that there is something to do.
fn kick(eventfd: &EventFd) {
    // It can only fail when 2^64 kicks are waiting.
    let _ = eventfd.write(1);
}

impl Keyboard {
    /// Passes standard input on to the Guest, until it ends.
    fn read(&self, is_terminal: bool, ends: &Sender<End>) {
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
        kick(&self.kick);
    }

    /// Gives `bytes` to the Guest. When too many wait, keys are dropped, as a tty does, but a file
    /// or a pipe waits.
    fn pass(&self, mut bytes: &[u8], drop_overflow: bool) {
        loop {
            let taken = self.input.offer(bytes);
            bytes = &bytes[taken..];
            if taken != 0 {
                kick(&self.kick);
            }
            if bytes.is_empty() || drop_overflow {
                return;
            }
            self.input.wait();
        }
    }
}
