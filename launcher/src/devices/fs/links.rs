// SPDX-License-Identifier: GPL-2.0
//! The directory that is shared, and a way to name what has no name: its link in /proc.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

/// Opens the directory that is to be shared, by a path of the user's.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    if is_kernels_own(root.as_fd())? {
        return Err(io::Error::other(
            "it is the kernel's own: the guest has one of its own",
        ));
    }
    Ok(root)
}

/// Is this on one of the file systems through which a kernel shows itself? The Guest's kernel has
/// them too, and the Host's show, and let one change, much more than files: `/proc/PID/mem`.
pub fn is_kernels_own(found: BorrowedFd<'_>) -> io::Result<bool> {
    /// From `linux:include/uapi/linux/magic.h`.
    const OWN: [u64; 16] = [
        0x0000_9fa0, // proc
        0x6265_6572, // sysfs
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0x6265_6570, // configfs
        0xcafe_4a11, // bpf
        0x6c6f_6f70, // binder
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x0000_1cd1, // devpts
        0x4249_4e4d, // binfmt_misc
        0xde5e_81e4, // efivarfs
        0xf97c_ff8c, // selinux
        0x4341_5d53, // smack
        0x6165_676c, // pstore
    ];
    let magic = rustix::fs::fstatfs(found)?.f_type as u64;
    Ok(OWN.contains(&(magic & 0xffff_ffff)))
}

/// A path for the calls on extended attributes, which take no descriptor of this kind.
pub fn path_of(found: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", found.as_raw_fd())
}

/// The link by which `found` can be given to calls that take a directory and a name.
///
/// It leads to the very file that the descriptor stands for, through no directory and no other
/// link; and if that is a symbolic link, no further.
pub(super) fn by_link(found: BorrowedFd<'_>) -> io::Result<(BorrowedFd<'static>, String)> {
    static LINKS: OnceLock<OwnedFd> = OnceLock::new();
    let links = match LINKS.get() {
        Some(links) => links,
        None => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let links = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
            LINKS.get_or_init(|| links)
        }
    };
    Ok((links.as_fd(), found.as_raw_fd().to_string()))
}

/// Makes ready what the calls here need and what is not reachable later.
pub fn prepare(root: BorrowedFd<'_>) -> io::Result<()> {
    by_link(root).map(drop)
}
