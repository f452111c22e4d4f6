// SPDX-License-Identifier: GPL-2.0
//! The Guest that is to run: the kernel, its initrd and its command line, found, read and checked.

use std::env;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use linux_loader::cmdline::{self, Cmdline};
use nix::sys::utsname::uname;

use crate::boot::cpio;
use crate::boot::{self, LoadError};
use crate::cli::Run;
use crate::devices::fs::share::Share;
use crate::devices::slot::Slot;
use crate::image::{Abi, Image};
use crate::plan::modules::{self, Module};
use crate::plan::root::Root;
use crate::plan::told;
use crate::report::codes::Code;
use crate::report::messages::say;
use crate::report::steps::Steps;
use crate::report::system::cannot_read;
use crate::report::{Error, Explain};
use crate::session::streams::Streams;

/// The path where an installed lg finds its Guest.
const INSTALLED_KERNEL: &str = "/usr/lib/lg/vmlinux";
/// The path where an installed lg finds its Guest's initial root.
pub const INSTALLED_INITRD: &str = "/usr/lib/lg/initramfs.cpio";

/// The reasons why there is nothing that can be run, or not so.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum GuestError {
    #[error("{}", Code::NoKernel.title())]
    NoKernel { tried: Vec<PathBuf> },
    #[error("{}", Code::NoInitrd.title())]
    NoInitrd(PathBuf),
    #[error("{} runs no commands", .0.display())]
    CommandForBareGuest(PathBuf),
    #[error("{option} means nothing to {}", path.display())]
    OptionForBareGuest { path: PathBuf, option: &'static str },
    #[error("there can be no such command line")]
    CommandLine(#[source] cmdline::Error),
}

impl Explain for GuestError {
    fn code(&self) -> Code {
        match self {
            Self::NoKernel { .. } => Code::NoKernel,
            Self::NoInitrd(_) => Code::NoInitrd,
            Self::CommandForBareGuest(_) => Code::CommandForBareGuest,
            Self::OptionForBareGuest { .. } => Code::OptionForBareGuest,
            Self::CommandLine(_) => Code::CommandLine,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::NoKernel { tried } => {
                let tried = tried.iter().map(|path| path.display().to_string());
                let tried = tried.collect::<Vec<_>>().join(", ");
                format!("none is named, and these do not exist: {tried}")
            }
            Self::NoInitrd(default) => {
                format!("none is named, and {} does not exist", default.display())
            }
            Self::CommandForBareGuest(_) | Self::OptionForBareGuest { .. } => {
                "it is a bare guest, not Linux".into()
            }
            Self::CommandLine(cmdline::Error::TooLarge) => {
                "Linux takes 2047 bytes, 1023 by Xen's ABI, some of which may announce its devices"
                    .into()
            }
            Self::CommandLine(source) => source.to_string(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoKernel { .. } => {
                "name one, a vmlinux or bzImage with lguest support: lg run KERNEL".into()
            }
            Self::NoInitrd(_) => {
                "name one with --initrd FILE (/dev/null when the kernel has one built in)".into()
            }
            Self::OptionForBareGuest { option, .. } => format!("leave out {option}"),
            Self::CommandForBareGuest(_) | Self::CommandLine(_) => self.code().fix().to_string(),
        }
    }
}

/// A Guest that can be loaded.
pub struct Guest {
    /// The kernel.
    pub image: Image,
    /// The initrd's path.
    pub initrd_path: Option<PathBuf>,
    /// The initrd; empty if there is none.
    pub initrd: Vec<u8>,
    /// The Host's directory that is its root.
    pub root: Option<Root>,
    /// The kernel's command line, but for what announces the devices.
    command_line: Vec<String>,
    /// The directories that it shares with the Host.
    pub shares: Vec<Share>,
    /// The kinds of the command's standard streams.
    pub streams: Streams,
    /// It runs by Xen's ABI and has no driver for the bus of virtio's devices: its disks and its network are Xen's.
    pub has_no_bus: bool,
}

impl Guest {
    /// Finds what `options` ask for. What is done goes to `steps`.
    pub fn find(options: &Run, steps: &Steps) -> Result<Self, Error> {
        let path = find_kernel(options.kernel.as_deref())?;
        let image = Image::open(&path)?;
        steps.done("kernel read");
        if !options.command.is_empty() && !image.linux {
            return Err(GuestError::CommandForBareGuest(path).into());
        }
        if let (false, Some(option)) = (image.linux, option_of_linux(options)) {
            return Err(GuestError::OptionForBareGuest { path, option }.into());
        }
        let streams = Streams::of(image.linux, options.initrd.is_some());
        let root = match image.linux {
            true => Root::find(options)?,
            false => None,
        };
        let initrd_path = match image.linux {
            true => Some(find_initrd(options.initrd.as_deref())?),
            false => options.initrd.clone(),
        };
        let tree = match image.abi {
            Abi::Lguest => None,
            Abi::Xen(_) => modules::tree(options.modules.as_deref(), image.release().as_deref()),
        };
        let config = || {
            let beside = || modules::find_config(&path, image.release().as_deref(), None);
            image.config().or_else(|| beside().map(|(_, text)| text))
        };
        let has_no_bus = matches!(image.abi, Abi::Xen(_))
            && can_be_without_bus(options, root.is_some())
            && !modules::has_bus(tree.as_deref(), config)?;
        let told = match image.linux {
            true => {
                let modules = match has_no_bus {
                    true => Some(Vec::new()),
                    false => modules(options, &image, root.is_some(), tree.as_deref())?,
                };
                told::archive(options, &streams, root.as_ref(), modules.as_deref())?
            }
            false => Vec::new(),
        };
        let limit = boot::initrd_limit(&image);
        let initrd = initrd(initrd_path.as_deref(), &told, limit)?;
        steps.done("initrd read");
        let command_line = arguments(options, &image);
        let shares = root.iter().map(Root::share);
        Ok(Self {
            image,
            initrd_path,
            initrd,
            command_line,
            shares: shares.chain(options.share.iter().cloned()).collect(),
            root,
            streams,
            has_no_bus,
        })
    }

    /// The kernel's command line on a machine with devices in these slots.
    ///
    /// # Errors
    ///
    /// It is longer than Linux takes, or holds what is no plain text.
    pub fn command_line(&self, slots: &[Slot]) -> Result<CString, Error> {
        let line = || {
            let mut line = Cmdline::new(boot::command_line_size(&self.image))?;
            // A kernel of Xen's finds its devices by the xenstore.
            if self.image.abi == Abi::Lguest {
                for slot in slots {
                    slot.announce(&mut line)?;
                }
            }
            for word in &self.command_line {
                line.insert_str(word)?;
            }
            line.as_cstring()
        };
        line().map_err(|error| GuestError::CommandLine(error).into())
    }
}

/// Is nothing asked for that is on the bus of virtio's devices? Our own init has its streams there.
fn can_be_without_bus(options: &Run, has_root: bool) -> bool {
    options.initrd.is_some()
        && options.command.is_empty()
        && !has_root
        && options.share.is_empty()
        && options.vsock.is_none()
}

/// The modules for the devices of a kernel that runs by Xen's ABI; none for others.
fn modules(
    options: &Run,
    image: &Image,
    has_root: bool,
    tree: Option<&Path>,
) -> Result<Option<Vec<Module>>, Error> {
    if image.abi == Abi::Lguest {
        return Ok(None);
    }
    let Some(tree) = tree else {
        let release = image.release();
        let release = release.as_deref().unwrap_or("this kernel");
        say(&format!(
            "there are no modules of {release}; it must have built in what it needs (--modules names them)"
        ));
        return Ok(Some(Vec::new()));
    };
    let kinds = [
        ("fs", has_root || !options.share.is_empty()),
        ("net", options.net.is_some()),
        ("vsock", options.vsock.is_some()),
        ("blk", !options.disk.is_empty()),
    ];
    let kinds = kinds.iter().filter_map(|&(kind, has)| has.then_some(kind));
    let kinds: Vec<_> = ["console", "rng"].into_iter().chain(kinds).collect();
    modules::find(tree, &modules::wanted(&kinds)).map(Some)
}

/// The kernel that the Host runs, where a distribution puts it.
fn kernel_of_host() -> Option<PathBuf> {
    let name = uname().ok()?;
    Some(Path::new("/boot").join(format!("vmlinuz-{}", name.release().to_str()?)))
}

/// The kernel that was named, or the first of the usual ones.
pub fn find_kernel(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(named) = named {
        return Ok(named.into());
    }
    let mut trees = vec![PathBuf::new()];
    trees.extend(env::var_os("KBUILD_OUTPUT").map(PathBuf::from));
    let in_tree = |tree: &PathBuf| ["vmlinux", "arch/x86/boot/bzImage"].map(|file| tree.join(file));
    let mut tried: Vec<_> = trees.iter().flat_map(in_tree).collect();
    tried.push(INSTALLED_KERNEL.into());
    tried.extend(kernel_of_host());
    tried
        .iter()
        .find(|path| path.exists())
        .cloned()
        .ok_or(GuestError::NoKernel { tried }.into())
}

/// The initrd that was named, or the installed one.
fn find_initrd(named: Option<&Path>) -> Result<PathBuf, Error> {
    match named {
        Some(path) => Ok(path.into()),
        None if Path::new(INSTALLED_INITRD).exists() => Ok(INSTALLED_INITRD.into()),
        None => Err(GuestError::NoInitrd(INSTALLED_INITRD.into()).into()),
    }
}

/// The initrd, with what the Guest's init is told behind it. A file of more than `limit` bytes is not
/// even read.
fn initrd(path: Option<&Path>, told: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    let size = path.map_or(0, |path| fs::metadata(path).map_or(0, |file| file.len()));
    if size > limit {
        return Err(LoadError::InitrdTooLarge { size, limit }.into());
    }
    let mut initrd = match path {
        Some(path) => fs::read(path).map_err(cannot_read(path))?,
        None => Vec::new(),
    };
    if !told.is_empty() {
        initrd.resize(initrd.len().next_multiple_of(cpio::ALIGN), 0);
        initrd.extend(told);
    }
    Ok(initrd)
}

/// An option that only lg's init makes something of.
fn option_of_linux(options: &Run) -> Option<&'static str> {
    [
        ("--root", options.root.is_some()),
        ("--rw", options.rw),
        ("--env", !options.env.is_empty()),
        ("--modules", options.modules.is_some()),
    ]
    .into_iter()
    .find_map(|(option, given)| given.then_some(option))
}

fn arguments(options: &Run, image: &Image) -> Vec<String> {
    let mut words = Vec::new();
    if image.linux {
        // Our own init opens hvc0 by itself, and leaves the kernel's log to the hypercall. Any other
        // expects its terminal to be /dev/console, and so shares it with the kernel. With a command,
        // it must be our own, and the log tells whether it was.
        if options.initrd.is_none() || !options.command.is_empty() {
            let log = match image.abi {
                Abi::Lguest => "console=lguest0",
                // Its first console is the log by itself, but for what is said before there is one.
                Abi::Xen(_) => "earlyprintk=xen",
            };
            words.push(log.into());
        } else {
            words.push("console=hvc0".into());
            if !options.verbose {
                words.push("quiet".into());
            }
        }
        if options.report.is_some() {
            words.extend(for_report(&words));
        }
    }
    if let Some(net) = options.net.as_ref().filter(|_| image.linux) {
        words.extend(net.argument());
    }
    let asked = options.append.iter().filter(|words| !words.is_empty());
    words.extend(asked.cloned());
    words
}

/// The words by which a kernel tells of its boot: all of it, by hypercall.
fn for_report(before: &[String]) -> Vec<String> {
    // The last console is the one that is the init's.
    let shared = before.iter().any(|word| word == "console=hvc0");
    let log = shared.then_some("console=lguest0 console=hvc0");
    let words = log.into_iter().chain(["initcall_debug", "loglevel=8"]);
    words.map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::lguest::COMMAND_LINE_SIZE;
    use crate::cli::tests::run;
    use crate::image::tests::{elf, good_notes};

    #[test]
    fn command_lines() {
        let linux = Image::parse(elf(&good_notes())).unwrap();
        let line = |words| arguments(&run(words).unwrap(), &linux).join(" ");
        assert_eq!(line(&[]), "console=lguest0");
        assert_eq!(
            line(&[
                "--append",
                "debug",
                "--append=",
                "--append=a b",
                "--",
                "true"
            ]),
            "console=lguest0 debug a b"
        );
        assert_eq!(line(&["--initrd", "mine"]), "console=hvc0 quiet");
        assert_eq!(line(&["-v", "--initrd", "mine"]), "console=hvc0");
        let ours = line(&["--initrd", "mine", "--", "true"]);
        assert_eq!(ours, "console=lguest0");
        assert_eq!(line(&["--net", "tap=tap0"]), "console=lguest0");
        assert_eq!(
            line(&["--report", "x", "--append", "quiet"]),
            "console=lguest0 initcall_debug loglevel=8 quiet"
        );
        assert_eq!(
            line(&["--report", "x", "--initrd", "mine", "-v"]),
            "console=hvc0 console=lguest0 console=hvc0 initcall_debug loglevel=8"
        );
        assert_eq!(
            line(&["--net", "user", "--append", "quiet"]),
            "console=lguest0 ip=10.0.2.15::10.0.2.2:255.255.255.0:lguest:eth0:off:10.0.2.3 quiet"
        );
    }

    #[test]
    fn the_log_of_a_kernel_of_xens() {
        let linux = Image::parse(elf(&crate::image::xen::tests::good_notes())).unwrap();
        let line = |words: &[_]| arguments(&run(words).unwrap(), &linux).join(" ");
        assert_eq!(line(&["--", "true"]), "earlyprintk=xen");
        assert_eq!(line(&["-v", "--initrd", "mine"]), "console=hvc0");
    }

    #[test]
    fn command_lines_that_cannot_be() {
        let guest = |append: &str| Guest {
            image: Image::parse(elf(&good_notes())).unwrap(),
            initrd_path: None,
            initrd: Vec::new(),
            root: None,
            command_line: vec![append.into()],
            has_no_bus: false,
            shares: Vec::new(),
            streams: Streams {
                place: None,
                console: false,
                names: Vec::new(),
                closed: Vec::new(),
            },
        };
        let line = |append: &str| guest(append).command_line(&[]);
        let longest = "x".repeat(COMMAND_LINE_SIZE - 1);
        assert_eq!(line(&longest).unwrap().as_bytes(), longest.as_bytes());
        for bad in [
            "x".repeat(COMMAND_LINE_SIZE),
            "a\nb".into(),
            "\u{1b}".into(),
        ] {
            let error = line(&bad).unwrap_err();
            assert_eq!(error.code(), Code::CommandLine, "{error:?}");
        }
    }

    #[test]
    fn the_init_is_told_behind_the_initrd() {
        let path = std::env::temp_dir().join(format!("lg-initrd-{}", std::process::id()));
        fs::write(&path, b"odd").unwrap();
        let told = initrd(Some(&path), b"told", 3);
        let bare = initrd(Some(&path), b"", 3);
        fs::remove_file(&path).unwrap();
        assert_eq!(told.unwrap(), *b"odd\0told");
        assert_eq!(bare.unwrap(), *b"odd");
    }
}
