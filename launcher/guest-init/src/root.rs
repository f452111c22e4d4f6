// SPDX-License-Identifier: GPL-2.0
//! The file systems of the guest: a directory of the Host's as the root, what every program expects
//! in it, and more directories of the Host's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, symlink, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{mount, MsFlags};
use nix::unistd::chroot;

use crate::config::{Access, Share};
use crate::{Doing, Failure};

// In the archive, before there is another root.
const LOWER: &str = "/lower";
const CHANGES: &str = "/changes";
const ROOT: &str = "/root.new";

const OWN: [(&str, &str, Option<&str>); 7] = [
    ("proc", "/proc", None),
    ("sysfs", "/sys", None),
    ("devtmpfs", "/dev", None),
    ("devpts", "/dev/pts", Some("gid=5,mode=620,ptmxmode=666")),
    ("tmpfs", "/dev/shm", Some("mode=1777")),
    ("tmpfs", "/tmp", Some("mode=1777")),
    ("tmpfs", "/run", Some("mode=755")),
];

/// What udev would link in /dev.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Lets `share` be the root.
pub(crate) fn enter(share: &Share) -> Result<(), Failure> {
    fs::create_dir_all(ROOT).doing("make a directory for the root")?;
    if share.access == Access::Overlay {
        fs::create_dir_all(LOWER).doing("make a directory for the root")?;
        mount_share(&share.tag, Path::new(LOWER), Access::ReadOnly)?;
        mount_overlay().doing("mount the overlay of the root")?;
    } else {
        mount_share(&share.tag, Path::new(ROOT), share.access)?;
    }
    switch().doing("switch to the root")
}

fn mount_share(tag: &str, target: &Path, access: Access) -> Result<(), Failure> {
    let flags = match access {
        Access::ReadOnly => MsFlags::MS_RDONLY,
        Access::ReadWrite | Access::Overlay => MsFlags::empty(),
    };
    let mounted = mount(Some(tag), target, Some("virtiofs"), flags, None::<&str>);
    let why = match mounted {
        Ok(()) => return Ok(()),
        Err(Errno::ENODEV) => "this kernel has no CONFIG_VIRTIO_FS".into(),
        Err(error) => error.to_string(),
    };
    Err(Failure(format!("cannot mount the share {tag}: {why}")))
}

/// Mounts what is in [`LOWER`] on [`ROOT`], with all changes in memory.
fn mount_overlay() -> io::Result<()> {
    fs::create_dir_all(CHANGES)?;
    mount(
        Some("tmpfs"),
        CHANGES,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )?;
    let (upper, work) = (format!("{CHANGES}/upper"), format!("{CHANGES}/work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    // The root directory itself is the upper one.
    let like = fs::metadata(LOWER)?;
    chown(&upper, Some(like.uid()), Some(like.gid()))?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(like.mode() & 0o7777))?;
    // Directories can be renamed. The rest asks for what a share hasn't got: handles that outlive
    // this boot, and inode numbers with bits to spare.
    let options = format!(
        "lowerdir={LOWER},upperdir={upper},workdir={work},redirect_dir=on,index=off,metacopy=off,xino=off"
    );
    mount(
        Some("overlay"),
        ROOT,
        Some("overlay"),
        MsFlags::empty(),
        Some(&options[..]),
    )?;
    Ok(())
}

/// As switch_root(8) does: the archive's own root cannot be pivoted away.
fn switch() -> io::Result<()> {
    std::env::set_current_dir(ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    std::env::set_current_dir("/")
}

/// May files and directories be made in `root` at will? Not in a tree of somebody else's.
pub(crate) fn may_make(root: Option<&Share>) -> bool {
    root.is_none_or(|root| root.access == Access::Overlay)
}

/// Mounts what the Guest has for itself, and the shares. `root` is what [`enter`] was given.
/// `directory` stays reachable if that would hide it.
pub(crate) fn furnish(
    root: Option<&Share>,
    shares: &[Share],
    directory: Option<&Path>,
) -> Result<(), Failure> {
    let hidden = directory.filter(|_| root.is_some()).and_then(Hidden::find);
    let may_make = may_make(root);
    for (kind, target, options) in OWN {
        make_mount_point(Path::new(target), may_make || target.starts_with("/dev/"))?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
            .doing(format!("mount {target}"))?;
    }
    for (target, link) in LINKS {
        symlink(target, link).doing(format!("make {link}"))?;
    }
    if let Some(hidden) = hidden {
        hidden.show().doing("mount the current directory")?;
    }
    for share in shares {
        make_mount_point(&share.target, may_make)?;
        mount_share(&share.tag, &share.target, share.access)?;
    }
    Ok(())
}

fn make_mount_point(target: &Path, may_make: bool) -> Result<(), Failure> {
    let name = target.display();
    if target.is_dir() {
        Ok(())
    } else if may_make {
        fs::create_dir_all(target).doing(format!("make {name}"))
    } else {
        Err(Failure(format!(
            "cannot mount {name}: the root has no such directory, and with --rw none is made\n\
             fix: make it, or leave out --rw"
        )))
    }
}

/// A directory of the Host's in one that the Guest has for itself.
struct Hidden {
    path: PathBuf,
    directory: File,
}

impl Hidden {
    /// Is `path` one? Called before it is hidden.
    fn find(path: &Path) -> Option<Self> {
        let own = ["/tmp", "/run", "/dev/shm"].map(Path::new);
        if !own.iter().any(|own| path.starts_with(own) && path != *own) {
            return None;
        }
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(path)
            .ok()?;
        Some(Self {
            path: path.into(),
            directory,
        })
    }

    /// Mounts it where it was.
    fn show(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let source = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        mount(
            Some(&source[..]),
            &self.path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    }
}
