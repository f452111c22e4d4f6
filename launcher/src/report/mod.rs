// SPDX-License-Identifier: GPL-2.0
//! What can go wrong before and around a Guest. Every error says what, why and what to do.

pub mod codes;
pub mod end;
pub mod log;
pub mod record;
pub mod stats;

use std::fmt;
use std::io;
use std::path::PathBuf;

use linux_loader::cmdline;

use crate::cli::file::Problem;
use crate::devices::blk::disk::DiskError;
use crate::devices::net::peer as net;
use crate::image::ImageError;
use crate::memory::cgroup::Room;
use crate::report::codes::Code;
use crate::socket_file::SocketError;

/// An error of the Launcher. `Display` is the what.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("there is no kernel to run")]
    NoKernel { tried: Vec<PathBuf> },
    #[error("there is no initrd")]
    NoInitrd(PathBuf),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is no kernel tree", .0.display())]
    NoTree(PathBuf),
    #[error("there is no {}", .0.display())]
    NoConfig(PathBuf),
    #[error("{} cannot be the guest's root", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("lg cannot run {}", path.display())]
    Image { path: PathBuf, source: ImageError },
    #[error("{} runs no commands", .0.display())]
    CommandForBareGuest(PathBuf),
    #[error("there can be no such command line")]
    CommandLine(#[source] cmdline::Error),
    #[error("there are more than {0} devices")]
    TooManyDevices(u32),
    #[error("{} MiB of memory are too little", given >> 20)]
    TooLittleMemory { given: u64, needed: u64 },
    #[error("{} MiB of memory are too much", .0 >> 20)]
    TooMuchMemory(u64),
    #[error("the initrd is too large")]
    InitrdTooLarge { size: u64, limit: u64 },
    #[error("{} cannot be a disk", path.display())]
    Disk { path: PathBuf, source: DiskError },
    #[error("{count} disks are too many")]
    TooManyDisks { count: usize, limit: usize },
    #[error("cannot make {} MiB of memory for the guest", size >> 20)]
    Memory { size: u64, source: io::Error },
    #[error("{} MiB for the guest are more than this Host has", size >> 20)]
    HostMemory { size: u64, available: u64 },
    #[error("{} MiB for the guest are more than its control group allows", size >> 20)]
    GroupMemory { size: u64, beside: u64, room: Room },
    #[error("the command was not run")]
    CommandNotRun,
    #[error("{option} means nothing to {}", path.display())]
    OptionForBareGuest { path: PathBuf, option: &'static str },
    #[error("cannot share {}", directory.display())]
    Share {
        directory: PathBuf,
        source: io::Error,
    },
    #[error("two shares have the tag {0}")]
    TagTwice(String),
    #[error("there is no /dev/lguest")]
    NoDevice,
    #[error("cannot open /dev/lguest")]
    OpenDevice(#[source] io::Error),
    #[error("the lg module does not fit this lg")]
    ModuleAbi { theirs: u32, ours: u32 },
    #[error("the lg module refuses {call}")]
    Module {
        call: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Network(#[from] net::Error),
    #[error("cannot wait for gdb at {}", place.display())]
    Gdb { place: PathBuf, source: io::Error },
    #[error("cannot wait for gdb")]
    GdbSocket(#[source] SocketError),
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("{}:{line}: {source}", path.display())]
    Options {
        path: PathBuf,
        line: usize,
        source: Problem,
    },
    #[error("there can be no vsock")]
    Vsock(#[source] SocketError),
    #[error("cannot set up {what}")]
    Setup {
        what: &'static str,
        source: io::Error,
    },
}

impl Error {
    /// The code by which `lg explain` knows it.
    pub fn code(&self) -> Code {
        match self {
            Self::NoKernel { .. } => Code::NoKernel,
            Self::NoInitrd(_) => Code::NoInitrd,
            Self::Read { .. } => Code::Read,
            Self::Write { .. } => Code::Write,
            Self::NoTree(_) => Code::NoTree,
            Self::NoConfig(_) => Code::NoConfig,
            Self::Root { .. } => Code::Root,
            Self::Image { source, .. } => source.code(),
            Self::CommandForBareGuest(_) => Code::CommandForBareGuest,
            Self::CommandLine(_) => Code::CommandLine,
            Self::TooManyDevices(_) => Code::TooManyDevices,
            Self::TooLittleMemory { .. } => Code::TooLittleMemory,
            Self::TooMuchMemory(_) => Code::TooMuchMemory,
            Self::InitrdTooLarge { .. } => Code::InitrdTooLarge,
            Self::Memory { .. } => Code::Memory,
            Self::HostMemory { .. } => Code::HostMemory,
            Self::GroupMemory { .. } => Code::GroupMemory,
            Self::CommandNotRun => Code::CommandNotRun,
            Self::OptionForBareGuest { .. } => Code::OptionForBareGuest,
            Self::Share { .. } => Code::Share,
            Self::TagTwice(_) => Code::TagTwice,
            Self::Vsock(_) => Code::Vsock,
            Self::NoDevice => Code::NoDevice,
            Self::OpenDevice(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Code::DevicePermission
            }
            Self::OpenDevice(_) => Code::OpenDevice,
            Self::ModuleAbi { .. } => Code::ModuleAbi,
            Self::Module { .. } => Code::Module,
            Self::Output(_) => Code::Output,
            Self::Setup { .. } => Code::Setup,
            Self::Network(source) => source.code(),
            Self::Gdb { .. } | Self::GdbSocket(_) => Code::Gdb,
            Self::Disk { source, .. } => source.code(),
            Self::TooManyDisks { .. } => Code::TooManyDisks,
            Self::Options { source, .. } => source.code(),
        }
    }

    /// Why it went wrong.
    pub fn why(&self) -> String {
        match self {
            Self::NoKernel { tried } => {
                let tried: Vec<_> = tried
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                format!(
                    "none is named, and these do not exist: {}",
                    tried.join(", ")
                )
            }
            Self::NoInitrd(default) => {
                format!("none is named, and {} does not exist", default.display())
            }
            Self::Image { source, .. } => source.to_string(),
            Self::CommandForBareGuest(_) | Self::OptionForBareGuest { .. } => {
                "it is a bare guest, not Linux".into()
            }
            Self::CommandNotRun => {
                "the guest has ended, and the init that it has run is not lg's, so it knows of no command".into()
            }
            Self::GroupMemory { beside, room, .. } => format!(
                "of the {} MiB of {}, {} MiB are left, lg needs {} MiB beside the guest, and who \
                 needs more is killed",
                room.limit >> 20,
                room.group.display(),
                room.available >> 20,
                beside >> 20
            ),
            Self::CommandLine(cmdline::Error::TooLarge) => {
                "Linux takes 2047 bytes, some of which announce its devices".into()
            }
            Self::CommandLine(source) => source.to_string(),
            Self::TooManyDevices(_) => {
                "each has an interrupt of its own, and there are no more".into()
            }
            Self::TooLittleMemory { needed, .. } => {
                format!(
                    "kernel and initrd alone fill {} MiB",
                    needed.div_ceil(1 << 20)
                )
            }
            Self::TooMuchMemory(_) => {
                "the guest's first page tables lie in the first MiB of RAM, and map no more".into()
            }
            Self::InitrdTooLarge { size, limit } => format!(
                "it has {} MiB, and between the kernel and the 2 GiB that Linux allows are {} MiB",
                size.div_ceil(1 << 20),
                limit >> 20
            ),
            Self::HostMemory { available, .. } => format!(
                "{} MiB are free beside other guests and programs, and a guest's memory is never swapped",
                available >> 20
            ),
            Self::Options { source, .. } => source.why(),
            Self::Vsock(source) | Self::GdbSocket(source) => source.to_string(),
            Self::TagTwice(_) => "the guest tells shares apart by it".into(),
            Self::Disk { source, .. } => source.to_string(),
            Self::TooManyDisks { limit, .. } => format!("a guest can have {limit}"),
            Self::NoDevice => "the lg module is not loaded".into(),
            Self::OpenDevice(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                "you are not in the group that may use it (usually \"lguest\")".into()
            }
            Self::ModuleAbi { theirs, ours } => {
                format!("it speaks version {theirs} of the ABI, this lg version {ours}")
            }
            Self::Network(source) => source.why(),
            Self::NoTree(_) => "there is no Kconfig in it".into(),
            Self::NoConfig(_) => "the tree has no configuration yet".into(),
            Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Root { source, .. }
            | Self::Share { source, .. }
            | Self::Memory { source, .. }
            | Self::OpenDevice(source)
            | Self::Module { source, .. }
            | Self::Gdb { source, .. }
            | Self::Output(source)
            | Self::Setup { source, .. } => source.to_string(),
        }
    }

    /// What the user can do.
    pub fn fix(&self) -> String {
        match self {
            Self::NoKernel { .. } => {
                "name one, a vmlinux or bzImage with lguest support: lg run KERNEL"
            }
            Self::NoInitrd(_) => {
                "name one with --initrd FILE (/dev/null when the kernel has one built in)"
            }
            Self::Write { .. } => "see who may write there, and whether the disk is full",
            Self::NoTree(_) => "name one: lg config TREE",
            Self::NoConfig(_) => "make one first, such as: make tinyconfig",
            Self::Read { .. } => "name a file that exists and that you may read",
            Self::Root { .. } => "name a directory that exists and that you may read",
            Self::Image { source, .. } => source.fix(),
            Self::CommandForBareGuest(_) => "leave out \"-- COMMAND\"",
            Self::CommandLine(_) => "shorten --append, and leave out what is no plain text",
            Self::TooManyDevices(_) => "leave out some of --disk and --share",
            Self::TooLittleMemory { needed, .. } => {
                // The kernel wants some for itself.
                let enough = needed.div_ceil(1 << 20) + 64;
                return format!("give it more, such as -m {enough}M");
            }
            Self::TooMuchMemory(_) => "give it less with -m",
            Self::InitrdTooLarge { .. } => "make it smaller",
            Self::Memory { .. } => "give it less with -m, or free some memory",
            Self::HostMemory { .. } => "give it less with -m, or end another guest",
            Self::GroupMemory { beside, room, .. } => {
                // What it takes beside its RAM is less with less RAM.
                let fits = room.available.saturating_sub(*beside) >> 20;
                return format!("give it less with -m, such as -m {fits}M, or give the group more");
            }
            Self::CommandNotRun => {
                "leave out --initrd, or name a root as well: --root DIR; or leave out the command"
            }
            Self::OptionForBareGuest { option, .. } => return format!("leave out {option}"),
            Self::Share { .. } => "name a directory that you may read",
            Self::Options { source, .. } => return source.fix(),
            Self::Vsock(source) | Self::GdbSocket(source) => return source.fix(),
            Self::TagTwice(_) => "choose another for one of them",
            Self::Disk { path, source } => return source.fix(path),
            Self::TooManyDisks { .. } => "leave out some, or put several file systems on one",
            Self::NoDevice => "load it: sudo modprobe lg, or sudo insmod build/lg.ko",
            Self::OpenDevice(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                "sudo usermod -aG lguest $USER, then log in again"
            }
            Self::OpenDevice(_) => "load the module again: sudo rmmod lg, sudo modprobe lg",
            Self::ModuleAbi { .. } => "build and install the module and lg from the same source",
            Self::Network(source) => return source.fix(),
            Self::Module { .. } => "sudo dmesg may tell more",
            Self::Gdb { .. } => "name another socket",
            Self::Output(_) => "see where standard output goes",
            Self::Setup { .. } => "close other programs: a limit of the system was reached",
        }
        .into()
    }
}

/// The three lines for the user.
pub struct Report<'a>(pub &'a Error);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        write!(
            f,
            "error[{}]: {error}\n     why: {}\n     fix: {}",
            error.code(),
            error.why(),
            error.fix()
        )
    }
}
