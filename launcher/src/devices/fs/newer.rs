// SPDX-License-Identifier: GPL-2.0
//! Requests that fuse-backend-rs does not know, since they are newer, and those for locks, which wait:
//! decoded here, and answered with the files of a [`FileServer`], or of a [`CowServer`].
//!
//! Their layout is that of `linux:include/uapi/linux/fuse.h`.

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{Attr, CreateIn, EntryOut, InHeader, LkIn, OpenOut, LK_FLOCK};
use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem};
use fuse_backend_rs::transport::Reader;
use rustix::fs::{OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use vm_memory::ByteValued;

use super::cow::CowServer;
use super::server::{entry, open_flags, FileServer, VALID};
use super::{host, locks};

const SETLKW: u32 = 33;
const INTERRUPT: u32 = 36;
const COPY_FILE_RANGE: u32 = 47;
const SYNCFS: u32 = 50;
const TMPFILE: u32 = 51;
const STATX: u32 = 52;
const COPY_FILE_RANGE_64: u32 = 53;

/// GETATTR_FH: a handle is given.
const BY_HANDLE: u32 = 1;
/// So much is copied with one request: others wait meanwhile, and who wants more asks again.
const COPY_MAX: u64 = 64 << 20;

/// The outcome of a request.
pub enum Answer {
    /// The content of the answer, or the error.
    Now(io::Result<Vec<u8>>),
    /// It waits for a lock. [`Files::locked`] tells of its end, by this number.
    Later(u64),
    /// It has no answer.
    Never,
    /// It is none of those here.
    Unknown,
}

/// The server of the requests that the library decodes, and of those here.
pub trait Files: FileSystem<Inode = u64, Handle = u64> + Send + Sync {
    /// Answers the request with this header, if it is one of those here. Only where it `may_wait` is
    /// there an [`Answer::Later`].
    fn answer_newer(&self, header: &InHeader, body: Reader<'_>, may_wait: bool) -> Answer;

    /// Becomes readable when somebody has waited for a lock and that is over; `None` where nobody
    /// can.
    fn lock_event(&self) -> Option<RawFd> {
        None
    }

    /// The results of the waits for locks that are over since the last call, by their numbers.
    fn locked(&self) -> Vec<(u64, io::Result<()>)> {
        Vec::new()
    }
}

impl Files for FileServer {
    fn answer_newer(&self, header: &InHeader, mut body: Reader<'_>, may_wait: bool) -> Answer {
        let body = &mut body;
        let answer = match header.opcode {
            SETLKW if may_wait => match lock(self, header, body) {
                Ok(Some(number)) => return Answer::Later(number),
                result => result.map(|_| Vec::new()),
            },
            INTERRUPT => {
                if let Ok(unique) = body.read_obj() {
                    self.state().locks.interrupt(unique);
                }
                return Answer::Never;
            }
            COPY_FILE_RANGE | COPY_FILE_RANGE_64 => {
                copy(self, header, body).map(|copied| longs(&[copied]))
            }
            SYNCFS => self.sync().map(|()| Vec::new()),
            TMPFILE => make_unnamed(self, header, body),
            STATX => answer_statx(body, VALID, |handle| {
                self.state().attributes(header.nodeid, handle)
            }),
            _ => return Answer::Unknown,
        };
        Answer::Now(answer)
    }

    fn lock_event(&self) -> Option<RawFd> {
        Some(self.state().locks.event())
    }

    fn locked(&self) -> Vec<(u64, io::Result<()>)> {
        self.state().locks.done()
    }
}

impl Files for CowServer {
    /// Nothing in here is locked, for nobody but this Guest sees it; what is not here, its kernel
    /// does without.
    fn answer_newer(&self, header: &InHeader, mut body: Reader<'_>, _: bool) -> Answer {
        let body = &mut body;
        let answer = match header.opcode {
            INTERRUPT => return Answer::Never,
            // Nothing of it is to last.
            SYNCFS => Ok(Vec::new()),
            TMPFILE => body.read_obj().and_then(|arguments: CreateIn| {
                let (entry, handle) =
                    self.create_unnamed(&Context::from(header), header.nodeid, arguments)?;
                Ok(created(entry, handle))
            }),
            STATX => answer_statx(body, VALID, |handle| self.attributes(header.nodeid, handle)),
            _ => return Answer::Unknown,
        };
        Answer::Now(answer)
    }
}

/// `struct fuse_lk_in`.
fn lock(files: &FileServer, header: &InHeader, body: &mut Reader<'_>) -> io::Result<Option<u64>> {
    let arguments: LkIn = body.read_obj()?;
    files.check_writable()?;
    let mut state = files.state();
    let (locks, file, room) = state.for_lock(arguments.fh)?;
    let request = locks::Request {
        inode: header.nodeid,
        handle: arguments.fh,
        owner: arguments.owner,
        flock: arguments.lk_flags & LK_FLOCK != 0,
        lock: arguments.lk.into(),
    };
    locks.wait(header.unique, &request, file, room)
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// `struct fuse_statx_in`, answered by a `struct fuse_statx_out` of what `attributes` finds for the
/// handle, if there is one: they are valid so long.
fn answer_statx(
    body: &mut Reader<'_>,
    valid: Duration,
    attributes: impl FnOnce(Option<u64>) -> io::Result<(Attr, Option<(i64, u32)>)>,
) -> io::Result<Vec<u8>> {
    let [flags, _]: [u32; 2] = body.read_obj()?;
    let handle = body.read_obj()?;
    let (attributes, born) = attributes((flags & BY_HANDLE != 0).then_some(handle))?;
    let valid = [valid.as_secs(), valid.subsec_nanos().into(), 0, 0];
    Ok([longs(&valid), statx(&attributes, born)].concat())
}

/// A `struct fuse_statx`.
fn statx(attributes: &Attr, born: Option<(i64, u32)>) -> Vec<u8> {
    let mut mask = StatxFlags::BASIC_STATS;
    mask.set(StatxFlags::BTIME, born.is_some());
    let born = born.unwrap_or_default();
    let mut bytes = Vec::with_capacity(256);
    let word = |bytes: &mut Vec<u8>, word: u32| bytes.extend(word.to_le_bytes());
    let long = |bytes: &mut Vec<u8>, long: u64| bytes.extend(long.to_le_bytes());
    word(&mut bytes, mask.bits());
    word(&mut bytes, attributes.blksize);
    long(&mut bytes, 0); // attributes
    word(&mut bytes, attributes.nlink);
    word(&mut bytes, attributes.uid);
    word(&mut bytes, attributes.gid);
    word(&mut bytes, attributes.mode);
    long(&mut bytes, attributes.ino);
    long(&mut bytes, attributes.size);
    long(&mut bytes, attributes.blocks);
    long(&mut bytes, 0); // attributes_mask
    for (seconds, nanoseconds) in [
        (attributes.atime, attributes.atimensec),
        (born.0 as u64, born.1),
        (attributes.ctime, attributes.ctimensec),
        (attributes.mtime, attributes.mtimensec),
    ] {
        long(&mut bytes, seconds);
        word(&mut bytes, nanoseconds);
        word(&mut bytes, 0);
    }
    let device = u64::from(attributes.rdev);
    word(&mut bytes, rustix::fs::major(device));
    word(&mut bytes, rustix::fs::minor(device));
    // The Guest has its own number for the file system.
    bytes.resize(256, 0);
    bytes
}

/// `struct fuse_create_in` and a name that means nothing, answered as CREATE is.
fn make_unnamed(
    files: &FileServer,
    header: &InHeader,
    body: &mut Reader<'_>,
) -> io::Result<Vec<u8>> {
    let arguments: CreateIn = body.read_obj()?;
    files.check_writable()?;
    let mut state = files.state();
    state.check_room()?;
    let directory = state.inodes.directory(header.nodeid)?;
    let mode = files.mode_of_file(arguments.mode & 0o7777);
    // Whether it may get a name later, O_EXCL says.
    let exclusive = OFlags::from_bits_retain(arguments.flags) & OFlags::EXCL;
    let flags = (open_flags(arguments.flags) - OFlags::TRUNC) | exclusive;
    let file = {
        let _caller = files.act_for(&Context::from(header), CapabilitySet::empty());
        host::with_umask(arguments.umask, || {
            host::create_unnamed(directory.as_fd(), flags, mode)
        })?
    };
    let (number, attributes) = state.inodes.adopt(host::find_open(&file)?)?;
    let handle = state.handles.add_file(file, false);
    Ok(created(entry(number, attributes), handle))
}

/// `struct fuse_entry_out` and `struct fuse_open_out`.
fn created(entry: Entry, handle: u64) -> Vec<u8> {
    let open = OpenOut {
        fh: handle,
        ..OpenOut::default()
    };
    [EntryOut::from(entry).as_slice(), open.as_slice()].concat()
}

/// `struct fuse_copy_file_range_in`. Returns how many bytes were copied: a `struct fuse_write_out`
/// and a `struct fuse_copy_file_range_out` are the same up to 4 GiB.
fn copy(files: &FileServer, header: &InHeader, body: &mut Reader<'_>) -> io::Result<u64> {
    let [from, mut from_offset, _, to, mut to_offset, length, flags]: [u64; 7] = body.read_obj()?;
    files.check_writable()?;
    if flags != 0 {
        return Err(Errno::INVAL.into());
    }
    let mut state = files.state();
    let from = state.handles.file(from)?.file.try_clone()?;
    let to = state.handles.file(to)?;
    to.set_appending(false)?;
    files.changes(&Context::from(header), &to.file)?;
    let length = length.min(COPY_MAX) as usize;
    let copied = rustix::fs::copy_file_range(
        &from,
        Some(&mut from_offset),
        &to.file,
        Some(&mut to_offset),
        length,
    );
    Ok(copied? as u64)
}

impl FileServer {
    /// Writes out what was written: of all file systems on which the Guest knows files.
    fn sync(&self) -> io::Result<()> {
        // By a share that is read-only nothing was.
        if self.check_writable().is_err() {
            return Ok(());
        }
        let inodes = &mut self.state().inodes;
        let mut result = Ok(());
        for some in inodes.some_of_each_file_system() {
            let mut open = |number| {
                let found = inodes.descriptor(number)?;
                host::open(found.as_fd(), OFlags::RDONLY)
            };
            let mut opened = Err(Errno::ACCESS.into());
            for number in some {
                opened = opened.or_else(|_| open(number));
            }
            let synced = opened.and_then(|file| host::sync_all(file.as_fd()));
            result = result.and(synced);
        }
        result
    }
}
