// SPDX-License-Identifier: GPL-2.0
//! What each request does: the methods are those of the library's trait, one after the other.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{
    stat64, statvfs64, CreateIn, FOPEN_IN_KILL_SUIDGID, ROOT_ID, WRITE_KILL_PRIV,
};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::fs::{FallocateFlags, FileType, OFlags, RawMode, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::content::{Content, PAGE};
use super::{
    acl, file_type, is_absent, is_made, now, set_changed, set_modified, xattr_cost, Body,
    CowServer, Own, FOREVER, NODE_COST, PERMISSIONS, SET_GROUP, XATTR_MAX,
};
use crate::devices::fs::server::list_xattrs;

impl FileSystem for CowServer {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _: FsOptions) -> io::Result<FsOptions> {
        self.reset();
        Ok(FsOptions::ASYNC_READ
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::DO_READDIRPLUS
            | FsOptions::READDIRPLUS_AUTO
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::HANDLE_KILLPRIV_V2
            | FsOptions::MAX_PAGES
            | FsOptions::POSIX_ACL
            | FsOptions::DONT_MASK
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::INIT_EXT)
    }

    fn destroy(&self) {
        self.reset();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let mut state = self.state();
        let found =
            state
                .find(parent, name)
                .and_then(|(number, valid)| match state.attributes(number) {
                    Ok(attributes) => Ok(state.entry(number, attributes, valid)),
                    Err(error) => {
                        state.forget(number, 1);
                        Err(error)
                    }
                });
        match found {
            // That there is nothing is remembered, too.
            Err(error) if is_absent(&error) => Ok(Entry {
                entry_timeout: state.absence_valid(parent, name),
                ..Entry::default()
            }),
            found => found,
        }
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        if inode != ROOT_ID {
            self.state().forget(inode, count);
        }
    }

    fn getattr(
        &self,
        context: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let state = self.state();
        let open = handle.and_then(|handle| state.handle(handle).ok()?.host);
        let attributes = match state.nodes.contains_key(&inode) || is_made(inode) {
            true => state.attributes(inode)?,
            // It may have no name any more.
            false => return state.host.getattr(context, inode, open),
        };
        Ok((attributes.into(), state.valid(inode)))
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        new: stat64,
        _: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let mut state = self.state();
        let sized = valid.contains(SetattrValid::SIZE);
        let size = new.st_size as u64;
        let own = state.change(inode, sized && size == 0)?;
        let mut let_go = false;
        if sized {
            let (content, attributes) = own.content()?;
            let kept = content.keeps_file();
            content.set_size(size)?;
            let_go = kept && !content.keeps_file();
            set_modified(attributes);
        }
        let is_directory = matches!(own.body, Body::Directory(_));
        let attributes = &mut own.attributes;
        if valid.contains(SetattrValid::UID) {
            attributes.uid = new.st_uid;
        }
        if valid.contains(SetattrValid::GID) {
            attributes.gid = new.st_gid;
        }
        if valid.contains(SetattrValid::MODE) {
            attributes.mode = attributes.mode & !PERMISSIONS | new.st_mode & PERMISSIONS;
            if let Some(list) = own.xattrs.get_mut(acl::ACCESS) {
                acl::set_mode(list, new.st_mode);
            }
        }
        for (given, at_once, time, (seconds, nanoseconds)) in [
            (
                SetattrValid::ATIME,
                SetattrValid::ATIME_NOW,
                (new.st_atime, new.st_atime_nsec),
                (&mut attributes.atime, &mut attributes.atimensec),
            ),
            (
                SetattrValid::MTIME,
                SetattrValid::MTIME_NOW,
                (new.st_mtime, new.st_mtime_nsec),
                (&mut attributes.mtime, &mut attributes.mtimensec),
            ),
        ] {
            if valid.contains(at_once) {
                (*seconds, *nanoseconds) = now();
            } else if valid.contains(given) {
                (*seconds, *nanoseconds) = (time.0 as u64, time.1 as u32);
            }
        }
        set_changed(attributes);
        let owner = valid.intersects(SetattrValid::UID | SetattrValid::GID) && !is_directory;
        let mode = valid.contains(SetattrValid::MODE);
        if owner && !mode || valid.contains(SetattrValid::KILL_SUIDGID) {
            own.drop_set_id_bits(context);
        }
        state.kept -= usize::from(let_go);
        Ok((state.attributes(inode)?.into(), state.valid(inode)))
    }

    fn readlink(&self, context: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let state = self.state();
        match state.nodes.get(&inode).and_then(|node| node.own.as_ref()) {
            Some(Own {
                body: Body::Symlink(content),
                ..
            }) => Ok(content.clone()),
            Some(_) => Err(Errno::INVAL.into()),
            None => state.host.readlink(context, inode),
        }
    }

    fn symlink(
        &self,
        context: &Context,
        content: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        let mode = FileType::Symlink.as_raw_mode() | 0o777;
        let body = Body::Symlink(content.to_bytes().into());
        self.state()
            .make(context, (parent, name), (mode, 0), 0, body)
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let mut state = self.state();
        // A device is one of the Guest's kernel's: whether it may be made, that has looked.
        let body = match FileType::from_raw_mode(mode as RawMode) {
            FileType::RegularFile => Body::File(Content::empty(&state.budget)?),
            FileType::Directory | FileType::Symlink | FileType::Unknown => {
                return Err(Errno::INVAL.into())
            }
            _ => Body::Other,
        };
        state.make(context, (parent, name), (mode, umask), device, body)
    }

    fn mkdir(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let mode = FileType::Directory.as_raw_mode() | mode & PERMISSIONS;
        let body = Body::Directory((0, 0));
        self.state()
            .make(context, (parent, name), (mode, umask), 0, body)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.state().remove(parent, name, false)
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.state().remove(parent, name, true)
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
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL.into());
        }
        let (old, new) = ((old_parent, old_name), (new_parent, new_name));
        self.state().rename(old, new, flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let mut state = self.state();
        if state.peek(parent, name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        if file_type(&state.attributes(inode)?) == FileType::Directory {
            return Err(Errno::PERM.into());
        }
        state.change_directory(parent)?;
        state.change(inode, false)?;
        state.set_name(parent, name, Some(inode))?;
        state.add_links(inode, 1)?;
        state.know_again(inode)?;
        let attributes = state.attributes(inode)?;
        Ok(state.entry(inode, attributes, FOREVER))
    }

    fn open(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let mut state = self.state();
        let (handle, options) = state.open_file(inode, flags)?;
        if fuse_flags & FOPEN_IN_KILL_SUIDGID != 0 {
            state.change(inode, false)?.drop_set_id_bits(context);
        }
        Ok((Some(handle), options, None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let mut state = self.state();
        if state.handles.len() >= state.max_handles {
            return Err(Errno::NFILE.into());
        }
        let exclusive = OFlags::from_bits_retain(arguments.flags).contains(OFlags::EXCL);
        let body = Body::File(Content::empty(&state.budget)?);
        let mode = FileType::RegularFile.as_raw_mode() | arguments.mode & PERMISSIONS;
        let mode = (mode, arguments.umask);
        match state.make(context, (parent, name), mode, 0, body) {
            Ok(entry) => {
                let handle = state.add_handle(entry.inode, None);
                Ok((entry, Some(handle), OpenOptions::KEEP_CACHE, None))
            }
            // Somebody on the Host was faster. It may be of any type.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !exclusive => {
                let (number, valid) = state.find(parent, name)?;
                let opened = state.open_file(number, arguments.flags).and_then(|open| {
                    let attributes = state.attributes(number)?;
                    Ok((state.entry(number, attributes, valid), open))
                });
                match opened {
                    Ok((entry, (handle, options))) => Ok((entry, Some(handle), options, None)),
                    Err(error) => {
                        state.forget(number, 1);
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    fn read(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let mut state = self.state();
        let size = writer.available_bytes().min(size as usize) as u32;
        if let Some(content) = state.content(handle)? {
            return Ok(content.read(offset, size.into(), writer)? as usize);
        }
        let host = state.handle(handle)?.host.ok_or(Errno::ACCESS)?;
        (state.host).read(context, inode, host, writer, size, offset, owner, flags)
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
        let mut state = self.state();
        let inode = state.handle(handle)?.inode;
        let own = state.change(inode, false)?;
        if fuse_flags & WRITE_KILL_PRIV != 0 {
            own.drop_set_id_bits(context);
        }
        let (content, attributes) = own.content()?;
        let appends = OFlags::from_bits_retain(flags).contains(OFlags::APPEND) && !delayed_write;
        let offset = if appends { content.size() } else { offset };
        content.write(offset, size.into(), reader)?;
        set_modified(attributes);
        Ok(size as usize)
    }

    fn fsync(&self, _: &Context, _: u64, _: bool, _: u64) -> io::Result<()> {
        Ok(())
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
        let mut state = self.state();
        let inode = state.handle(handle)?.inode;
        let own = state.change(inode, false)?;
        if context.uid != 0 {
            // Of this, the Guest's kernel says nothing.
            own.drop_set_id_bits(context);
        }
        let (content, attributes) = own.content()?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let keep_size = mode.contains(FallocateFlags::KEEP_SIZE);
        let kind = mode - FallocateFlags::KEEP_SIZE;
        if kind.is_empty() {
            content.allocate(offset, length, keep_size)?;
        } else if kind == FallocateFlags::PUNCH_HOLE && keep_size {
            content.punch(offset, length)?;
        } else if kind == FallocateFlags::ZERO_RANGE {
            content.punch(offset, length)?;
            content.allocate(offset, length, keep_size)?;
        } else {
            return Err(Errno::OPNOTSUPP.into());
        }
        set_modified(attributes);
        Ok(())
    }

    fn release(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        unlock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        let mut state = self.state();
        let handle = state.handles.remove(&handle).ok_or(Errno::BADF)?;
        match handle.host {
            Some(host) => (state.host).release(context, inode, flags, host, flush, unlock, owner),
            None => Ok(()),
        }
    }

    fn statfs(&self, context: &Context, _: u64) -> io::Result<statvfs64> {
        let state = self.state();
        let mut answer = state.host.statfs(context, ROOT_ID)?;
        let left = state.budget.left() / PAGE;
        (answer.f_bsize, answer.f_frsize) = (PAGE, PAGE);
        answer.f_blocks = state.budget.max() / PAGE;
        (answer.f_bfree, answer.f_bavail) = (left, left);
        answer.f_files = state.budget.max() / NODE_COST;
        let files = state.budget.left() / NODE_COST;
        (answer.f_ffree, answer.f_favail) = (files, files);
        Ok(answer)
    }

    fn setxattr(
        &self,
        context: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        check_xattr_name(name)?;
        let mut state = self.state();
        let listed = match name == acl::ACCESS {
            true => Some(acl::mode(value)?),
            false => None,
        };
        let own = state.change(inode, false)?;
        let before = own.xattrs.get(name).map(|value| xattr_cost(name, value));
        let flags = XattrFlags::from_bits_retain(flags);
        if before.is_some() && flags.contains(XattrFlags::CREATE) {
            return Err(Errno::EXIST.into());
        }
        if before.is_none() && flags.contains(XattrFlags::REPLACE) {
            return Err(Errno::NODATA.into());
        }
        if value.len() > XATTR_MAX {
            return Err(Errno::TOOBIG.into());
        }
        let node = state.node(inode)?;
        node.charge.add(xattr_cost(name, value))?;
        let says_nothing = name == acl::ACCESS && acl::is_plain(value);
        if let Some(own) = &mut node.own {
            if says_nothing {
                own.xattrs.remove(name);
            } else {
                own.xattrs.insert(name.into(), value.into());
            }
            if let Some(mode) = listed {
                own.attributes.mode = own.attributes.mode & !0o777 | mode;
                let is_member = context.uid == 0 || context.gid == own.attributes.gid;
                if !is_member {
                    own.attributes.mode &= !SET_GROUP;
                }
            }
            set_changed(&mut own.attributes);
        }
        let unused = if says_nothing {
            xattr_cost(name, value)
        } else {
            0
        };
        node.charge.give_back(before.unwrap_or(0) + unused);
        Ok(())
    }

    fn getxattr(
        &self,
        context: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let state = self.state();
        let Some(own) = state.nodes.get(&inode).and_then(|node| node.own.as_ref()) else {
            return state.host.getxattr(context, inode, name, size);
        };
        let value = own.xattrs.get(name).ok_or(Errno::NODATA)?;
        match size as usize {
            0 => Ok(GetxattrReply::Count(value.len() as u32)),
            size if size < value.len() => Err(Errno::RANGE.into()),
            _ => Ok(GetxattrReply::Value(value.clone())),
        }
    }

    fn listxattr(&self, context: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let state = self.state();
        let Some(own) = state.nodes.get(&inode).and_then(|node| node.own.as_ref()) else {
            return state.host.listxattr(context, inode, size);
        };
        let names = own.xattrs.keys().map(|name| name.to_bytes_with_nul());
        list_xattrs(context, names, size)
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        let mut state = self.state();
        let own = state.change(inode, false)?;
        let value = own.xattrs.remove(name).ok_or(Errno::NODATA)?;
        set_changed(&mut own.attributes);
        state
            .node(inode)?
            .charge
            .give_back(xattr_cost(name, &value));
        Ok(())
    }

    fn opendir(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let mut state = self.state();
        if state.handles.len() >= state.max_handles {
            return Err(Errno::NFILE.into());
        }
        state.check_directory(inode)?;
        let host = match is_made(inode) {
            true => None,
            false => state.host.opendir(context, inode, flags)?.0,
        };
        Ok((Some(state.add_handle(inode, host)), OpenOptions::empty()))
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
        let mut add = |shown: DirEntry<'_>, _: Entry| add_entry(shown);
        let mut state = self.state();
        state.read_directory((inode, handle), size, offset, false, &mut add)
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
        let mut state = self.state();
        state.read_directory((inode, handle), size, offset, true, add_entry)
    }

    fn fsyncdir(&self, _: &Context, _: u64, _: bool, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn releasedir(&self, context: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        let mut state = self.state();
        let handle = state.handles.remove(&handle).ok_or(Errno::BADF)?;
        match handle.host {
            Some(host) => state.host.releasedir(context, inode, flags, host),
            None => Ok(()),
        }
    }

    fn lseek(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let mut state = self.state();
        let hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            // The Guest's kernel does these.
            _ => return Err(Errno::INVAL.into()),
        };
        if let Some(content) = state.content(handle)? {
            return content.seek(offset, hole);
        }
        let host = state.handle(handle)?.host.ok_or(Errno::ACCESS)?;
        state.host.lseek(context, inode, host, offset, whence)
    }
}

/// Are there such attributes? The Guest's kernel passes on any name.
fn check_xattr_name(name: &CStr) -> io::Result<()> {
    if [acl::ACCESS, acl::DEFAULT].contains(&name) {
        return Ok(());
    }
    let of_kinds = [&b"user."[..], b"trusted.", b"security."];
    let name = name.to_bytes();
    match of_kinds.iter().find_map(|kind| name.strip_prefix(*kind)) {
        Some([]) => Err(Errno::INVAL.into()),
        Some(_) => Ok(()),
        None => Err(Errno::OPNOTSUPP.into()),
    }
}
