// SPDX-License-Identifier: GPL-2.0
//! The Host's files, by descriptor and name.
//!
//! A name is one component, never "." or "..", and no call follows a symbolic link: whatever the
//! Guest asks for, and whatever somebody on the Host renames meanwhile, a step leads from a
//! directory to something in that directory.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use fuse_backend_rs::abi::fuse_abi::Attr;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawMode, ResolveFlags, Statx, StatxFlags, Timestamps,
};
use rustix::io::Errno;

use super::attributes::{self, Change};
use super::links::by_link;
pub use super::links::{is_kernels_own, open_root, path_of, prepare};

const EMPTY: &CStr = c"";
/// NAME_MAX of Linux.
const NAME_MAX: usize = 255;

/// The file's identity. No other file is the same at the same time, and what takes its number after
/// its end was born later, where the file system notes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device that the file system is on.
    pub device: u64,
    /// The mount it is reached by.
    pub mount: u64,
    inode: u64,
    born: (i64, u32),
}

/// The file's identity, and its attributes.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The file's identity.
    pub identity: Identity,
    /// Its attributes; the inode number is the Host's.
    pub attributes: Attr,
    /// The time when it was made, in seconds and nanoseconds, where the file system notes that.
    pub born: Option<(i64, u32)>,
}

impl Found {
    /// The type of the file.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.attributes.mode)
    }
}

/// Is this the name of something in a directory?
pub fn check_name(name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes();
    match bytes {
        b"" | b"." | b".." => Err(Errno::INVAL.into()),
        _ if bytes.contains(&b'/') => Err(Errno::INVAL.into()),
        _ if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG.into()),
        _ => Ok(()),
    }
}

/// A descriptor for `name` in `directory` which allows neither reading nor writing: nothing is
/// asked of the file, which may be of any type.
pub fn find(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_beneath(directory, name, flags, Mode::empty())
}

/// Makes a regular file, which must not be there, and opens it.
pub fn create(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
    mode: u32,
) -> io::Result<File> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_beneath(directory, name, flags, Mode::from_raw_mode(mode)).map(File::from)
}

/// Makes a regular file without a name in `directory`, and opens it.
pub fn create_unnamed(directory: BorrowedFd<'_>, flags: OFlags, mode: u32) -> io::Result<File> {
    let flags = flags | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    Ok(File::from(rustix::fs::openat(
        directory, c".", flags, mode,
    )?))
}

/// A descriptor for an open file as [`find`] gives one, whether or not it has a name.
pub fn find_open(file: &File) -> io::Result<OwnedFd> {
    let (links, name) = by_link(file.as_fd())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(links, name, flags, Mode::empty())?)
}

/// Writes out all of the file system that `file` is on.
pub fn sync_all(file: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

/// Lets `make` make a file of the mode that it asks for, without the bits of `umask`; where a
/// directory has a default access control list, the kernel lets that count instead.
///
/// The umask is the whole process's, so nobody else makes a file meanwhile.
pub fn with_umask<T>(umask: u32, make: impl FnOnce() -> T) -> T {
    static UMASK: Mutex<()> = Mutex::new(());
    let _alone = UMASK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    let made = make();
    rustix::process::umask(before);
    made
}

fn open_beneath(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    check_name(name)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(directory, name, flags, mode, resolve)?)
}

/// Opens what `found` stands for, which must be a regular file or a directory: to open anything
/// else has side effects.
pub fn open(found: BorrowedFd<'_>, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let (links, name) = by_link(found)?;
    Ok(File::from(rustix::fs::openat(
        links,
        name,
        flags,
        Mode::empty(),
    )?))
}

/// The attributes of what `found` stands for.
pub fn stat(found: BorrowedFd<'_>) -> io::Result<Found> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    Ok(found_by(&rustix::fs::statx(found, EMPTY, flags, FIELDS)?))
}

/// The attributes of `name` in `directory`.
pub fn stat_at(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Found> {
    check_name(name)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(found_by(&rustix::fs::statx(
        directory, name, flags, FIELDS,
    )?))
}

const FIELDS: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID);

fn found_by(stat: &Statx) -> Found {
    let device = |major, minor| rustix::fs::makedev(major, minor);
    Found {
        identity: Identity {
            device: device(stat.stx_dev_major, stat.stx_dev_minor),
            mount: stat.stx_mnt_id,
            inode: stat.stx_ino,
            born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        },
        attributes: Attr {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.tv_sec as u64,
            mtime: stat.stx_mtime.tv_sec as u64,
            ctime: stat.stx_ctime.tv_sec as u64,
            atimensec: stat.stx_atime.tv_nsec,
            mtimensec: stat.stx_mtime.tv_nsec,
            ctimensec: stat.stx_ctime.tv_nsec,
            mode: stat.stx_mode.into(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: device(stat.stx_rdev_major, stat.stx_rdev_minor) as u32,
            blksize: stat.stx_blksize,
            flags: 0,
        },
        born: StatxFlags::from_bits_retain(stat.stx_mask)
            .contains(StatxFlags::BTIME)
            .then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)),
    }
}

/// The content of the symbolic link.
pub fn read_link(found: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(found, EMPTY, Vec::new())?.into_bytes())
}

/// Makes a directory.
pub fn make_directory(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    check_name(name)?;
    Ok(rustix::fs::mkdirat(
        directory,
        name,
        Mode::from_raw_mode(mode),
    )?)
}

/// Makes a regular file, FIFO or socket. No device: it would be one of the Host's.
pub fn make_node(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    check_name(name)?;
    let file_type = FileType::from_raw_mode(mode as RawMode);
    match file_type {
        FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
        _ => return Err(Errno::PERM.into()),
    }
    let mode = Mode::from_raw_mode(mode);
    Ok(rustix::fs::mknodat(directory, name, file_type, mode, 0)?)
}

/// Makes a symbolic link with any content: nobody here follows it.
pub fn make_symlink(directory: BorrowedFd<'_>, name: &CStr, content: &CStr) -> io::Result<()> {
    check_name(name)?;
    Ok(rustix::fs::symlinkat(content, directory, name)?)
}

/// Makes another name for `found`.
pub fn make_link(found: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    check_name(name)?;
    let (links, link) = by_link(found)?;
    let flags = AtFlags::SYMLINK_FOLLOW;
    Ok(rustix::fs::linkat(links, link, directory, name, flags)?)
}

/// Removes a name, which is that of a directory or not.
pub fn remove(directory: BorrowedFd<'_>, name: &CStr, is_directory: bool) -> io::Result<()> {
    check_name(name)?;
    let flags = match is_directory {
        true => AtFlags::REMOVEDIR,
        false => AtFlags::empty(),
    };
    Ok(rustix::fs::unlinkat(directory, name, flags)?)
}

/// Moves a name.
pub fn rename(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    flags: rustix::fs::RenameFlags,
) -> io::Result<()> {
    check_name(from.1)?;
    check_name(to.1)?;
    Ok(rustix::fs::renameat_with(
        from.0, from.1, to.0, to.1, flags,
    )?)
}

/// Changes the permissions.
pub fn set_mode(found: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    attributes::change(found, &Change::Mode(mode & 0o7777))
}

/// Changes owner and group, where they are given.
pub fn set_owner(found: BorrowedFd<'_>, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    attributes::change(found, &Change::Owner(user, group))
}

/// Changes the times.
pub fn set_times(found: BorrowedFd<'_>, times: &Timestamps) -> io::Result<()> {
    attributes::change(found, &Change::Times(times.clone()))
}

/// Sets an extended attribute, with the flags of setxattr(2).
pub fn set_xattr(found: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
    attributes::change(found, &Change::SetXattr(name, value, flags))
}

/// Removes an extended attribute.
pub fn remove_xattr(found: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    attributes::change(found, &Change::RemoveXattr(name))
}
