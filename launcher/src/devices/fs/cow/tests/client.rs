// SPDX-License-Identifier: GPL-2.0
//! A Guest's kernel: what it asks the server when its programs name paths.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use vm_memory::VolatileSlice;

use crate::devices::fs::host;

use super::beside::{digest, path, Seen, Step, Tree, OPEN};
use super::*;

/// A buffer of the kernel's.
pub(super) struct Buffer(Vec<u8>);

impl Read for Buffer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.0.len());
        out[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}

impl ZeroCopyReader for Buffer {
    fn read_to(
        &mut self,
        _: &mut dyn FileReadWriteVolatile,
        _: usize,
        _: u64,
    ) -> io::Result<usize> {
        panic!("nothing is written to the host's files");
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ZeroCopyWriter for Buffer {
    fn write_from(
        &mut self,
        file: &mut dyn FileReadWriteVolatile,
        count: usize,
        offset: u64,
    ) -> io::Result<usize> {
        let mut bytes = vec![0; count];
        let slice = VolatileSlice::from(&mut bytes[..]);
        let slice = FileVolatileSlice::from_volatile_slice(&slice);
        let read = file.read_at_volatile(slice, offset)?;
        self.0.extend(&bytes[..read]);
        Ok(read)
    }

    fn available_bytes(&self) -> usize {
        1 << 20
    }
}

/// This module uses the server as a kernel does, by the names of paths.
pub(super) struct Client {
    pub(super) server: CowServer,
    pub(super) open: [Option<(u64, u64)>; OPEN],
}

pub(super) type Outcome<T> = Result<T, i32>;

pub(super) fn number(error: io::Error) -> i32 {
    error.raw_os_error().expect("an error number")
}

impl Client {
    pub(super) fn new(root: &Path) -> Self {
        let root = host::open_root(root).expect("it is there");
        Self {
            server: CowServer::new(root, LIMITS, BUDGET).expect("a server"),
            open: [None; OPEN],
        }
    }

    /// Calls `with` an inode that is known for so long.
    pub(super) fn at<T>(&self, path: &Path, with: impl FnOnce(&Entry) -> Outcome<T>) -> Outcome<T> {
        let mut way = vec![ROOT_ID];
        let mut last = Entry {
            inode: ROOT_ID,
            ..Entry::default()
        };
        let mut found = Ok(());
        for name in path {
            let name = CString::new(name.as_encoded_bytes()).expect("no 0");
            let parent = *way.last().expect("the root is");
            found = self.is_directory(parent).and_then(|()| {
                last = (self.server)
                    .lookup(&nobody(), parent, &name)
                    .map_err(number)?;
                match last.inode {
                    0 => Err(Errno::NOENT.raw_os_error()),
                    inode => {
                        way.push(inode);
                        Ok(())
                    }
                }
            });
            if found.is_err() {
                break;
            }
        }
        let result = found.and_then(|()| with(&last));
        for inode in way {
            self.server.forget(&nobody(), inode, 1);
        }
        result
    }

    pub(super) fn is_directory(&self, inode: u64) -> Outcome<()> {
        let (attributes, _) = self.server.attributes(inode, None).map_err(number)?;
        match file_type(&attributes) {
            FileType::Directory => Ok(()),
            _ => Err(Errno::NOTDIR.raw_os_error()),
        }
    }

    /// Calls `with` the directory that `path` is in, and the name there.
    pub(super) fn in_parent<T>(
        &self,
        path: &Path,
        with: impl FnOnce(u64, &CStr) -> Outcome<T>,
    ) -> Outcome<T> {
        let name = path.file_name().expect("a name");
        let name = CString::new(name.as_encoded_bytes()).expect("no 0");
        self.at(path.parent().expect("the root"), |parent| {
            self.is_directory(parent.inode)?;
            with(parent.inode, &name)
        })
    }

    /// The same while the kernel knows what the name leads to, if anything.
    pub(super) fn by_name<T>(
        &self,
        path: &Path,
        with: impl FnOnce(u64, &CStr) -> Outcome<T>,
    ) -> Outcome<T> {
        self.in_parent(path, |parent, name| {
            let found = self
                .server
                .lookup(&nobody(), parent, name)
                .map_err(number)?;
            let result = with(parent, name);
            self.server.forget(&nobody(), found.inode, 1);
            result
        })
    }

    /// Adds an entry that the kernel does not keep.
    pub(super) fn made(&self, made: io::Result<Entry>) -> Outcome<()> {
        let entry = made.map_err(number)?;
        self.server.forget(&nobody(), entry.inode, 1);
        Ok(())
    }

    pub(super) fn open(&self, path: &Path) -> Outcome<(u64, u64)> {
        self.at(path, |found| {
            let flags = OFlags::RDWR.bits();
            let opened = self.server.open(&nobody(), found.inode, flags, 0);
            let (handle, _, _) = opened.map_err(number)?;
            // Who has a file open knows it.
            self.server
                .state()
                .know_again(found.inode)
                .expect("it is there");
            Ok((found.inode, handle.expect("a handle")))
        })
    }

    pub(super) fn close(&self, (inode, handle): (u64, u64)) {
        (self.server)
            .release(&nobody(), inode, 0, handle, false, false, None)
            .expect("it is open");
        self.server.forget(&nobody(), inode, 1);
    }

    pub(super) fn write(&self, (inode, handle): (u64, u64), offset: u16, byte: u8) -> Outcome<()> {
        let mut bytes = Buffer(vec![byte; usize::from(byte)]);
        let (size, offset) = (bytes.0.len() as u32, offset.into());
        (self.server)
            .write(
                &nobody(),
                inode,
                handle,
                &mut bytes,
                size,
                offset,
                None,
                false,
                0,
                0,
            )
            .map(drop)
            .map_err(number)
    }

    pub(super) fn read(&self, (inode, handle): (u64, u64)) -> Vec<u8> {
        let mut read = Buffer(Vec::new());
        (self.server)
            .read(&nobody(), inode, handle, &mut read, 1 << 20, 0, None, 0)
            .expect("it can be read");
        read.0
    }

    pub(super) fn set(&self, path: &Path, new: stat64, valid: SetattrValid) -> Outcome<()> {
        self.at(path, |found| {
            let set = self
                .server
                .setattr(&nobody(), found.inode, new, None, valid);
            set.map(drop).map_err(number)
        })
    }

    pub(super) fn take(&mut self, step: &Step) -> Outcome<()> {
        let server = &self.server;
        match step {
            Step::Create(at) => self.in_parent(&path(at), |parent, name| {
                let arguments = CreateIn {
                    flags: (OFlags::RDWR | OFlags::EXCL).bits(),
                    mode: 0o644,
                    ..CreateIn::default()
                };
                let made = server.create(&nobody(), parent, name, arguments);
                let (entry, handle, _, _) = made.map_err(number)?;
                self.close((entry.inode, handle.expect("a handle")));
                Ok(())
            }),
            Step::MakeDirectory(at) => self.in_parent(&path(at), |parent, name| {
                self.made(server.mkdir(&nobody(), parent, name, 0o755, 0))
            }),
            Step::MakeLink(at) => self.in_parent(&path(at), |parent, name| {
                self.made(server.symlink(&nobody(), c"target", parent, name))
            }),
            Step::Write(at, offset, byte) => {
                let open = self.open(&path(at))?;
                let written = self.write(open, *offset, *byte);
                self.close(open);
                written
            }
            Step::SetSize(at, size) => {
                let mut new = stat64::from(Attr::default());
                new.st_size = i64::from(*size);
                let file = self.open(&path(at))?;
                self.close(file);
                self.set(&path(at), new, SetattrValid::SIZE)
            }
            Step::SetMode(at, mode) => {
                let mut new = stat64::from(Attr::default());
                new.st_mode = 0o700 | u32::from(*mode);
                self.set(&path(at), new, SetattrValid::MODE)
            }
            Step::Unlink(at) => self.by_name(&path(at), |parent, name| {
                server.unlink(&nobody(), parent, name).map_err(number)
            }),
            Step::RemoveDirectory(at) => self.by_name(&path(at), |parent, name| {
                server.rmdir(&nobody(), parent, name).map_err(number)
            }),
            Step::Rename(old, new, flags) => self.by_name(&path(old), |old_parent, old_name| {
                self.by_name(&path(new), |new_parent, new_name| {
                    let flags = u32::from(*flags);
                    server
                        .rename(&nobody(), old_parent, old_name, new_parent, new_name, flags)
                        .map_err(number)
                })
            }),
            Step::Link(old, new) => self.at(&path(old), |found| {
                self.in_parent(&path(new), |parent, name| {
                    self.made(server.link(&nobody(), found.inode, parent, name))
                })
            }),
            Step::Open(slot, at) => {
                let opened = self.open(&path(at))?;
                if let Some(before) = self.open[*slot].replace(opened) {
                    self.close(before);
                }
                Ok(())
            }
            Step::WriteOpen(slot, at, byte) => match self.open[*slot] {
                Some(open) => self.write(open, *at, *byte),
                None => Ok(()),
            },
            Step::Close(slot) => {
                if let Some(open) = self.open[*slot].take() {
                    self.close(open);
                }
                Ok(())
            }
        }
    }

    /// The names in a directory, each of which must be there once, with their inode numbers.
    pub(super) fn list(&self, inode: u64) -> Vec<(String, u64)> {
        let (handle, _) = self.server.opendir(&nobody(), inode, 0).expect("it opens");
        let handle = handle.expect("a handle");
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let before = offset;
            let mut known = Vec::new();
            // A small buffer, so that each has to go on.
            let mut room = 2;
            let mut add = |found: DirEntry<'_>, entry: Entry| {
                if room == 0 {
                    return Ok(0);
                }
                room -= 1;
                offset = found.offset;
                known.extend((entry.inode != 0).then_some(entry.inode));
                let name = String::from_utf8(found.name.to_vec()).expect("one of ours");
                if !name.starts_with('.') {
                    assert_ne!(entry.inode, 0, "{name} comes with its inode");
                    names.push((name, found.ino));
                }
                Ok(1)
            };
            (self.server)
                .readdirplus(&nobody(), inode, handle, 4096, before, &mut add)
                .expect("it is a directory");
            for known in known {
                self.server.forget(&nobody(), known, 1);
            }
            if offset == before {
                break;
            }
        }
        self.server
            .releasedir(&nobody(), inode, 0, handle)
            .expect("it is open");
        names.sort();
        names
    }

    /// The whole content of a directory.
    pub(super) fn tree(&self, path: &Path, all: &mut Tree, links: &mut HashMap<u64, PathBuf>) {
        let names = self.at(path, |found| Ok(self.list(found.inode)));
        for (name, shown) in names.expect("it is a directory") {
            let path = path.join(name);
            let seen = self.at(&path, |found| {
                let attributes = self.server.attributes(found.inode, None);
                let (attributes, _) = attributes.map_err(number)?;
                assert_eq!(attributes.ino, shown, "the number of {path:?} as listed");
                let body = match file_type(&attributes) {
                    FileType::Symlink => self.server.readlink(&nobody(), found.inode),
                    _ => Ok(Vec::new()),
                };
                Ok((attributes, body.map_err(number)?))
            });
            let (attributes, mut body) = seen.expect("it is listed");
            let is_directory = file_type(&attributes) == FileType::Directory;
            if file_type(&attributes) == FileType::RegularFile {
                let open = self.open(&path).expect("it opens");
                body = self.read(open);
                self.close(open);
                assert_eq!(body.len() as u64, attributes.size);
            }
            let first = links.entry(attributes.ino).or_insert_with(|| path.clone());
            all.insert(
                path.clone(),
                Seen {
                    mode: attributes.mode,
                    links: if is_directory {
                        0
                    } else {
                        attributes.nlink.into()
                    },
                    first: first.clone(),
                    body: digest(&body),
                },
            );
            if is_directory {
                self.tree(&path, all, links);
            }
        }
    }
}
