// SPDX-License-Identifier: GPL-2.0
//! Modes, owners, times and extended attributes of the Host's files: a process of its own changes them.
//!
//! Landlock judges what is opened, made, moved and removed, but not this. A Launcher which may change
//! the mode of one file may change that of any file of the user's, so in the
//! [sandbox](crate::sandbox) it may change none. It gives the file, as a descriptor, to this process,
//! which looks by itself whether the file lies in a directory that the Guest may write to. What it
//! compares are the paths by which the kernel knows both: nobody in the sandbox can move a file into
//! such a directory from elsewhere.
//!
//! The process is `lg attributes`, with one end of a socket pair as its standard input, where it ends
//! when the other end is closed: with us, however we end. It is told the directories first, and
//! takes no more of them afterwards.

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::{retry_on_intr, Errno};
use rustix::net::{
    recv, recvmsg, send, sendmsg, socketpair, AddressFamily, RecvAncillaryBuffer,
    RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};

use super::links;
use crate::sandbox;

/// The subcommand of lg that is this process. It is none of the user's.
pub const SUBCOMMAND: &str = "attributes";

/// One message: the largest extended attribute of Linux, its name, and a little.
const MESSAGE_MAX: usize = (64 << 10) + 512;

// What a message begins with.
const DIRECTORY: u8 = 0;
const NO_MORE_DIRECTORIES: u8 = 1;
const MODE: u8 = 2;
const OWNER: u8 = 3;
const TIMES: u8 = 4;
const SET_XATTR: u8 = 5;
const REMOVE_XATTR: u8 = 6;

/// A change of a file's attributes.
#[derive(Debug)]
pub enum Change<'a> {
    /// Its permissions become these.
    Mode(u32),
    /// User and group, where they are given.
    Owner(Option<u32>, Option<u32>),
    /// The times of its last access and modification.
    Times(Timestamps),
    /// An extended attribute: name, value and flags of setxattr(2).
    SetXattr(&'a CStr, &'a [u8], u32),
    /// One less.
    RemoveXattr(&'a CStr),
}

impl<'a> Change<'a> {
    fn encode(&self) -> Vec<u8> {
        let id = |id: &Option<u32>| id.unwrap_or(u32::MAX).to_le_bytes();
        let time = |time: &Timespec| [time.tv_sec, time.tv_nsec].map(i64::to_le_bytes).concat();
        match self {
            Self::Mode(mode) => [&[MODE][..], &mode.to_le_bytes()].concat(),
            Self::Owner(user, group) => [&[OWNER][..], &id(user), &id(group)].concat(),
            Self::Times(times) => [
                vec![TIMES],
                time(&times.last_access),
                time(&times.last_modification),
            ]
            .concat(),
            Self::SetXattr(name, value, flags) => [
                &[SET_XATTR][..],
                &flags.to_le_bytes(),
                name.to_bytes_with_nul(),
                value,
            ]
            .concat(),
            Self::RemoveXattr(name) => [&[REMOVE_XATTR][..], name.to_bytes_with_nul()].concat(),
        }
    }

    /// `None` for what [`Change::encode`] does not make.
    fn decode(message: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = message.split_first()?;
        let number = |at: usize| Some(u32::from_le_bytes(*rest.get(at..)?.first_chunk()?));
        let id = |at| Some(Some(number(at)?).filter(|&id| id != u32::MAX));
        let long = |at: usize| Some(i64::from_le_bytes(*rest.get(at..)?.first_chunk()?));
        let time = |at| {
            Some(Timespec {
                tv_sec: long(at)?,
                tv_nsec: long(at + 8)?,
            })
        };
        Some(match kind {
            MODE => Self::Mode(number(0)?),
            OWNER => Self::Owner(id(0)?, id(4)?),
            TIMES => Self::Times(Timestamps {
                last_access: time(0)?,
                last_modification: time(16)?,
            }),
            SET_XATTR => {
                let name = CStr::from_bytes_until_nul(rest.get(4..)?).ok()?;
                let value = rest.get(4 + name.count_bytes() + 1..)?;
                Self::SetXattr(name, value, number(0)?)
            }
            REMOVE_XATTR => Self::RemoveXattr(CStr::from_bytes_until_nul(rest).ok()?),
            _ => return None,
        })
    }

    /// Does it here and now, to what `found` stands for.
    fn apply(&self, found: BorrowedFd<'_>) -> io::Result<()> {
        const ITSELF: AtFlags = AtFlags::EMPTY_PATH.union(AtFlags::SYMLINK_NOFOLLOW);
        let path = || links::path_of(found);
        let result = match *self {
            Self::Mode(mode) => {
                let (links, name) = links::by_link(found)?;
                rustix::fs::chmodat(links, name, Mode::from_raw_mode(mode), AtFlags::empty())
            }
            Self::Owner(user, group) => {
                let user = user.map(rustix::fs::Uid::from_raw);
                let group = group.map(rustix::fs::Gid::from_raw);
                rustix::fs::chownat(found, c"", user, group, ITSELF)
            }
            Self::Times(ref times) => rustix::fs::utimensat(found, c"", times, ITSELF),
            Self::SetXattr(name, value, flags) => {
                rustix::fs::setxattr(path(), name, value, XattrFlags::from_bits_retain(flags))
            }
            Self::RemoveXattr(name) => rustix::fs::removexattr(path(), name),
        };
        Ok(result?)
    }
}

/// Our end of the socket, once there is such a process.
static PROCESS: OnceLock<Mutex<OwnedFd>> = OnceLock::new();

/// Changes what `found`, a descriptor of any kind, stands for: by the process, if it was started.
///
/// # Errors
///
/// Those of the change; EPERM for a file in none of the directories, and ENAMETOOLONG for one that is
/// so deep in there that it has no path.
pub fn change(found: BorrowedFd<'_>, change: &Change<'_>) -> io::Result<()> {
    match PROCESS.get() {
        Some(process) => {
            let process = process.lock().unwrap_or_else(PoisonError::into_inner);
            ask(process.as_fd(), &change.encode(), Some(found))
        }
        None => change.apply(found),
    }
}

/// Starts the process, for files in these directories, and returns when it is ready. `lg` is our own
/// program.
///
/// # Errors
///
/// There can be no process, or a directory cannot be opened.
pub fn start(lg: &Path, directories: &[&Path]) -> io::Result<()> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Command::new(lg)
        .arg(SUBCOMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(theirs)
        .stdout(Stdio::null())
        // The terminal's signals are for us.
        .process_group(0)
        .spawn()?;
    for directory in directories {
        let directory = links::open_root(directory)?;
        ask(ours.as_fd(), &[DIRECTORY], Some(directory.as_fd()))?;
    }
    ask(ours.as_fd(), &[NO_MORE_DIRECTORIES], None)?;
    PROCESS
        .set(Mutex::new(ours))
        .map_err(|_| io::Error::other("there is one already"))
}

/// Sends a message, and waits for the answer.
fn ask(socket: BorrowedFd<'_>, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let files: Vec<_> = file.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        rights.push(SendAncillaryMessage::ScmRights(&files));
    }
    let message = [IoSlice::new(message)];
    retry_on_intr(|| sendmsg(socket, &message, &mut rights, SendFlags::NOSIGNAL))?;
    let mut answer = [0; 4];
    match retry_on_intr(|| recv(socket, &mut answer[..], RecvFlags::empty()))? {
        (_, 4) => match i32::from_le_bytes(answer) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        },
        _ => Err(Errno::IO.into()),
    }
}

/// Is that process: serves who is at the other end of standard input.
///
/// # Errors
///
/// Standard input is no such socket, or there can be no sandbox.
pub fn serve() -> io::Result<()> {
    let socket = io::stdin();
    let mut directories = Some(Vec::new());
    let mut served = Vec::new();
    let mut message = vec![0; MESSAGE_MAX];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let length = retry_on_intr(|| {
            let mut place = [IoSliceMut::new(&mut message)];
            recvmsg(&socket, &mut place, &mut rights, RecvFlags::CMSG_CLOEXEC)
        })?
        .bytes;
        if length == 0 {
            return Ok(());
        }
        let file = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let result = match (&mut directories, message[0], file) {
            (Some(directories), DIRECTORY, Some(directory)) => {
                directories.push(directory);
                Ok(())
            }
            (Some(_), NO_MORE_DIRECTORIES, None) => {
                served = directories.take().unwrap_or_default();
                // What the calls need and what cannot be opened in there.
                links::prepare(socket.as_fd())?;
                sandbox::enter_for_attributes()
            }
            (None, _, Some(file)) => serve_one(&served, &message[..length], file.as_fd()),
            _ => Err(Errno::INVAL.into()),
        };
        let errno = |error: io::Error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        let answer = result.map_or_else(errno, |()| 0);
        retry_on_intr(|| send(&socket, &answer.to_le_bytes(), SendFlags::NOSIGNAL))?;
    }
}

/// Makes a change to `file`, if it is in one of the directories.
fn serve_one(directories: &[OwnedFd], message: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    let change = Change::decode(message).ok_or(Errno::INVAL)?;
    let path = path(file)?;
    for directory in directories {
        // The path is read now: somebody outside may have moved the file.
        if path.starts_with(self::path(directory.as_fd())?) {
            return change.apply(file);
        }
    }
    Err(Errno::PERM.into())
}

/// The path by which the kernel knows it. For a file that has none, it does not begin with a slash.
fn path(file: BorrowedFd<'_>) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let path = rustix::fs::readlink(links::path_of(file), Vec::new())?;
    Ok(std::ffi::OsString::from_vec(path.into_bytes()).into())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_arrive_as_they_are() {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        for change in [
            Change::Mode(0o755),
            Change::Owner(Some(0), None),
            Change::Owner(None, Some(7)),
            Change::Times(Timestamps {
                last_access: time(-1, 2),
                last_modification: time(3, rustix::fs::UTIME_OMIT),
            }),
            Change::SetXattr(c"user.a", b"b\0c", 1),
            Change::SetXattr(c"user.empty", b"", 0),
            Change::RemoveXattr(c"user.a"),
        ] {
            let message = change.encode();
            let again = Change::decode(&message).unwrap();
            assert_eq!(format!("{again:?}"), format!("{change:?}"));
            assert!(Change::decode(&message[..1]).is_none(), "{change:?}");
        }
    }

    #[test]
    fn only_what_is_in_a_directory() {
        let place = tempfile::tempdir().unwrap();
        let served = place.path().join("served");
        let beside = place.path().join("served-not");
        for directory in [&served, &beside] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("file"), "").unwrap();
        }
        std::os::unix::fs::symlink(beside.join("file"), served.join("link")).unwrap();
        let directories = [File::open(&served).unwrap().into()];
        let message = Change::Mode(0o400).encode();
        let change = |file: &Path| {
            let file = File::open(file).unwrap();
            serve_one(&directories, &message, file.as_fd())
        };
        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
        change(&served.join("file")).unwrap();
        assert_eq!(mode(&served.join("file")), 0o400);
        for outside in [beside.join("file"), served.join("link"), "/".into()] {
            let before = mode(&outside);
            let error = change(&outside).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(mode(&outside), before);
        }
        // The directory itself is in it, and a file stays in it when its name is gone.
        change(&served).unwrap();
        let gone = File::open(served.join("file")).unwrap();
        fs::set_permissions(&served, fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_file(served.join("file")).unwrap();
        serve_one(&directories, &message, gone.as_fd()).unwrap();
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        serve_one(&directories, &message, pipe.as_fd()).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_message_is_a_change_or_not(message in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(change) = Change::decode(&message) {
                prop_assert!(Change::decode(&change.encode()).is_some());
            }
        }
    }
}
