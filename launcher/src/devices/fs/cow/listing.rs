// SPDX-License-Identifier: GPL-2.0
//! The content of a directory: the Host's names, and those that are from here.

use std::ffi::{CStr, CString};
use std::io;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry, FileSystem};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::{directory_type, is_made, nobody, Handle, Node, State, DOTS, FOREVER, OWN_NAMES};

/// Takes an entry; says how much room that took, 0 if there was none.
type Add<'a> = &'a mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>;

/// What a request to list a directory asks for.
struct Asked {
    inode: u64,
    /// How much room there is, in bytes.
    size: u32,
    /// Where to go on.
    offset: u64,
    with_attributes: bool,
}

impl State {
    /// Is inode `number`, which `name` in `parent` leads to, a file that the Host has there?
    pub(super) fn is_in_place(&self, parent: u64, name: &CStr, number: u64) -> bool {
        let node = self.nodes.get(&number);
        if is_made(number) || is_made(parent) || !node.is_some_and(Node::is_own_file) {
            return false;
        }
        match self.host.lookup(&nobody(), parent, name) {
            Ok(found) => {
                self.host.forget(&nobody(), found.inode, 1);
                found.inode == number
            }
            Err(_) => false,
        }
    }

    /// Is nothing in the directory?
    pub(super) fn is_empty(&self, number: u64) -> io::Result<bool> {
        let names = self.nodes.get(&number).and_then(|node| node.names.as_ref());
        if names.is_some_and(|names| names.from(0).next().is_some()) {
            return Ok(false);
        }
        if is_made(number) {
            return Ok(true);
        }
        let (handle, _) = self.host.opendir(&nobody(), number, 0)?;
        let handle = handle.ok_or(Errno::BADF)?;
        let (mut offset, mut empty) = (0, true);
        let result = loop {
            let before = offset;
            let result =
                self.host
                    .readdir(&nobody(), number, handle, 1 << 16, offset, &mut |found| {
                        offset = found.offset;
                        let name = CString::new(found.name)?;
                        let removed = names.is_some_and(|names| names.get(&name).is_some());
                        let dots = DOTS.iter().any(|(_, dots)| *dots == name.as_c_str());
                        empty &= removed || dots;
                        Ok(usize::from(empty))
                    });
            if result.is_err() || !empty || offset == before {
                break result;
            }
        };
        self.host.releasedir(&nobody(), number, 0, handle)?;
        result.map(|()| empty)
    }

    /// Gives the entries of a directory from `offset` on to `add`, with their attributes.
    pub(super) fn read_directory(
        &mut self,
        (inode, handle): (u64, u64),
        size: u32,
        offset: u64,
        with_attributes: bool,
        add: Add<'_>,
    ) -> io::Result<()> {
        let &Handle {
            inode: opened,
            host,
        } = self.handle(handle)?;
        if opened != inode {
            return Err(Errno::BADF.into());
        }
        let is_own = (OWN_NAMES..u64::from(u32::MAX) + OWN_NAMES).contains(&offset);
        let asked = Asked {
            inode,
            size,
            offset,
            with_attributes,
        };
        if let (Some(host), false) = (host, is_own) {
            if self.list_host(&asked, host, add)? {
                return Ok(());
            }
        }
        let first = if is_own { offset - OWN_NAMES } else { 0 };
        if host.is_none() && list_dots(inode, first, add)? {
            return Ok(());
        }
        self.list_own(&asked, first, host.is_some(), add)
    }

    /// Gives what the Host has, but for what was changed; says whether there is no more room.
    fn list_host(&mut self, asked: &Asked, host: u64, add: Add<'_>) -> io::Result<bool> {
        let &Asked {
            inode,
            size,
            offset,
            with_attributes,
        } = asked;
        let (mut full, mut to_forget) = (false, Vec::new());
        let nodes = &self.nodes;
        let names = nodes.get(&inode).and_then(|node| node.names.as_ref());
        let mut pass = |found: DirEntry<'_>, mut entry: Entry| {
            let name = CString::new(found.name)?;
            let changed = names.and_then(|names| names.get(&name));
            let own = changed.flatten().and_then(|number| nodes.get(&number));
            let in_place = own.is_some_and(|node| node.is_file_of_host(found.ino));
            if changed.is_some() && !in_place {
                to_forget.extend((entry.inode != 0).then_some(entry.inode));
                return Ok(1);
            }
            if let Some(node) = nodes.get(&entry.inode) {
                entry.attr = node.shown(Some(entry.attr.into()))?.into();
                if in_place {
                    (entry.attr_timeout, entry.entry_timeout) = (FOREVER, FOREVER);
                }
            }
            let added = add(found, entry)?;
            full |= added == 0;
            Ok(added)
        };
        match with_attributes {
            true => self
                .host
                .readdirplus(&nobody(), inode, host, size, offset, &mut pass)?,
            false => {
                let mut pass = |found: DirEntry<'_>| pass(found, Entry::default());
                self.host
                    .readdir(&nobody(), inode, host, size, offset, &mut pass)?;
            }
        }
        for number in to_forget {
            self.forget(number, 1);
        }
        Ok(full)
    }

    /// Gives the names of our own, from the `first` on: those that were made, and those that were changed. On
    /// a directory that the Host has (`on_host`), some were listed there.
    fn list_own(
        &mut self,
        asked: &Asked,
        first: u64,
        on_host: bool,
        add: Add<'_>,
    ) -> io::Result<()> {
        let &Asked {
            inode,
            size,
            with_attributes,
            ..
        } = asked;
        let dots = DOTS.len() as u64;
        let names = self.nodes.get(&inode).and_then(|node| node.names.as_ref());
        let names = names
            .into_iter()
            .flat_map(|names| names.from(first.saturating_sub(dots)));
        // No more than what was asked for is of use.
        let names: Vec<_> = names
            .take(size as usize / 24 + 1)
            .map(|(at, name, number)| (at, name.to_owned(), number))
            .collect();
        for (at, name, number) in names {
            // What the Host has no longer is not there.
            let Ok(attributes) = self.attributes(number) else {
                continue;
            };
            // Where the Host has it, it was listed: it may have been before it was changed, and must
            // not be twice.
            if on_host && self.is_in_place(inode, &name, number) {
                continue;
            }
            let shown = DirEntry {
                ino: attributes.ino,
                offset: OWN_NAMES + dots + at + 1,
                type_: directory_type(attributes.mode),
                name: name.to_bytes(),
            };
            let mut entry = Entry::default();
            if with_attributes && self.know_again(number).is_ok() {
                entry = self.entry(number, attributes, FOREVER);
            }
            let added = add(shown, entry);
            let taken = matches!(added, Ok(size) if size != 0);
            if !taken && entry.inode != 0 {
                self.forget(number, 1);
            }
            if added? == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Gives the two names that each directory has, from the `first` on; says whether there is no more room.
fn list_dots(inode: u64, first: u64, add: Add<'_>) -> io::Result<bool> {
    for &(at, name) in DOTS.iter().filter(|&&(at, _)| at >= first) {
        let shown = DirEntry {
            ino: inode,
            offset: OWN_NAMES + at + 1,
            type_: directory_type(FileType::Directory.as_raw_mode()),
            name: name.to_bytes(),
        };
        if add(shown, Entry::default())? == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
