// SPDX-License-Identifier: GPL-2.0
//! What is to run: the kernel, its initrd and its command line, found, read and checked.

use std::env;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use linux_loader::cmdline::Cmdline;

use crate::boot::COMMAND_LINE_SIZE;
use crate::cli::Run;
use crate::cpio;
use crate::devices::Devices;
use crate::error::Error;
use crate::fs::share::Share;
use crate::image::{Image, ImageError};
use crate::root::Root;
use crate::streams::Streams;
use crate::told;

/// Where an installed lg finds its guest.
const INSTALLED_KERNEL: &str = "/usr/lib/lg/vmlinux";
/// Where an installed lg finds its guest's initial root.
pub const INSTALLED_INITRD: &str = "/usr/lib/lg/initramfs.cpio";

/// A Guest that can be loaded.
pub struct Guest {
    /// Where the kernel was.
    pub path: PathBuf,
    /// The kernel.
    pub image: Image,
    /// The initrd; empty if there is none.
    pub initrd: Vec<u8>,
    /// The kernel's command line, but for what announces the devices.
    command_line: Vec<String>,
    /// The directories that it shares with the Host.
    pub shares: Vec<Share>,
    /// What the command's standard streams are.
    pub streams: Streams,
}

impl Guest {
    /// Finds what `options` ask for.
    pub fn find(options: &Run) -> Result<Self, Error> {
        let path = find_kernel(options.kernel.as_deref())?;
        let image = Image::parse(read(&path)?).map_err(|error| refused(&path, error))?;
        if !options.command.is_empty() && !image.linux {
            return Err(Error::CommandForBareGuest(path));
        }
        let streams = Streams::of(image.linux, !options.command.is_empty());
        let root = match image.linux {
            true => Root::find(options)?,
            false => None,
        };
        let initrd = initrd(options, &image, &streams, root.as_ref())?;
        let command_line = arguments(options, &image);
        let shares = root.iter().map(Root::share);
        Ok(Self {
            path,
            image,
            initrd,
            command_line,
            shares: shares.chain(options.share.iter().cloned()).collect(),
            streams,
        })
    }

    /// The kernel's command line on a machine with these devices.
    ///
    /// # Errors
    ///
    /// It is longer than Linux takes, or holds what is no plain text.
    pub fn command_line(&self, devices: &Devices) -> Result<CString, Error> {
        let line = || {
            let mut line = Cmdline::new(COMMAND_LINE_SIZE)?;
            devices.announce(&mut line)?;
            for word in &self.command_line {
                line.insert_str(word)?;
            }
            line.as_cstring()
        };
        line().map_err(Error::CommandLine)
    }

    /// The error for what is wrong with the kernel.
    pub fn refused(&self, source: ImageError) -> Error {
        refused(&self.path, source)
    }
}

fn refused(path: &Path, source: ImageError) -> Error {
    Error::Image {
        path: path.into(),
        source,
    }
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
    tried
        .iter()
        .find(|path| path.exists())
        .cloned()
        .ok_or(Error::NoKernel { tried })
}

/// The initrd, with what the Guest's init is to know behind it.
fn initrd(
    options: &Run,
    image: &Image,
    streams: &Streams,
    root: Option<&Root>,
) -> Result<Vec<u8>, Error> {
    let mut initrd = match &options.initrd {
        Some(path) => read(path)?,
        None if !image.linux => return Ok(Vec::new()),
        None if Path::new(INSTALLED_INITRD).exists() => read(Path::new(INSTALLED_INITRD))?,
        None => return Err(Error::NoInitrd(INSTALLED_INITRD.into())),
    };
    if image.linux {
        initrd.resize(initrd.len().next_multiple_of(cpio::ALIGN), 0);
        initrd.extend(told::archive(options, streams, root)?);
    }
    Ok(initrd)
}

fn arguments(options: &Run, image: &Image) -> Vec<String> {
    let mut words = Vec::new();
    if image.linux {
        // Our own init opens hvc0 by itself, and leaves the kernel's log to the hypercall. Any other
        // expects its terminal to be /dev/console, and so shares it with the kernel.
        if options.initrd.is_none() {
            words.push("console=lguest0".into());
        } else {
            words.push("console=hvc0".into());
            if !options.verbose {
                words.push("quiet".into());
            }
        }
    }
    if let Some(net) = options.net.as_ref().filter(|_| image.linux) {
        words.extend(net.argument());
    }
    let asked = options.append.iter().filter(|words| !words.is_empty());
    words.extend(asked.cloned());
    words
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(line(&["--net", "tap=tap0"]), "console=lguest0");
        assert_eq!(
            line(&["--net", "user", "--append", "quiet"]),
            "console=lguest0 ip=10.0.2.15::10.0.2.2:255.255.255.0:lguest:eth0:off:10.0.2.3 quiet"
        );
    }

    #[test]
    fn command_lines_that_cannot_be() {
        let guest = |append: &str| Guest {
            path: PathBuf::new(),
            image: Image::parse(elf(&good_notes())).unwrap(),
            initrd: Vec::new(),
            command_line: vec![append.into()],
            shares: Vec::new(),
            streams: Streams::TYPED,
        };
        let line = |append: &str| guest(append).command_line(&Devices::default());
        let longest = "x".repeat(COMMAND_LINE_SIZE - 1);
        assert_eq!(line(&longest).unwrap().as_bytes(), longest.as_bytes());
        for bad in [
            "x".repeat(COMMAND_LINE_SIZE),
            "a\nb".into(),
            "\u{1b}".into(),
        ] {
            let error = line(&bad).unwrap_err();
            assert!(matches!(error, Error::CommandLine(_)), "{error:?}");
        }
    }

    #[test]
    fn the_init_is_told_behind_the_initrd() {
        let path = std::env::temp_dir().join(format!("lg-initrd-{}", std::process::id()));
        fs::write(&path, b"odd").unwrap();
        let options = run(&["--initrd", path.to_str().unwrap()]).unwrap();
        let linux = Image::parse(elf(&good_notes())).unwrap();
        let initrd = initrd(&options, &linux, &Streams::TYPED, None);
        fs::remove_file(&path).unwrap();
        let initrd = initrd.unwrap();
        assert_eq!(initrd[..10], *b"odd\x00070701");
    }
}
