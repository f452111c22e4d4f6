// SPDX-License-Identifier: GPL-2.0
//! The files and directories that the Guest has open.

use std::io;

use fuse_backend_rs::api::filesystem::{FileSystem, OpenOptions};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::content::Content;
use super::{file_type, nobody, set_modified, Handle, State};

impl State {
    pub(super) fn open_file(&mut self, number: u64, flags: u32) -> io::Result<(u64, OpenOptions)> {
        match file_type(&self.attributes(number)?) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            // The Guest's kernel has FIFOs, sockets and devices of its own.
            _ => return Err(Errno::NXIO.into()),
        }
        let flags = OFlags::from_bits_retain(flags);
        if self.handles.len() >= self.max_handles {
            return Err(Errno::NFILE.into());
        }
        if flags.contains(OFlags::TRUNC) {
            let own = self.change(number, true)?;
            let (content, attributes) = own.content()?;
            let kept = content.keeps_file();
            content.set_size(0)?;
            set_modified(attributes);
            self.kept -= usize::from(kept);
        }
        let is_own = self
            .nodes
            .get(&number)
            .is_some_and(|node| node.own.is_some());
        let (host, options) = match is_own {
            true => (None, OpenOptions::KEEP_CACHE),
            false => {
                let reads = OFlags::RDONLY.bits();
                match self.host.open(&nobody(), number, reads, 0) {
                    Ok((handle, options, _)) => (handle, options),
                    // Who only writes needs not read.
                    Err(error)
                        if error.kind() == io::ErrorKind::PermissionDenied
                            && flags.contains(OFlags::WRONLY) =>
                    {
                        (None, OpenOptions::empty())
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        Ok((self.add_handle(number, host), options))
    }

    pub(super) fn add_handle(&mut self, inode: u64, host: Option<u64>) -> u64 {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Handle { inode, host });
        handle
    }

    pub(super) fn handle(&self, handle: u64) -> io::Result<&Handle> {
        Ok(self.handles.get(&handle).ok_or(Errno::BADF)?)
    }

    /// The content of an open file, if that is the Guest's own.
    pub(super) fn content(&mut self, handle: u64) -> io::Result<Option<&mut Content>> {
        let inode = self.handle(handle)?.inode;
        match self
            .nodes
            .get_mut(&inode)
            .and_then(|node| node.own.as_mut())
        {
            Some(own) => Ok(Some(own.content()?.0)),
            None => Ok(None),
        }
    }
}
