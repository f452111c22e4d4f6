// SPDX-License-Identifier: GPL-2.0
//! The names in directories: what they lead to, and how they change.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::Attr;
use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem, GetxattrReply};
use rustix::fs::{FileType, RawMode, RenameFlags};
use rustix::io::Errno;

use super::budget::Charge;
use super::content::PAGE;
use super::names::Names;
use super::{
    acl, file_type, is_absent, is_made, name_cost, nobody, set_changed, set_modified, xattr_cost,
    Body, Node, Own, State, FOREVER, NODE_COST, SET_GROUP, XATTR_MAX,
};
use crate::devices::fs::host;
use crate::devices::fs::server::VALID;

impl State {
    /// The inode that `name` in `parent` leads to, which is known once more then, and how long it
    /// does.
    pub(super) fn find(&mut self, parent: u64, name: &CStr) -> io::Result<(u64, Duration)> {
        host::check_name(name)?;
        self.check_directory(parent)?;
        let names = self.nodes.get(&parent).and_then(|node| node.names.as_ref());
        match names.and_then(|names| names.get(name)) {
            Some(Some(number)) => {
                self.know_again(number)?;
                Ok((number, FOREVER))
            }
            Some(None) => Err(Errno::NOENT.into()),
            None if is_made(parent) => Err(Errno::NOENT.into()),
            None => Ok((self.host.lookup(&nobody(), parent, name)?.inode, VALID)),
        }
    }

    pub(super) fn check_directory(&self, number: u64) -> io::Result<()> {
        let own = self.nodes.get(&number).and_then(|node| node.own.as_ref());
        match own {
            Some(Own {
                body: Body::Directory(_),
                ..
            }) => Ok(()),
            Some(_) => Err(Errno::NOTDIR.into()),
            // The server below looks.
            None if !is_made(number) => Ok(()),
            None => Err(Errno::STALE.into()),
        }
    }

    /// The same if there is anything; nobody knows it once more then.
    pub(super) fn peek(&mut self, parent: u64, name: &CStr) -> io::Result<Option<u64>> {
        match self.find(parent, name) {
            Ok((number, _)) => {
                self.forget(number, 1);
                Ok(Some(number))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From now on `name` in `parent` leads to an inode, or nowhere.
    pub(super) fn set_name(&mut self, parent: u64, name: &CStr, to: Option<u64>) -> io::Result<()> {
        let cost = name_cost(name);
        if let Some(host) = to.filter(|&to| !is_made(to)) {
            self.host.know_again(host)?;
        }
        let charged = self.node(parent).and_then(|node| node.charge.add(cost));
        if let Err(error) = charged {
            if let Some(host) = to.filter(|&to| !is_made(to)) {
                self.host.forget(&nobody(), host, 1);
            }
            return Err(error);
        }
        let node = self.node(parent)?;
        let before = node.names.get_or_insert_with(Names::default).set(name, to);
        if before.is_some() {
            node.charge.give_back(cost);
        }
        if let Some(host) = before.flatten().filter(|&before| !is_made(before)) {
            self.host.forget(&nobody(), host, 1);
        }
        Ok(())
    }

    /// From now on `name` in `parent` leads nowhere.
    pub(super) fn remove_name(&mut self, parent: u64, name: &CStr) -> io::Result<()> {
        let on_host = !is_made(parent)
            && match self.host.lookup(&nobody(), parent, name) {
                Ok(entry) => {
                    self.host.forget(&nobody(), entry.inode, 1);
                    true
                }
                Err(error) => !is_absent(&error),
            };
        if on_host {
            return self.set_name(parent, name, None);
        }
        let node = self.node(parent)?;
        let before = node.names.get_or_insert_with(Names::default).unset(name);
        if before.is_some() {
            node.charge.give_back(name_cost(name));
        }
        if let Some(host) = before.flatten().filter(|&before| !is_made(before)) {
            self.host.forget(&nobody(), host, 1);
        }
        Ok(())
    }

    /// Something can be put into a directory, which has changed then.
    pub(super) fn change_directory(&mut self, number: u64) -> io::Result<()> {
        let own = self.change(number, false)?;
        match own.body {
            Body::Directory(_) => set_modified(&mut own.attributes),
            _ => return Err(Errno::NOTDIR.into()),
        }
        match self.nodes.get(&number) {
            Some(node) if node.is_removed() => Err(Errno::NOENT.into()),
            _ => Ok(()),
        }
    }

    /// An inode has one name more, or less.
    pub(super) fn add_links(&mut self, number: u64, count: i64) -> io::Result<()> {
        let node = self.node(number)?;
        node.links += count;
        if let Some(own) = &mut node.own {
            set_changed(&mut own.attributes);
        }
        Ok(())
    }

    /// Makes an inode as `name` in `parent`, known to the Guest once. Its mode is what the umask leaves
    /// of `mode`, unless `parent` says for itself what may be done with it.
    pub(super) fn make(
        &mut self,
        context: &Context,
        (parent, name): (u64, &CStr),
        (mode, umask): (u32, u32),
        device: u32,
        body: Body,
    ) -> io::Result<Entry> {
        if self.peek(parent, name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        self.change_directory(parent)?;
        let number = self.make_node(context, parent, (mode, umask), device, body)?;
        let named = self.set_name(parent, name, Some(number));
        if named.is_err() {
            self.forget(number, 1);
        }
        named?;
        self.add_links(number, 1)?;
        let attributes = self.attributes(number)?;
        Ok(self.entry(number, attributes, FOREVER))
    }

    /// Makes an inode in directory `parent`, known to the Guest once, without a name.
    pub(super) fn make_node(
        &mut self,
        context: &Context,
        parent: u64,
        (mode, umask): (u32, u32),
        device: u32,
        body: Body,
    ) -> io::Result<u64> {
        let size = match &body {
            Body::Symlink(content) => content.len() as u64,
            _ => 0,
        };
        let (xattrs, mode) = self.inherited(parent, mode, umask)?;
        let lists: u64 = xattrs
            .iter()
            .map(|(name, value)| xattr_cost(name, value))
            .sum();
        let charge = Charge::new(&self.budget, NODE_COST + size + lists)?;
        let directory = self.attributes(parent)?;
        let inherits = directory.mode & SET_GROUP != 0;
        let is_directory = matches!(body, Body::Directory(_));
        let inherited = if inherits && is_directory {
            SET_GROUP
        } else {
            0
        };
        let number = self.next;
        let mut attributes = Attr {
            ino: number,
            size,
            mode: mode | inherited,
            uid: context.uid,
            gid: if inherits { directory.gid } else { context.gid },
            rdev: device,
            blksize: PAGE as u32,
            ..Attr::default()
        };
        set_modified(&mut attributes);
        (attributes.atime, attributes.atimensec) = (attributes.mtime, attributes.mtimensec);
        self.next += 1;
        let node = Node {
            lookups: 1,
            links: 0,
            own: Some(Own {
                attributes,
                xattrs,
                born: Some((attributes.mtime as i64, attributes.mtimensec)),
                body,
            }),
            names: is_directory.then(Names::default),
            charge,
        };
        self.nodes.insert(number, node);
        Ok(number)
    }

    /// The access control lists and the mode of what is made with `mode` in directory `parent`.
    pub(super) fn inherited(
        &self,
        parent: u64,
        mode: u32,
        umask: u32,
    ) -> io::Result<(BTreeMap<CString, Vec<u8>>, u32)> {
        let mut xattrs = BTreeMap::new();
        let file_type = FileType::from_raw_mode(mode as RawMode);
        if file_type == FileType::Symlink {
            return Ok((xattrs, mode));
        }
        let Some(default) = self.default_list(parent)? else {
            return Ok((xattrs, mode & !(umask & 0o777)));
        };
        let (list, mode) = acl::inherit(&default, mode)?;
        if !acl::is_plain(&list) {
            xattrs.insert(acl::ACCESS.into(), list);
        }
        if file_type == FileType::Directory {
            xattrs.insert(acl::DEFAULT.into(), default);
        }
        Ok((xattrs, mode))
    }

    /// The default access control list of a directory, if it has one.
    pub(super) fn default_list(&self, directory: u64) -> io::Result<Option<Vec<u8>>> {
        let own = self
            .nodes
            .get(&directory)
            .and_then(|node| node.own.as_ref());
        if let Some(own) = own {
            return Ok(own.xattrs.get(acl::DEFAULT).cloned());
        }
        let listed = self
            .host
            .getxattr(&nobody(), directory, acl::DEFAULT, XATTR_MAX as u32);
        match listed {
            Ok(GetxattrReply::Value(list)) => Ok(Some(list)),
            // There is none, or there are none on that file system.
            _ => Ok(None),
        }
    }

    /// `name` in `parent` leads to `number` no longer.
    pub(super) fn unlink(&mut self, parent: u64, name: &CStr, number: u64) -> io::Result<()> {
        self.change_directory(parent)?;
        self.node(number)?;
        self.remove_name(parent, name)?;
        self.add_links(number, -1)?;
        self.drop_unless_needed(number);
        Ok(())
    }

    pub(super) fn remove(
        &mut self,
        parent: u64,
        name: &CStr,
        is_directory: bool,
    ) -> io::Result<()> {
        let number = self.peek(parent, name)?.ok_or(Errno::NOENT)?;
        self.check_removable(number, is_directory)?;
        self.unlink(parent, name, number)
    }

    pub(super) fn check_removable(&self, number: u64, is_directory: bool) -> io::Result<()> {
        let found = file_type(&self.attributes(number)?) == FileType::Directory;
        match (found, is_directory) {
            (false, true) => Err(Errno::NOTDIR.into()),
            (true, false) => Err(Errno::ISDIR.into()),
            (true, true) if !self.is_empty(number)? => Err(Errno::NOTEMPTY.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn rename(
        &mut self,
        (old_parent, old_name): (u64, &CStr),
        (new_parent, new_name): (u64, &CStr),
        flags: RenameFlags,
    ) -> io::Result<()> {
        let moved = self.peek(old_parent, old_name)?.ok_or(Errno::NOENT)?;
        let replaced = self.peek(new_parent, new_name)?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if replaced.is_some() && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Errno::EXIST.into());
        }
        if replaced == Some(moved) {
            return Ok(());
        }
        if exchange && replaced.is_none() {
            return Err(Errno::NOENT.into());
        }
        // All that may fail comes first.
        for directory in [old_parent, new_parent] {
            self.change_directory(directory)?;
        }
        for moved in [Some(moved), replaced.filter(|_| exchange)]
            .into_iter()
            .flatten()
        {
            if file_type(&self.attributes(moved)?) != FileType::Directory {
                self.change(moved, false)?;
            }
        }
        if let Some(replaced) = replaced.filter(|_| !exchange) {
            let is_directory = file_type(&self.attributes(moved)?) == FileType::Directory;
            self.check_removable(replaced, is_directory)?;
            self.node(replaced)?;
        }
        // Should the budget end between the two, it has both names, as in a rename that was cut short.
        self.set_name(new_parent, new_name, Some(moved))?;
        match replaced {
            Some(replaced) if exchange => self.set_name(old_parent, old_name, Some(replaced))?,
            _ => self.remove_name(old_parent, old_name)?,
        }
        self.add_links(moved, 0)?;
        if let Some(replaced) = replaced {
            self.add_links(replaced, if exchange { 0 } else { -1 })?;
            self.drop_unless_needed(replaced);
        }
        Ok(())
    }
}
