// SPDX-License-Identifier: GPL-2.0
//! A machine: built from a plan, run, and told of its end.
//!
//! One thread runs each vCPU, one serves each device's queues. Each can report an [`End`]. They end with
//! the process, wherever they are: a Guest that does not stop by itself is never waited for.
//!
//! Of the user's side it knows a [`Front`]: the two devices that it does not make itself, and where goes
//! what the Guest prints by hypercall.

pub(crate) mod bad_memory;
pub mod bus;
pub mod cpu;
pub mod gdb;
pub mod insn;
pub mod module;
pub mod pagetable;
pub mod pause;
pub mod recorder;
pub mod speculation;
pub mod view;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use lguest_abi::lguest_stats;
use nix::unistd::Pid;
use xen_abi::handover;

use crate::devices::balloon::Balloon;
use crate::devices::blk::disk::ring::Ring;
use crate::devices::blk::disk::Disk;
use crate::devices::blk::{self, Blk};
use crate::devices::bytes::Output;
use crate::devices::fs::{attributes, share};
use crate::devices::net::cable::Cable;
use crate::devices::net::peer::Mac;
use crate::devices::net::{options as net, Net};
use crate::devices::rng::Rng;
use crate::devices::virtio::Virtio;
use crate::devices::vsock::hub::{Hub, VsockError};
use crate::devices::vsock::Vsock;
use crate::devices::Device;
use crate::machine::bus::Devices;
use crate::machine::cpu::{Driver, Executor, RunningVcpus};
use crate::machine::gdb::Gdb;
use crate::machine::module::{Vcpu, Vm};
use crate::machine::recorder::{Recorder, Takers};
use crate::machine::view::{About, View};
use crate::memory::dma::Dma;
use crate::memory::{self, Memory};
use crate::plan::{self, told, Make, Plan};
use crate::report::end::End;
use crate::report::messages::say;
use crate::report::steps::Steps;
use crate::report::system::setup;
use crate::report::Error;
use crate::sandbox::{self, Grant, Needs};
use crate::socket_file::SocketFile;
use crate::xen::events::Events;
use crate::xen::Xen;

/// The user's side, as a machine uses it.
pub struct Front {
    /// The console.
    pub console: Box<dyn Device>,
    /// The ports, where the plan has some.
    pub ports: Option<Box<dyn Device>>,
    /// Takes what the Guest prints by hypercall.
    pub printed: Output,
    /// Take the record of the vCPU, if there is to be one.
    pub record: Takers,
    /// When lg began.
    pub began: Instant,
}

/// A machine that is ready to go.
pub struct Machine {
    vm: Arc<Vm>,
    memory: Memory,
    /// For each vCPU.
    executors: Vec<Executor>,
    about: About,
    gdb: Option<Gdb>,
    xen: Option<Arc<Xen>>,
    devices: Devices,
    /// The device that has the front's console, and that of its ports.
    console: Arc<Virtio>,
    ports: Option<Arc<Virtio>>,
    grants: Vec<Grant>,
    sockets: Option<PathBuf>,
    socket_file: Option<SocketFile>,
}

impl Machine {
    /// Builds what `plan` says, with `front` in its place, and waits for gdb where that is to come. What is done goes to
    /// `steps`.
    ///
    /// # Errors
    ///
    /// The errors that only show now: there is no module, a program does not start, memory is
    /// refused.
    pub fn build(plan: Plan, front: Front, steps: &Steps) -> Result<Self, Error> {
        let about = About::of(&plan, front.began);
        let mut file = None;
        let make = |device: plan::Device| make(device.make, plan.verbose, &mut file);
        let others = plan.devices.into_iter().map(make);
        let others: Vec<_> = others.collect::<Result<_, Error>>()?;
        let beside = plan.beside.network.as_ref().map(network).transpose()?;
        serve_files(&plan.grants)?;
        steps.done("devices made");
        let memory = memory::make(&plan.load.layout.memory())?;
        steps.done("memory mapped");
        let vm = Arc::new(Vm::new(memory.clone())?);
        steps.done("VM made");
        let places = plan.load.layout.places();
        let events = places.map(|places| {
            let raise = raise(&vm);
            Arc::new(Events::new(memory.clone(), places.raised, move || {
                raise(handover::LINE)
            }))
        });
        let mut devices = match (&places, &events) {
            (Some(places), Some(events)) => {
                let dma = Dma::with_grants(memory.clone(), places.grants(&memory));
                Devices::on_bus(places.bars(), dma, events.clone())
            }
            _ => Devices::default(),
        };
        let mut add = |device| devices.add(device, &memory, raise(&vm));
        let console = add(front.console)?;
        let ports = front.ports.map(&mut add).transpose()?;
        for device in others.into_iter().flatten() {
            add(device)?;
        }
        devices.connect(&vm)?;
        steps.done("devices connected");
        let mut load = plan.load;
        if places.is_some() {
            told::set_clock(&mut load.initrd, &vm.clock());
        }
        let entry = (load.layout).load(&memory, &load.image, &load.initrd, &load.command_line);
        steps.done("guest loaded into memory");
        let vcpus = Vcpu::make(&vm, &entry, plan.vcpus)?;
        steps.done("vCPUs made");
        let printed = ways(front.printed);
        let xen = places.zip(events).map(|(places, events)| {
            // Nobody types there: the user's terminal is another console.
            let console = (Arc::default(), printed());
            let functions = devices.functions();
            let disks = plan.beside.disks;
            Xen::new(&memory, &places, functions, disks, beside, console, events).map(Arc::new)
        });
        let xen = xen.transpose().map_err(setup("a device"))?;
        let record = |takers| Recorder::begin(&vm, vcpus.len(), takers, load.image.build_id());
        let takers = Some(front.record).filter(Takers::any);
        let recorders = takers.map(record).transpose()?;
        let mut recorders = recorders.into_iter().flatten();
        let executors = vcpus.into_iter().map(|vcpu| Executor {
            vcpu,
            devices: devices.clone(),
            xen: xen.clone(),
            memory: memory.clone(),
            printed: printed(),
            recorder: recorders.next(),
            pause: Arc::default(),
        });
        let executors: Vec<_> = executors.collect();
        let gdb = plan.gdb.as_deref().map(Gdb::wait).transpose()?;
        Ok(Self {
            vm,
            memory,
            executors,
            about,
            gdb,
            xen,
            devices,
            console,
            ports,
            grants: plan.grants,
            sockets: plan.sockets,
            socket_file: file,
        })
    }

    /// The device of the console.
    pub fn console(&self) -> &Arc<Virtio> {
        &self.console
    }

    /// The device of the ports.
    pub fn ports(&self) -> Option<&Arc<Virtio>> {
        self.ports.as_ref()
    }

    /// Enters the sandbox, which is for threads that start from then on. `watcher` stays reachable;
    /// `last` is done when a forbidden call ends this process.
    ///
    /// # Errors
    ///
    /// There is none on this system.
    pub fn confine(&self, watcher: Option<Pid>, last: fn()) -> Result<(), Error> {
        // Before there are threads: they inherit it. A refusal means that the kernel has its own mind.
        let _ = speculation::keep_predictions_apart();
        let needs = Needs {
            grants: &self.grants,
            watcher,
            sockets: self.sockets.as_deref(),
            last: Some(last),
        };
        let sandbox = sandbox::enter(&needs).map_err(setup("the sandbox"))?;
        if let Some(gaps) = sandbox.gaps() {
            say(&gaps);
        }
        Ok(())
    }

    /// Lets it run. Its end, or what it fails by, is sent to `ends`.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub fn start(self, ends: Sender<End>) -> Result<Running, Error> {
        for device in self.devices.iter() {
            let device = device.clone();
            start_device(move || bus::serve(&device), ends.clone())?;
        }
        for backend in self.xen.iter().flat_map(|xen| xen.beside()) {
            let backend = backend.clone();
            start_device(move || backend.serve_calls(), ends.clone())?;
        }
        let driver = self
            .gdb
            .map(|gdb| -> Driver { Box::new(move |guest, stopped| gdb.serve(guest, stopped)) });
        let view = View {
            vm: self.vm.clone(),
            pauses: self.executors.iter().map(|one| one.pause.clone()).collect(),
            memory: self.memory,
            about: self.about,
            tails: (self.executors.iter())
                .filter_map(|one| Some(one.recorder.as_ref()?.tail()))
                .collect(),
        };
        let vcpus = RunningVcpus::start(self.executors, driver, &ends);
        Ok(Running {
            vm: self.vm,
            vcpus: vcpus.map_err(setup("a thread"))?,
            view,
            xen: self.xen,
            devices: self.devices,
            _socket_file: self.socket_file,
        })
    }
}

/// A machine that runs, or has ended.
pub struct Running {
    vm: Arc<Vm>,
    vcpus: RunningVcpus,
    view: View,
    xen: Option<Arc<Xen>>,
    devices: Devices,
    /// Removed with this.
    _socket_file: Option<SocketFile>,
}

impl Running {
    /// What others may see of it.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Serves every queue once more, so that nothing that the Guest has put there is lost.
    pub fn drain(&self) {
        self.devices.drain();
        if let Some(xen) = &self.xen {
            xen.finish();
        }
    }

    /// Stops the vCPUs, and returns the counters, which are theirs as long as they run: of all together, and where
    /// there are several of each. `None` if it takes too long.
    ///
    /// # Errors
    ///
    /// The module refuses.
    pub fn stop(self) -> Result<Option<(lguest_stats, Vec<lguest_stats>)>, Error> {
        if !self.vcpus.stop() {
            return Ok(None);
        }
        let each = match self.vcpus.count() {
            1 => 0..0,
            count => 0..count,
        };
        let each = each.map(|vcpu| self.vm.vcpu_stats(vcpu));
        Ok(Some((self.vm.stats()?, each.collect::<Result<_, _>>()?)))
    }
}

/// Ways to `output`, any number of them.
fn ways(output: Output) -> impl Fn() -> Output {
    let output = Arc::new(Mutex::new(output));
    move || {
        let output = output.clone();
        Box::new(move |text: &[u8]| output.lock().unwrap_or_else(PoisonError::into_inner)(text))
    }
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

/// Makes a device, unless it is the user's side that does. A socket's file goes to `file`.
fn make(
    device: Make,
    verbose: bool,
    file: &mut Option<SocketFile>,
) -> Result<Option<Box<dyn Device>>, Error> {
    Ok(Some(match device {
        Make::Console | Make::Ports => return Ok(None),
        Make::Share(device) => device,
        Make::Net(options) => {
            let (mac, cable) = network(&options)?;
            Box::new(Net::new(mac, cable))
        }
        Make::Vsock(spec) => {
            let (hub, its_file) = Hub::listen(&spec).map_err(VsockError)?;
            *file = Some(its_file);
            Box::new(Vsock::new(hub))
        }
        Make::Disk(disk) => {
            let ring = disk_ring(&disk, verbose);
            Box::new(Blk::new(disk, ring))
        }
        Make::Random => Box::new(Rng),
        Make::Balloon => Box::new(Balloon),
    }))
}

/// Makes ready to serve what is granted: after the programs have started that inherit from us, and
/// before there is RAM, of which the process for attributes must have nothing.
fn serve_files(grants: &[Grant]) -> Result<(), Error> {
    if grants.is_empty() {
        return Ok(());
    }
    share::leave_modes_to_the_guest();
    let writable = grants.iter().filter(|grant| grant.write);
    let writable: Vec<_> = writable.map(|grant| grant.directory.as_path()).collect();
    if writable.is_empty() {
        return Ok(());
    }
    attributes::start(Path::new("/proc/self/exe"), &writable)
        .map_err(setup("the process that changes attributes of files"))
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

/// Opens the network: the Guest's address, and its cable.
fn network(options: &net::Options) -> Result<(Mac, Cable), Error> {
    let mac = options.mac().map_err(setup("an address"))?;
    let on_cut = |error: &io::Error| say(&format!("the guest has no network any more: {error}"));
    Ok((mac, Cable::new(options.open()?, on_cut)))
}

/// Starts the thread of a device, which does `serve`. What that fails by is sent to `ends`.
fn start_device(
    serve: impl FnOnce() -> io::Result<()> + Send + 'static,
    ends: Sender<End>,
) -> Result<(), Error> {
    let serve = move || {
        if let Err(error) = serve() {
            let _ = ends.send(End::Failed(setup("a device")(error)));
        }
    };
    let thread = thread::Builder::new().name("device".into()).spawn(serve);
    thread.map(drop).map_err(setup("a thread"))
}
