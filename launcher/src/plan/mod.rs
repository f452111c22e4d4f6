// SPDX-License-Identifier: GPL-2.0
//! The plan of `lg run`, found and checked: `--dry-run` prints it, and the machine is built from
//! it.
//!
//! Whatever would be refused is refused here, but for what only shows when it is done: /dev/lguest is
//! not opened, no socket is made, passt is not started, no interface is attached to. Nothing is
//! changed. What there is already is read and held: the kernel, disks with their locks, directories.
//! (The temporary file of an overlay has no name, and is gone with the plan.)

#![forbid(unsafe_code)]

pub mod guest;
pub mod modules;
pub mod root;
pub mod smp;
pub mod told;

use std::env;
use std::ffi::CString;
use std::fmt::{self, Display};
use std::path::{absolute, Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{getgid, getuid};
use serde::Serialize;

use crate::boot::Layout;
use crate::cli::place::GdbError;
use crate::cli::Run;
use crate::devices;
use crate::devices::blk::disk::{self, Access, Disk, DisksError};
use crate::devices::fs::share::{self, Share};
use crate::devices::net::options as net;
use crate::devices::pci::BAR_SIZE;
use crate::devices::slot::Slot;
use crate::devices::vsock::hub::{Spec, VsockError};
use crate::image::{Abi, Image};
use crate::memory;
use crate::plan::guest::Guest;
use crate::report::messages::say;
use crate::report::steps::Steps;
use crate::report::Error;
use crate::sandbox::Grant;
use crate::session::streams::Streams;
use crate::socket_file;
use crate::xen::block::BLOCKS_MAX;

/// What runs. It is checked, and nothing of it is made: who drops it has changed nothing.
#[derive(Serialize)]
pub struct Plan {
    /// The kernel's file, an absolute path.
    kernel: PathBuf,
    /// Linux, and no bare Guest.
    pub linux: bool,
    /// GVA of the first instruction. In hexadecimal, as [`Device::window`]: a number of JSON is not
    /// exact beyond 2^53 with many readers.
    entry: String,
    /// RAM, in bytes.
    pub memory: u64,
    /// The number of vCPUs.
    pub vcpus: u32,
    /// Its file.
    initrd: Option<PathBuf>,
    /// The size of what the kernel gets, in bytes: the file, and behind it what its init is told.
    initrd_size: usize,
    command_line: String,
    /// The devices, in the order of their numbers.
    pub devices: Vec<Device>,
    /// What each of the disks is that a kernel without a driver for the bus of those has beside them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<String>,
    /// What its network is then.
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    #[serde(flatten)]
    command: Option<Command>,
    /// Seconds.
    timeout: Option<f64>,
    /// The roots that are loaded.
    #[serde(skip)]
    pub load: Load,
    /// How to make both.
    #[serde(skip)]
    pub beside: Beside,
    /// The user's side.
    #[serde(skip)]
    pub streams: Arc<Streams>,
    /// The directories of the Host's that stay reachable.
    #[serde(skip)]
    pub grants: Vec<Grant>,
    /// Below this directory are the sockets of `--vsock`.
    #[serde(skip)]
    pub sockets: Option<PathBuf>,
    /// The place where gdb is to come.
    #[serde(skip)]
    pub gdb: Option<PathBuf>,
    /// Tell what is of use to who wonders.
    #[serde(skip)]
    pub verbose: bool,
}

/// The devices that a kernel without a driver for the bus of virtio's has beside them.
pub struct Beside {
    /// Disks, which are open and locked.
    pub disks: Vec<Disk>,
    /// With the other end of this cable.
    pub network: Option<net::Options>,
}

/// The parts that go into RAM, and where.
pub struct Load {
    /// The kernel.
    pub image: Image,
    /// Its initrd; empty if there is none.
    pub initrd: Vec<u8>,
    /// Its command line.
    pub command_line: CString,
    /// Their destination.
    pub layout: Layout,
}

/// A device.
#[derive(Serialize)]
pub struct Device {
    kind: &'static str,
    what: String,
    /// GPA of its registers.
    window: String,
    /// Linux's number of its interrupt; on a PCI bus, the line's.
    interrupt: u32,
    /// The way to make it.
    #[serde(skip)]
    pub make: Make,
}

/// The way to make a device.
pub enum Make {
    /// By the user's side: the console.
    Console,
    /// By the user's side: the ports of the streams.
    Ports,
    /// It serves a directory, which is open.
    Share(Box<dyn devices::Device>),
    /// With the other end of this cable.
    Net(net::Options),
    /// On this socket.
    Vsock(Spec),
    /// Of this disk, which is open and locked.
    Disk(Disk),
    /// Of nothing.
    Random,
    /// Of nothing: it takes.
    Balloon,
}

/// The command that Linux runs.
#[derive(Debug, Serialize)]
struct Command {
    /// Empty: a shell.
    command: Vec<String>,
    /// NAME=VALUE.
    environment: Vec<String>,
    /// Without a root: the initrd's own.
    root: Option<PathBuf>,
    /// Writes to the root go there.
    rw: bool,
    /// The directory in which it runs, and the user, in that root.
    directory: Option<PathBuf>,
    user: u32,
    group: u32,
}

impl Plan {
    /// Finds and checks what `options` ask for. What is done goes to `steps`.
    ///
    /// # Errors
    ///
    /// Whatever would be refused when it is made, but for what only shows then.
    pub fn make(options: &Run, steps: &Steps) -> Result<Self, Error> {
        let disks = Disk::open_all(&options.disk)?;
        steps.done("options and disks");
        let guest = Guest::find(options, steps)?;
        if let Some(net) = &options.net {
            net.check()?;
        }
        let shares = share::open_all(&guest.shares, options.memory)?;
        if let Some(vsock) = &options.vsock {
            vsock.check().map_err(VsockError)?;
        }
        smp::check(options, guest.image.vcpus)?;
        if let Some(path) = &options.gdb {
            socket_file::check(path).map_err(GdbError::Socket)?;
        }
        let grants = guest.shares.iter().map(Share::grant).collect();
        let disks = (options.disk.iter().zip(disks)).collect::<Vec<_>>();
        let (on_bus, beside) = match guest.has_no_bus {
            true if disks.len() > BLOCKS_MAX => {
                let (count, limit) = (disks.len(), BLOCKS_MAX);
                return Err(DisksError::TooMany { count, limit }.into());
            }
            true => (Vec::new(), disks),
            false => (disks, Vec::new()),
        };
        let blocks = ('a'..).zip(&beside);
        let blocks = blocks
            .map(|(name, (spec, disk))| of_disk(spec, disk, "xvd", name))
            .collect();
        let network = options.net.clone().filter(|_| guest.has_no_bus);
        let interface = network.as_ref().map(|net| net.to.to_string());
        let devices = devices(options, &guest, shares, on_bus);
        let slots = (0..devices.len()).map(Slot::new);
        let slots: Vec<_> = slots.collect::<Result<_, _>>()?;
        let command_line = guest.command_line(&slots)?;
        memory::check(options.memory)?;
        steps.done("shares opened, memory checked");
        let layout = Layout::of(
            &guest.image,
            guest.initrd.len(),
            options.memory,
            options.smp,
        )?;
        let windows = windows(&layout, &slots)?;
        let command = guest.image.linux.then(|| command(options, &guest));
        let devices = slots.into_iter().zip(windows).zip(devices);
        Ok(Self {
            kernel: absolute(&guest.image.path).unwrap_or(guest.image.path.clone()),
            linux: guest.image.linux,
            entry: format!("{:#x}", guest.image.entry),
            memory: options.memory,
            vcpus: options.smp,
            initrd: guest.initrd_path,
            initrd_size: guest.initrd.len(),
            command_line: command_line.to_string_lossy().into(),
            devices: devices
                .map(|((slot, window), (kind, what, make))| Device {
                    kind,
                    what,
                    window: format!("{window:#x}"),
                    interrupt: slot.irq(),
                    make,
                })
                .collect(),
            blocks,
            interface,
            command,
            timeout: options.timeout.map(|time| time.as_secs_f64()),
            load: Load {
                image: guest.image,
                initrd: guest.initrd,
                command_line,
                layout,
            },
            beside: Beside {
                disks: beside.into_iter().map(|(_, disk)| disk).collect(),
                network,
            },
            streams: Arc::new(guest.streams),
            grants,
            sockets: options.vsock.as_ref().map(|spec| spec.directory().into()),
            gdb: options.gdb.clone(),
            verbose: options.verbose,
        })
    }

    /// Tells what runs, to who wonders.
    pub fn tell(&self) {
        let kind = if self.linux { "Linux" } else { "a bare guest" };
        let path = self.kernel().display();
        say(&format!("{path} is {kind}, entry {}", self.entry));
        say(&format!("its command line: {}", self.command_line));
    }

    /// Does the kernel run by Xen's ABI?
    pub fn by_xen(&self) -> bool {
        matches!(self.load.image.abi, Abi::Xen(_))
    }

    /// The kernel, as it was named.
    pub fn kernel(&self) -> &Path {
        &self.load.image.path
    }

    /// The command, as text; empty for a shell or a bare Guest.
    pub fn command(&self) -> &[String] {
        let command = self.command.as_ref();
        command.map_or(&[], |command| &command.command)
    }
}

/// The GPAs of the devices' registers: those of the slots, or behind all that a kernel of Xen's has.
fn windows(layout: &Layout, slots: &[Slot]) -> Result<Vec<u64>, Error> {
    let Some(places) = layout.places() else {
        return Ok(slots.iter().map(|slot| slot.window()).collect());
    };
    let window = |slot: &Slot| {
        let number = u64::from(slot.on_bus()?);
        Ok(places.bars() + number * BAR_SIZE)
    };
    slots.iter().map(window).collect()
}

fn command(options: &Run, guest: &Guest) -> Command {
    let lossy = |words: &[std::ffi::OsString]| {
        let words = words.iter().map(|word| word.to_string_lossy().into());
        words.collect()
    };
    let root = guest.root.as_ref();
    let here = env::current_dir().ok();
    Command {
        command: lossy(&options.command),
        environment: lossy(&told::environment(options, root)),
        root: root.map(|root| root.directory.clone()),
        rw: root.is_some_and(|root| root.write),
        directory: root.and_then(|root| Some(root.name_of(&here?))),
        user: root.map_or(0, |_| getuid().as_raw()),
        group: root.map_or(0, |_| getgid().as_raw()),
    }
}

/// All devices in the order of their numbers: what each is in a word, for people, and how it is made.
fn devices(
    options: &Run,
    guest: &Guest,
    shares: Vec<Box<dyn devices::Device>>,
    disks: Vec<(&disk::Spec, Disk)>,
) -> Vec<(&'static str, String, Make)> {
    let mut all = vec![("console", "the terminal".into(), Make::Console)];
    let ports = &guest.streams.names;
    if !ports.is_empty() {
        all.push(("ports", ports.join(" "), Make::Ports));
    }
    for (share, device) in guest.shares.iter().zip(shares) {
        all.push(("fs", of_share(share), Make::Share(device)));
    }
    if let Some(net) = options.net.as_ref().filter(|_| !guest.has_no_bus) {
        all.push(("net", net.to.to_string(), Make::Net(net.clone())));
    }
    if let Some(vsock) = &options.vsock {
        let path = vsock.path.display();
        let what = format!("{path}, the guest's CID is {}", vsock.cid);
        all.push(("vsock", what, Make::Vsock(vsock.clone())));
    }
    for (name, (spec, disk)) in ('a'..).zip(disks) {
        let what = of_disk(spec, &disk, "vd", name);
        all.push(("blk", what, Make::Disk(disk)));
    }
    all.push(("rng", "random numbers".into(), Make::Random));
    let what = "gives free memory back to the host";
    all.push(("balloon", what.into(), Make::Balloon));
    all
}

fn of_disk(spec: &disk::Spec, disk: &Disk, kind: &str, name: char) -> String {
    let access = match spec.access {
        Access::Write => "",
        Access::Read => ", read-only",
        Access::Overlay => ", writes go to a temporary file",
    };
    let (path, size) = (spec.path.display(), disk.size());
    format!("{path} as /dev/{kind}{name}, {size} bytes{access}")
}

fn of_share(share: &Share) -> String {
    let access = match (share.private, share.read_only) {
        (true, _) => ", writes stay in memory",
        (false, true) => ", read-only",
        (false, false) => "",
    };
    let Share { directory, tag, .. } = share;
    let place = match tag.as_str() {
        root::TAG => "/".into(),
        tag => format!("{}/{tag}", share::GUEST_DIRECTORY),
    };
    format!("{} at {place}{access}", directory.display())
}

/// A line each, for people.
impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, what: &dyn Display| writeln!(f, "{name:<13} {what}");
        let kind = if self.linux { "Linux" } else { "a bare guest" };
        let kernel = self.kernel.display();
        row("kernel", &format!("{kernel}, {kind}, entry {}", self.entry))?;
        row("command line", &self.command_line)?;
        if let Some(initrd) = &self.initrd {
            let size = self.initrd_size;
            let initrd = initrd.display();
            row(
                "initrd",
                &format!("{initrd}, {size} bytes with what its init is told"),
            )?;
        }
        row("memory", &format!("{} MiB", self.memory >> 20))?;
        if self.vcpus > 1 {
            row("vCPUs", &self.vcpus.to_string())?;
        }
        for (number, device) in self.devices.iter().enumerate() {
            let Device {
                kind,
                what,
                window,
                interrupt,
                ..
            } = device;
            let place = format!("{window} irq {interrupt:<2}");
            row(
                &format!("device {number}"),
                &format!("{place} {kind:<7} {what}"),
            )?;
        }
        for block in &self.blocks {
            row("disk of Xen's", block)?;
        }
        if let Some(interface) = &self.interface {
            row("net of Xen's", interface)?;
        }
        if let Some(command) = &self.command {
            if let Some(root) = &command.root {
                let root = root.display();
                let writes = if command.rw { "there" } else { "to memory" };
                row("root", &format!("{root}, writes go {writes}"))?;
                row("user", &format!("{}:{}", command.user, command.group))?;
            }
            if let Some(directory) = &command.directory {
                row("directory", &directory.display())?;
            }
            for variable in &command.environment {
                row("environment", &quoted(variable))?;
            }
            let words: Vec<_> = command.command.iter().map(|word| quoted(word)).collect();
            match words.is_empty() {
                true => row("command", &"a shell")?,
                false => row("command", &words.join(" "))?,
            }
        }
        if let Some(seconds) = self.timeout {
            row("timeout", &format!("{seconds} s"))?;
        }
        Ok(())
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::tests::run;
    use crate::image::tests::{elf, good_notes};

    /// The plan for these arguments, with a kernel that is one as far as anybody can see, in a
    /// directory that has nothing else.
    fn plan(arguments: &[&str]) -> Result<Plan, Error> {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        fs::write(&kernel, elf(&good_notes())).unwrap();
        let mut options = run(arguments).unwrap();
        options.kernel = Some(kernel);
        options.initrd = Some("/dev/null".into());
        let plan = Plan::make(&options, &Steps::default());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        plan
    }

    #[test]
    fn devices_have_their_numbers() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(4096).unwrap();
        let disk = format!("{},ro", disk.path().display());
        let arguments = [
            "--disk",
            &disk,
            "--share",
            "/usr:usr:ro",
            "--vsock",
            "/tmp/lg-no-such",
            "--root",
            "/",
        ];
        let plan = plan(&arguments).unwrap();
        let kinds: Vec<_> = plan.devices.iter().map(|device| device.kind).collect();
        let kinds = kinds
            .strip_prefix(&["console", "ports"])
            .unwrap_or(&kinds[1..]);
        assert_eq!(kinds, ["fs", "fs", "vsock", "blk", "rng", "balloon"]);
        let last = plan.devices.len() - 1;
        let word = format!(
            "virtio_mmio.device=4K@{:#x}:{}",
            0xd000_0000u64 + last as u64 * 4096,
            16 + last
        );
        assert!(plan.command_line.contains(&word), "{}", plan.command_line);
        let window = format!("{:#x}", 0xd000_0000u64 + last as u64 * 4096);
        assert_eq!(plan.devices[last].window, window);
        assert_eq!(plan.devices[last].interrupt, 16 + last as u32);
        let text = plan.to_string();
        for words in [
            "/usr at /mnt/usr, read-only",
            "/dev/vda, 4096 bytes, read-only",
            "CID is 3",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn the_command_can_be_copied() {
        let plan = plan(&[
            "--env=A=b c",
            "--timeout=90",
            "--root=/",
            "--",
            "sh",
            "-c",
            "it's $A",
            "",
        ]);
        let text = plan.unwrap().to_string();
        for line in [
            r"command       sh -c 'it'\''s $A' ''",
            "environment   'A=b c'",
            "root          /, writes go to memory",
            "timeout       90 s",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }

    #[test]
    fn what_a_run_refuses_is_refused() {
        let code = |arguments: &[&str]| plan(arguments).map(drop).unwrap_err().code().to_string();
        assert_eq!(code(&["--disk", "/no/such"]), "LG0036");
        assert_eq!(code(&["--share", "/no/such:a"]), "LG0032");
        assert_eq!(code(&["--share", "/usr:a", "--share", "/etc:a"]), "LG0033");
        assert_eq!(code(&["--net", "tap=lg-no-such-if"]), "LG0029");
        assert_eq!(code(&["--vsock", "/dev/null"]), "LG0035");
        assert_eq!(code(&["--gdb", "/dev/null"]), "LG0034");
        assert_eq!(code(&["--root", "/no/such"]), "LG0044");
        assert_eq!(code(&["-m", "4M"]), "LG0015");
        assert_eq!(code(&["--smp", "0"]), "LG0063");
        assert_eq!(code(&["--smp", "33"]), "LG0063");
        assert_eq!(code(&["--append", &"x".repeat(2048)]), "LG0014");
        let shares: Vec<_> = (0..64).map(|tag| format!("--share=/usr:{tag}")).collect();
        let shares: Vec<_> = shares.iter().map(String::as_str).collect();
        assert_eq!(code(&shares), "LG0048");
    }
}
