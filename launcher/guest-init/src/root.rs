// SPDX-License-Identifier: GPL-2.0
//! The file systems of the Guest: a directory of the Host's as the root, what every program expects
//! in it, and more directories of the Host's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, symlink, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::unistd::chroot;

use crate::config::{Access, Share};
use crate::{Doing, Failure};

// In the archive, before there is another root.
const ROOT: &str = "/root.new";

/// The mounts that every program expects: kind, place, options.
const OWN: [(&str, &str, Option<&str>); 7] = [
    ("proc", "/proc", None),
    ("sysfs", "/sys", None),
    ("devtmpfs", "/dev", None),
    ("devpts", "/dev/pts", Some("gid=5,mode=620,ptmxmode=666")),
    ("tmpfs", "/dev/shm", Some("mode=1777")),
    ("tmpfs", "/tmp", Some("mode=1777")),
    ("tmpfs", "/run", Some("mode=755")),
];

/// The mounts that a system has besides. A kernel of the user's may be without them.
const MORE: [(&str, &str, Option<&str>); 4] = [
    ("cgroup2", "/sys/fs/cgroup", None),
    ("mqueue", "/dev/mqueue", None),
    ("debugfs", "/sys/kernel/debug", Some("mode=700")),
    ("tracefs", "/sys/kernel/tracing", Some("mode=700")),
];

/// The links that udev would make in /dev.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Lets `share` be the root.
pub(crate) fn enter(share: &Share) -> Result<(), Failure> {
    fs::create_dir_all(ROOT).doing("make a directory for the root")?;
    mount_share(&share.tag, Path::new(ROOT), share.access)?;
    switch().doing("switch to the root")
}

fn mount_share(tag: &str, target: &Path, access: Access) -> Result<(), Failure> {
    let flags = match access {
        Access::ReadOnly => MsFlags::MS_RDONLY,
        Access::ReadWrite | Access::Private => MsFlags::empty(),
    };
    let mounted = mount(Some(tag), target, Some("virtiofs"), flags, None::<&str>);
    let why = match mounted {
        Ok(()) => return Ok(()),
        Err(Errno::ENODEV) => "this kernel has no CONFIG_VIRTIO_FS".into(),
        Err(error) => error.to_string(),
    };
    Err(Failure(format!("cannot mount the share {tag}: {why}")))
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
    root.is_none_or(|root| root.access == Access::Private)
}

/// Mounts what the Guest has for itself, and the shares. `root` is what [`enter`] was given.
/// `directory` stays reachable if that would hide it. Returns what must be undone at the end.
pub(crate) fn furnish(
    root: Option<&Share>,
    shares: &[Share],
    directory: Option<&Path>,
) -> Result<Made, Failure> {
    let hidden = directory.filter(|_| root.is_some()).and_then(Hidden::find);
    let may_make = may_make(root);
    for (kind, target, options) in OWN {
        make_mount_point(Path::new(target), may_make || target.starts_with("/dev/"))?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
            .doing(format!("mount {target}"))?;
    }
    for (kind, target, options) in MORE {
        mount_if_known(kind, Path::new(target), options).doing(format!("mount {target}"))?;
    }
    // As udev has it: whoever may use it is for the mount to say.
    match fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).doing("open /dev/fuse to all")
        }
        _ => {}
    }
    make_with_mode(Path::new("/run/lock"), 0o1777).doing("make /run/lock")?;
    for (target, link) in LINKS {
        symlink(target, link).doing(format!("make {link}"))?;
    }
    if let Some(hidden) = hidden {
        hidden.show().doing("mount the current directory")?;
    }
    let mut made = Made::default();
    for share in shares {
        if !may_make {
            made.directories(&share.target)
                .doing(format!("make {}", share.target.display()))?;
        }
        make_mount_point(&share.target, may_make)?;
        mount_share(&share.tag, &share.target, share.access)?;
        made.mounted.push(share.target.clone());
    }
    Ok(made)
}

/// Directories that were made in a tree of somebody else's, for shares to be mounted there.
#[derive(Default)]
pub(crate) struct Made {
    mounted: Vec<PathBuf>,
    /// The innermost last.
    directories: Vec<PathBuf>,
}

impl Made {
    /// Makes what is missing of `target`.
    fn directories(&mut self, target: &Path) -> io::Result<()> {
        let missing: Vec<_> = target
            .ancestors()
            .take_while(|path| !path.is_dir())
            .collect();
        for path in missing.into_iter().rev() {
            fs::create_dir(path)?;
            self.directories.push(path.into());
        }
        Ok(())
    }

    /// Removes them. Where something else was put meanwhile, that stays.
    pub(crate) fn remove(self) {
        if self.directories.is_empty() {
            return;
        }
        for target in self.mounted.iter().rev() {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
        for directory in self.directories.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn mount_if_known(kind: &str, target: &Path, options: Option<&str>) -> io::Result<()> {
    if target.starts_with("/dev") {
        fs::create_dir(target)?;
    }
    match mount(Some(kind), target, Some(kind), MsFlags::empty(), options) {
        // Not in this kernel; or it has no such place, which is the same.
        Err(Errno::ENODEV | Errno::ENOENT) if target.starts_with("/dev") => fs::remove_dir(target),
        Err(Errno::ENODEV | Errno::ENOENT) => Ok(()),
        result => Ok(result?),
    }
}

fn make_with_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes the directory for what `user`'s programs have at run time, and tells its name.
pub(crate) fn runtime_directory(user: u32, group: u32) -> io::Result<PathBuf> {
    let path = PathBuf::from(format!("/run/user/{user}"));
    fs::create_dir_all("/run/user")?;
    // It is there if the command's own directory is in it.
    match make_with_mode(&path, 0o700) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    chown(&path, Some(user), Some(group))?;
    Ok(path)
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
