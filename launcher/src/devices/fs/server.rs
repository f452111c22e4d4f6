// SPDX-License-Identifier: GPL-2.0
//! Answers FUSE requests: what each of them does with the Host's files.
//!
//! fuse-backend-rs has decoded a request, and every number in it is the Guest's word. The methods
//! are those of its trait [`FileSystem`]; where one is missing, the Guest hears ENOSYS and does
//! without.
//!
//! The Guest's kernel checks permissions, access control lists among them (a virtio-fs driver always
//! does); the Host's kernel checks what the user who started lg may do. Nothing more is granted than
//! both grant: root's lg only gives files the owners that the Guest means. A read-only share refuses
//! here whatever would change it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{
    stat64, statvfs64, Attr, CreateIn, FOPEN_IN_KILL_SUIDGID, LK_FLOCK, WRITE_KILL_PRIV,
};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileLock, FileSystem, FsOptions, GetxattrReply, ListxattrReply,
    OpenOptions, SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use nix::libc;
use nix::unistd::{geteuid, setfsgid, setfsuid, Gid, Uid};
use rustix::fs::{
    FallocateFlags, FileType, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT,
};
use rustix::io::Errno;
use rustix::thread::{capabilities, set_capabilities, CapabilitySet, CapabilitySets};

use super::handles::Handles;
use super::host;
use super::inodes::Inodes;
use super::locks::{self, Locks};

/// The time for which the Guest may rely on names and attributes without asking again.
///
/// Long enough that walking a path again and again asks once, short enough that nobody who edits
/// on the Host and builds in the Guest can tell.
pub(super) const VALID: Duration = Duration::from_millis(100);
/// Extended attributes are at most so large (XATTR_SIZE_MAX, XATTR_LIST_MAX of Linux).
const XATTR_MAX: usize = 1 << 16;
const DT_UNKNOWN: u32 = 0;
/// Bits of a mode.
const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_RUNS: u32 = 0o010;
/// Access control lists, by the names that they have as attributes. A change of the first can take
/// the bit SET_GROUP of a file.
const ACCESS_LIST: &CStr = c"system.posix_acl_access";
const DEFAULT_LIST: &CStr = c"system.posix_acl_default";

/// The limits on what a share may have open at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Descriptors for files that the Guest knows.
    pub inodes: usize,
    /// Files and directories that the Guest has open.
    pub handles: usize,
}

/// A directory, served.
pub struct FileServer {
    state: Mutex<State>,
    read_only: bool,
    /// We may act for any user: files get the owners that the Guest means.
    privileged: bool,
}

pub(super) struct State {
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    pub(super) locks: Locks,
}

impl FileServer {
    /// Serves `root`, a descriptor as [`host::open_root`] gives it.
    pub fn new(root: OwnedFd, read_only: bool, limits: Limits) -> io::Result<Self> {
        host::prepare(root.as_fd())?;
        Ok(Self {
            state: Mutex::new(State {
                inodes: Inodes::new(root, limits.inodes)?,
                handles: Handles::new(limits.handles),
                locks: Locks::new()?,
            }),
            read_only,
            privileged: geteuid().is_root(),
        })
    }

    /// The Guest's driver starts anew: it knows nothing, and has nothing open.
    pub fn reset(&self) {
        let mut state = self.state();
        state.locks.clear();
        state.handles.clear();
        state.inodes.clear();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn check_writable(&self) -> io::Result<()> {
        match self.read_only {
            true => Err(Errno::ROFS.into()),
            false => Ok(()),
        }
    }

    /// Makes something as `name` in `parent`, owned by the caller in the Guest if we can do that,
    /// and looks it up.
    fn make(
        &self,
        context: &Context,
        umask: u32,
        parent: u64,
        name: &CStr,
        make: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<Entry> {
        self.check_writable()?;
        let mut state = self.state();
        let directory = state.inodes.directory(parent)?;
        {
            let _caller = self.act_for(context, CapabilitySet::empty());
            host::with_umask(umask, || make(&directory))?;
        }
        state.entry(parent, name)
    }

    /// Until the guard goes, this thread makes files that belong to the caller in the Guest, and has
    /// all of its capabilities but `without`.
    pub(super) fn act_for(&self, context: &Context, without: CapabilitySet) -> Option<ActFor> {
        self.is_for_another(context)
            .then(|| ActFor::new(context.uid, context.gid, without))
    }

    /// Are we root, and the caller in the Guest is not?
    fn is_for_another(&self, context: &Context) -> bool {
        self.privileged && (context.uid, context.gid) != (0, 0)
    }

    /// The mode for a file of the Guest's that is no directory.
    ///
    /// Who is not root could hand out nothing but his own rights, to anybody on the Host who reaches
    /// the file, and the Guest is not to do that in his name: its files run with nobody's rights but
    /// their caller's.
    pub(super) fn mode_of_file(&self, mode: u32) -> u32 {
        match self.privileged {
            true => mode,
            false => mode & !(SET_USER | SET_GROUP),
        }
    }

    /// The caller in the Guest changes the content of `found`: nobody runs it with another's rights any
    /// more. For anybody but root, the Host's kernel sees to it.
    fn drop_set_id_bits(&self, context: &Context, found: impl AsFd) -> io::Result<()> {
        if !self.privileged {
            return Ok(());
        }
        let attributes = host::stat(found.as_fd())?.attributes;
        let new = without_set_id_bits(context, &attributes);
        match new == attributes.mode {
            true => Ok(()),
            false => host::set_mode(found.as_fd(), new),
        }
    }

    /// The caller in the Guest changes the content of `found` without a word of its kernel's on whether
    /// he may leave others' rights on it.
    pub(super) fn changes(&self, context: &Context, found: impl AsFd) -> io::Result<()> {
        match context.uid {
            0 => Ok(()),
            _ => self.drop_set_id_bits(context, found),
        }
    }

    /// Opens inode `number` with the flags that make a difference here.
    fn open_file(&self, state: &mut State, number: u64, flags: u32) -> io::Result<u64> {
        let appends = OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        let flags = open_flags(flags);
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            self.check_writable()?;
        }
        match state.inodes.file_type(number)? {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            // The Guest's kernel has FIFOs, sockets and devices of its own.
            _ => return Err(Errno::NXIO.into()),
        }
        state.check_room()?;
        let found = state.inodes.descriptor(number)?;
        match host::open(found.as_fd(), flags) {
            // The Guest's kernel has asked whether the caller owns the file. We may not.
            Err(error) if flags.contains(OFlags::NOATIME) && is_forbidden(&error) => {
                let file = host::open(found.as_fd(), flags - OFlags::NOATIME)?;
                Ok(state.handles.add_file(file, false))
            }
            // A file that can only grow is opened for nothing else.
            Err(error) if appends && is_forbidden(&error) => {
                let file = host::open(found.as_fd(), flags | OFlags::APPEND)?;
                Ok(state.handles.add_file(file, true))
            }
            result => Ok(state.handles.add_file(result?, false)),
        }
    }

    fn set_size(
        &self,
        state: &mut State,
        number: u64,
        handle: Option<u64>,
        size: u64,
    ) -> io::Result<()> {
        if let Some(handle) = handle {
            return Ok(rustix::fs::ftruncate(
                &state.handles.file(handle)?.file,
                size,
            )?);
        }
        if state.inodes.file_type(number)? != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let found = state.inodes.descriptor(number)?;
        let file = host::open(found.as_fd(), OFlags::WRONLY)?;
        Ok(rustix::fs::ftruncate(&file, size)?)
    }
}

/// Does the Host's kernel say that this is for nobody but the owner, or not with these flags?
fn is_forbidden(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// The mode of a file that the caller in the Guest changes without the right to leave others' rights on
/// it. The bit for the group stays, as it does on the Host, where nobody runs the file by it and the caller
/// is in that group. Of his supplementary groups a request does not tell, so they do not count.
pub(super) fn without_set_id_bits(context: &Context, attributes: &Attr) -> u32 {
    let is_in_group = context.uid == 0 || context.gid == attributes.gid;
    let dropped = match attributes.mode & GROUP_RUNS == 0 && is_in_group {
        true => SET_USER,
        false => SET_USER | SET_GROUP,
    };
    attributes.mode & !dropped
}

/// Of the flags of an `open`, those that we pass on. What the Guest's kernel does by itself is left
/// out, and so is O_DIRECT: the Guest's buffers are not aligned for the Host's disks.
pub(super) fn open_flags(flags: u32) -> OFlags {
    let passed = OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME;
    OFlags::from_bits_retain(flags) & passed
}

/// This thread makes files that belong to somebody else.
///
/// Whether they may be made is not asked again: the Guest's kernel knows the caller's groups and
/// capabilities, which do not travel. So root's capabilities for files, which go with the user, are
/// taken back.
pub(super) struct ActFor {
    user: Uid,
    group: Gid,
    before: Option<CapabilitySets>,
}

impl ActFor {
    fn new(user: u32, group: u32, without: CapabilitySet) -> Self {
        let before = capabilities(None).ok();
        // The group first: afterwards we may no longer.
        let group = setfsgid(Gid::from_raw(group));
        let user = setfsuid(Uid::from_raw(user));
        if let Some(mut sets) = before {
            sets.effective -= without;
            // Where this fails, the Host's kernel judges the caller by user and group.
            let _ = set_capabilities(None, sets);
        }
        Self {
            user,
            group,
            before,
        }
    }
}

impl Drop for ActFor {
    fn drop(&mut self) {
        setfsuid(self.user);
        setfsgid(self.group);
        if let Some(before) = self.before {
            let _ = set_capabilities(None, before);
        }
    }
}

impl State {
    fn entry(&mut self, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (number, attributes) = self.inodes.look_up(parent, name)?;
        Ok(entry(number, attributes))
    }

    /// The attributes of inode `number`, and when it was made.
    pub(super) fn attributes(
        &mut self,
        number: u64,
        handle: Option<u64>,
    ) -> io::Result<(Attr, Option<(i64, u32)>)> {
        let open = handle.and_then(|handle| self.handles.file(handle).ok());
        let found = match open {
            // It may have no name any more.
            Some(open) => host::stat(open.file.as_fd())?,
            None => host::stat(self.inodes.descriptor(number)?.as_fd())?,
        };
        Ok((self.inodes.tell(number, found.attributes), found.born))
    }

    /// Fails if there is no room for one more to be open.
    pub(super) fn check_room(&self) -> io::Result<()> {
        self.handles.check_room(self.locks.descriptors())
    }

    /// The file that a lock is to be on, and whether there is room for another owner of locks.
    pub(super) fn for_lock(&mut self, handle: u64) -> io::Result<(&mut Locks, &File, bool)> {
        let room = self.check_room().is_ok();
        Ok((&mut self.locks, &self.handles.file(handle)?.file, room))
    }

    fn read_directory(
        &mut self,
        inode: u64,
        handle: u64,
        (offset, size): (u64, usize),
        mut add: impl FnMut(&mut Inodes, DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let Self {
            inodes, handles, ..
        } = self;
        handles.directory(handle)?.read(offset, size, |entry| {
            let shown = DirEntry {
                ino: inodes.shown_number(inode, entry.number)?,
                offset: entry.next,
                type_: directory_type(entry.file_type),
                name: entry.name.to_bytes(),
            };
            Ok(add(inodes, shown)? != 0)
        })
    }
}

/// `DT_*` of a file type: the bits above the permissions.
fn directory_type(file_type: FileType) -> u32 {
    match file_type {
        FileType::Unknown => DT_UNKNOWN,
        known => known.as_raw_mode() >> 12,
    }
}

pub(super) fn entry(number: u64, attributes: Attr) -> Entry {
    Entry {
        inode: number,
        attr: attributes.into(),
        attr_timeout: VALID,
        entry_timeout: VALID,
        ..Entry::default()
    }
}

impl FileSystem for FileServer {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _: FsOptions) -> io::Result<FsOptions> {
        self.reset();
        let locks = match self.read_only {
            // Who may change nothing stops nobody either: the Guest's locks are its own.
            true => FsOptions::empty(),
            false => FsOptions::POSIX_LOCKS | FsOptions::FLOCK_LOCKS,
        };
        Ok(locks
            | FsOptions::ASYNC_READ
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::DO_READDIRPLUS
            | FsOptions::READDIRPLUS_AUTO
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::HANDLE_KILLPRIV_V2
            | FsOptions::POSIX_ACL
            | FsOptions::DONT_MASK
            | FsOptions::MAX_PAGES
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::INIT_EXT)
    }

    fn destroy(&self) {
        self.reset();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.state().entry(parent, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.state().inodes.forget(inode, count);
    }

    fn getattr(
        &self,
        _: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let (attributes, _) = self.state().attributes(inode, handle)?;
        Ok((attributes.into(), VALID))
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        new: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.check_writable()?;
        let mut state = self.state();
        let found = state.inodes.descriptor(inode)?;
        if valid.contains(SetattrValid::SIZE) {
            self.set_size(&mut state, inode, handle, new.st_size as u64)?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let user = valid.contains(SetattrValid::UID).then_some(new.st_uid);
            let group = valid.contains(SetattrValid::GID).then_some(new.st_gid);
            host::set_owner(found.as_fd(), user, group)?;
        }
        if valid.contains(SetattrValid::MODE) {
            let mode = match state.inodes.file_type(inode)? {
                FileType::Directory => new.st_mode,
                _ => self.mode_of_file(new.st_mode),
            };
            host::set_mode(found.as_fd(), mode)?;
        } else if valid.contains(SetattrValid::KILL_SUIDGID) {
            self.drop_set_id_bits(context, &found)?;
        }
        if let Some(times) = times(&new, valid) {
            host::set_times(found.as_fd(), &times)?;
        }
        let (attributes, _) = state.attributes(inode, handle)?;
        Ok((attributes.into(), VALID))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        match state.inodes.file_type(inode)? {
            FileType::Symlink => host::read_link(state.inodes.descriptor(inode)?.as_fd()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn symlink(
        &self,
        context: &Context,
        content: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        self.make(context, 0, parent, name, |directory| {
            host::make_symlink(directory.as_fd(), name, content)
        })
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make(context, umask, parent, name, |directory| {
            host::make_node(directory.as_fd(), name, self.mode_of_file(mode))
        })
    }

    fn mkdir(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make(context, umask, parent, name, |directory| {
            host::make_directory(directory.as_fd(), name, mode)
        })
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, false)
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, true)
    }

    fn rename(
        &self,
        _: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.check_writable()?;
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL.into());
        }
        let inodes = &mut self.state().inodes;
        let from = inodes.directory(old_parent)?;
        let to = inodes.directory(new_parent)?;
        let moved = inodes.removing(old_parent, old_name);
        let replaced = inodes.removing(new_parent, new_name);
        host::rename((from.as_fd(), old_name), (to.as_fd(), new_name), flags)?;
        for (number, parent, name) in [
            (moved, old_parent, old_name),
            (replaced, new_parent, new_name),
        ] {
            if let Some(number) = number {
                inodes.removed(number, parent, name);
            }
        }
        inodes.moved_to(new_parent, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            inodes.moved_to(old_parent, old_name);
        }
        Ok(())
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.check_writable()?;
        let mut state = self.state();
        let found = state.inodes.descriptor(inode)?;
        let directory = state.inodes.directory(parent)?;
        host::make_link(found.as_fd(), directory.as_fd(), name)?;
        state.entry(parent, name)
    }

    fn open(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let mut state = self.state();
        let handle = self.open_file(&mut state, inode, flags)?;
        let State {
            inodes, handles, ..
        } = &mut *state;
        let file = &handles.file(handle)?.file;
        if fuse_flags & FOPEN_IN_KILL_SUIDGID != 0 {
            self.drop_set_id_bits(context, file)?;
        }
        let now = host::stat(file.as_fd())?.attributes;
        // What the Guest has cached is good unless the file was changed by somebody else.
        let options = match inodes.is_unchanged(inode, &now) {
            true => OpenOptions::KEEP_CACHE,
            false => OpenOptions::empty(),
        };
        Ok((Some(handle), options, None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        self.check_writable()?;
        let mut state = self.state();
        state.check_room()?;
        let directory = state.inodes.directory(parent)?;
        let flags = arguments.flags;
        let mode = self.mode_of_file(arguments.mode & 0o7777);
        let created = {
            let _caller = self.act_for(context, CapabilitySet::empty());
            host::with_umask(arguments.umask, || {
                host::create(directory.as_fd(), name, open_flags(flags), mode)
            })
        };
        let exclusive = OFlags::from_bits_retain(flags).contains(OFlags::EXCL);
        let (entry, handle) = match created {
            Ok(file) => (
                state.entry(parent, name)?,
                state.handles.add_file(file, false),
            ),
            // Somebody on the Host was faster. It may be of any type.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !exclusive => {
                let entry = state.entry(parent, name)?;
                match self.open_file(&mut state, entry.inode, flags) {
                    Ok(handle) => (entry, handle),
                    Err(error) => {
                        state.inodes.forget(entry.inode, 1);
                        return Err(error);
                    }
                }
            }
            Err(error) => return Err(error),
        };
        Ok((entry, Some(handle), OpenOptions::empty(), None))
    }

    fn read(
        &self,
        _: &Context,
        _: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let mut state = self.state();
        let size = writer.available_bytes().min(size as usize);
        writer.write_from(&mut state.handles.file(handle)?.file, size, offset)
    }

    fn write(
        &self,
        context: &Context,
        _: u64,
        handle: u64,
        reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.check_writable()?;
        let mut state = self.state();
        let open = state.handles.file(handle)?;
        let appends = OFlags::from_bits_retain(flags).contains(OFlags::APPEND) && !delayed_write;
        open.set_appending(appends)?;
        if fuse_flags & WRITE_KILL_PRIV != 0 {
            self.drop_set_id_bits(context, &open.file)?;
        }
        reader.read_to(&mut open.file, size as usize, offset)
    }

    fn fsync(&self, _: &Context, _: u64, data_only: bool, handle: u64) -> io::Result<()> {
        let mut state = self.state();
        let file = &state.handles.file(handle)?.file;
        match data_only {
            true => file.sync_data(),
            false => file.sync_all(),
        }
    }

    fn fallocate(
        &self,
        context: &Context,
        _: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state();
        let file = &state.handles.file(handle)?.file;
        self.changes(context, file)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(rustix::fs::fallocate(file, mode, offset, length)?)
    }

    fn release(
        &self,
        _: &Context,
        _: u64,
        _: u32,
        handle: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        let mut state = self.state();
        state.locks.released(handle);
        state.handles.close(handle)
    }

    fn flush(&self, _: &Context, inode: u64, _: u64, owner: u64) -> io::Result<()> {
        if self.read_only {
            // The Guest need not ask again: there are no locks.
            return Err(Errno::NOSYS.into());
        }
        self.state().locks.closed_by(inode, owner);
        Ok(())
    }

    fn getlk(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        owner: u64,
        lock: FileLock,
        _: u32,
    ) -> io::Result<FileLock> {
        self.check_writable()?;
        let mut state = self.state();
        let (locks, file, room) = state.for_lock(handle)?;
        let request = locks::Request {
            inode,
            handle,
            owner,
            flock: false,
            lock,
        };
        locks.find(&request, file, room)
    }

    fn setlk(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        owner: u64,
        lock: FileLock,
        flags: u32,
    ) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state();
        let (locks, file, room) = state.for_lock(handle)?;
        let request = locks::Request {
            inode,
            handle,
            owner,
            flock: flags & LK_FLOCK != 0,
            lock,
        };
        locks.set(&request, file, room)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        let found = self.state().inodes.descriptor(inode)?;
        super::statvfs::of(found.as_fd())
    }

    fn setxattr(
        &self,
        context: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        self.check_writable()?;
        let file = self.state().inodes.descriptor(inode)?;
        if name == ACCESS_LIST && self.is_for_another(context) {
            // As for anybody who is not root, the list takes the bit from a file of a group that he is
            // not in.
            let found = host::stat(file.as_fd())?.attributes;
            if found.mode & SET_GROUP != 0 && found.gid != context.gid {
                host::set_mode(file.as_fd(), found.mode & !SET_GROUP)?;
            }
        }
        host::set_xattr(file.as_fd(), name, value, flags)
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let found = self.state().inodes.descriptor(inode)?;
        let path = host::path_of(found.as_fd());
        let failed = |error| match error {
            // The Guest's kernel asks for these when it checks permissions, and would let nobody in.
            Errno::OPNOTSUPP if [ACCESS_LIST, DEFAULT_LIST].contains(&name) => Errno::NODATA,
            error => error,
        };
        if size == 0 {
            let length = rustix::fs::getxattr_query(path, name).map_err(failed)?;
            return Ok(GetxattrReply::Count(length as u32));
        }
        let mut value = vec![0; (size as usize).min(XATTR_MAX)];
        let length = rustix::fs::getxattr(path, name, &mut value[..]).map_err(failed)?;
        value.truncate(length);
        Ok(GetxattrReply::Value(value))
    }

    fn listxattr(&self, context: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let found = self.state().inodes.descriptor(inode)?;
        let mut names = vec![0; XATTR_MAX];
        let length = rustix::fs::listxattr(host::path_of(found.as_fd()), &mut names[..])?;
        names.truncate(length);
        let names = names.split_inclusive(|&byte| byte == 0);
        list_xattrs(context, names, size)
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        let found = self.state().inodes.descriptor(inode)?;
        host::remove_xattr(found.as_fd(), name)
    }

    fn opendir(&self, _: &Context, inode: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let mut state = self.state();
        state.check_room()?;
        let file = match state.inodes.is_closed(inode)? {
            true => None,
            false => {
                let found = state.inodes.directory(inode)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                Some(host::open(found.as_fd(), flags)?)
            }
        };
        let handle = state.handles.add_directory(file);
        Ok((Some(handle), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let part = (offset, size as usize);
        let mut state = self.state();
        state.read_directory(inode, handle, part, |_, shown| add_entry(shown))
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        /// Attributes make an entry about so much longer than it is on the Host.
        const LONGER: usize = 5;
        let part = (offset, size as usize / LONGER);
        let mut state = self.state();
        state.read_directory(inode, handle, part, |inodes, shown| {
            let own = matches!(shown.name, b"." | b"..");
            // Nobody can say anything of a file that is gone: number 0 says that.
            let mut entry = Entry::default();
            if !own {
                // The name is from a directory: it has no NUL inside.
                let name = std::ffi::CString::new(shown.name)?;
                if let Ok((number, attributes)) = inodes.look_up_entry(inode, &name) {
                    entry = self::entry(number, attributes);
                }
            }
            let added = add_entry(shown, entry);
            if !matches!(added, Ok(size) if size != 0) && entry.inode != 0 {
                inodes.forget(entry.inode, 1);
            }
            added
        })
    }

    fn fsyncdir(&self, _: &Context, _: u64, _: bool, handle: u64) -> io::Result<()> {
        let mut state = self.state();
        match &state.handles.directory(handle)?.file {
            Some(file) => file.sync_all(),
            None => Ok(()),
        }
    }

    fn releasedir(&self, _: &Context, _: u64, _: u32, handle: u64) -> io::Result<()> {
        self.state().handles.close(handle)
    }

    fn lseek(&self, _: &Context, _: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let seek = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            // The Guest's kernel does these.
            _ => return Err(Errno::INVAL.into()),
        };
        let mut state = self.state();
        Ok(rustix::fs::seek(&state.handles.file(handle)?.file, seek)?)
    }
}

impl FileServer {
    fn remove(&self, parent: u64, name: &CStr, is_directory: bool) -> io::Result<()> {
        self.check_writable()?;
        let inodes = &mut self.state().inodes;
        let directory = inodes.directory(parent)?;
        let number = inodes.removing(parent, name);
        host::remove(directory.as_fd(), name, is_directory)?;
        if let Some(number) = number {
            inodes.removed(number, parent, name);
        }
        Ok(())
    }
}

/// For [`super::cow`], which keeps what a Guest changes apart from these files.
impl FileServer {
    /// See [`Inodes::know_again`].
    pub fn know_again(&self, number: u64) -> io::Result<()> {
        self.state().inodes.know_again(number)
    }

    /// The Host's attributes of an inode, and when it was made, if its file system knows.
    pub fn attributes(
        &self,
        number: u64,
        handle: Option<u64>,
    ) -> io::Result<(Attr, Option<(i64, u32)>)> {
        self.state().attributes(number, handle)
    }

    /// The time when an inode was made, if that is known.
    pub fn born(&self, number: u64) -> Option<(i64, u32)> {
        self.attributes(number, None).ok()?.1
    }

    /// See [`Inodes::known`].
    pub fn known(&self, number: u64) -> u64 {
        self.state().inodes.known(number)
    }

    /// See [`Inodes::place`].
    pub fn place(&self, number: u64) -> Option<(u64, CString)> {
        self.state().inodes.place(number)
    }

    /// Opens a regular file for reading. It counts for no limit.
    pub fn open_to_read(&self, number: u64) -> io::Result<File> {
        let mut state = self.state();
        match state.inodes.file_type(number)? {
            FileType::RegularFile => {
                host::open(state.inodes.descriptor(number)?.as_fd(), OFlags::RDONLY)
            }
            _ => Err(Errno::INVAL.into()),
        }
    }
}

/// The answer to a LISTXATTR, of names that end with 0: trusted ones are not for everybody. That depends
/// on a capability, which the Guest's kernel looks at when one is read, and does not tell here.
pub(super) fn list_xattrs<'a>(
    context: &Context,
    names: impl Iterator<Item = &'a [u8]>,
    size: u32,
) -> io::Result<ListxattrReply> {
    let shown = |name: &&[u8]| context.uid == 0 || !name.starts_with(b"trusted.");
    let names = names.filter(shown).collect::<Vec<_>>().concat();
    match size as usize {
        0 => Ok(ListxattrReply::Count(names.len() as u32)),
        size if size < names.len() => Err(Errno::RANGE.into()),
        _ => Ok(ListxattrReply::Names(names)),
    }
}

/// The times that are to be set.
fn times(new: &stat64, valid: SetattrValid) -> Option<Timestamps> {
    let time = |given, now, seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: match (valid.contains(given), valid.contains(now)) {
            (_, true) => UTIME_NOW,
            (true, _) => nanoseconds,
            _ => UTIME_OMIT,
        },
    };
    let given = SetattrValid::ATIME | SetattrValid::MTIME;
    let now = SetattrValid::ATIME_NOW | SetattrValid::MTIME_NOW;
    valid.intersects(given | now).then(|| Timestamps {
        last_access: time(
            SetattrValid::ATIME,
            SetattrValid::ATIME_NOW,
            new.st_atime,
            new.st_atime_nsec,
        ),
        last_modification: time(
            SetattrValid::MTIME,
            SetattrValid::MTIME_NOW,
            new.st_mtime,
            new.st_mtime_nsec,
        ),
    })
}
