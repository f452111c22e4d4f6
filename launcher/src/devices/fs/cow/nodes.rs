// SPDX-License-Identifier: GPL-2.0
//! The Guest's part of an inode, and when that is needed no longer.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{Attr, ROOT_ID};
use fuse_backend_rs::api::filesystem::{Entry, FileSystem, GetxattrReply, ListxattrReply};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::budget::Charge;
use super::content::{Below, Content};
use super::{
    file_type, is_made, nobody, xattr_cost, Body, Node, Own, State, COPY_WHOLE, FOREVER, NODE_COST,
    XATTR_MAX,
};
use crate::devices::fs::server::VALID;

impl State {
    /// The attributes that the Host has, for one of its inodes.
    pub(super) fn host_attributes(&self, number: u64) -> io::Result<Option<Attr>> {
        if is_made(number) {
            return Ok(None);
        }
        let (attributes, _) = self.host.getattr(&nobody(), number, None)?;
        Ok(Some(attributes.into()))
    }

    pub(super) fn attributes(&self, number: u64) -> io::Result<Attr> {
        let node = self.nodes.get(&number);
        let files_own = node.and_then(|node| node.own.as_ref());
        match files_own {
            // The Host may have it no longer.
            Some(own) if !matches!(own.body, Body::Directory(_)) => {}
            _ => {
                let host = self.host_attributes(number)?;
                return match node {
                    Some(node) => node.shown(host),
                    None => Ok(host.ok_or(Errno::STALE)?),
                };
            }
        }
        node.ok_or(Errno::STALE)?.shown(None)
    }

    /// The time for which `attributes(number)` stay as they are.
    pub(super) fn valid(&self, number: u64) -> Duration {
        let own = self.nodes.get(&number).and_then(|node| node.own.as_ref());
        match own {
            Some(_) if is_made(number) => FOREVER,
            Some(own) if !matches!(own.body, Body::Directory(_)) => FOREVER,
            _ => VALID,
        }
    }

    /// How long there stays nothing by `name` in `parent`: longer if only the Guest can put something
    /// there.
    pub(super) fn absence_valid(&self, parent: u64, name: &CStr) -> Duration {
        let node = self.nodes.get(&parent);
        let names = node.and_then(|node| node.names.as_ref());
        let removed = names.is_some_and(|names| names.get(name) == Some(None));
        match removed || is_made(parent) && node.is_some() {
            true => FOREVER,
            false => VALID,
        }
    }

    pub(super) fn entry(&self, number: u64, attributes: Attr, entry_timeout: Duration) -> Entry {
        Entry {
            inode: number,
            attr: attributes.into(),
            attr_timeout: self.valid(number),
            entry_timeout,
            ..Entry::default()
        }
    }

    /// The Guest, or one here, knows an inode once more.
    pub(super) fn know_again(&mut self, number: u64) -> io::Result<()> {
        if !is_made(number) {
            return self.host.know_again(number);
        }
        let node = self.nodes.get_mut(&number).ok_or(Errno::STALE)?;
        node.lookups = node.lookups.saturating_add(1);
        Ok(())
    }

    /// The opposite.
    pub(super) fn forget(&mut self, number: u64, count: u64) {
        if is_made(number) {
            if let Some(node) = self.nodes.get_mut(&number) {
                node.lookups = node.lookups.saturating_sub(count);
            }
        } else {
            self.host.forget(&nobody(), number, count);
        }
        self.drop_unless_needed(number);
    }

    /// Drops an inode that has no name, and is not known to the Guest.
    pub(super) fn drop_unless_needed(&mut self, number: u64) {
        let Some(node) = self.nodes.get(&number) else {
            return;
        };
        let known = match is_made(number) {
            true => node.lookups,
            // Once by what is here.
            false => self.host.known(number).saturating_sub(1),
        };
        if known > 0 || number == ROOT_ID || node.links > 0 {
            return;
        }
        let named = match self.attributes(number) {
            Ok(attributes) => attributes.nlink > 0,
            // Not even the Host finds it.
            Err(_) => false,
        };
        if named {
            return;
        }
        let Some(node) = self.nodes.remove(&number) else {
            return;
        };
        if let Some(Body::File(content)) = node.own.as_ref().map(|own| &own.body) {
            self.kept -= usize::from(content.keeps_file());
        }
        for (_, _, inode) in node.names.iter().flat_map(|names| names.from(0)) {
            if !is_made(inode) {
                self.host.forget(&nobody(), inode, 1);
            }
        }
        if !is_made(number) {
            self.host.forget(&nobody(), number, 1);
        }
    }

    /// The differences of an inode; one of the Host's has none yet.
    pub(super) fn node(&mut self, number: u64) -> io::Result<&mut Node> {
        if !is_made(number) && !self.nodes.contains_key(&number) {
            let charge = Charge::new(&self.budget, NODE_COST)?;
            self.host.know_again(number)?;
            let node = Node {
                lookups: 0,
                links: 0,
                own: None,
                names: None,
                charge,
            };
            self.nodes.insert(number, node);
        }
        Ok(self.nodes.get_mut(&number).ok_or(Errno::STALE)?)
    }

    /// The Guest changes an inode: from now on it is its own. With `emptied`, its content is not
    /// wanted.
    pub(super) fn change(&mut self, number: u64, emptied: bool) -> io::Result<&mut Own> {
        let known = self.nodes.get(&number);
        if known.is_none_or(|node| node.own.is_none()) {
            self.copy(number, emptied)?;
        }
        let node = self.nodes.get_mut(&number);
        Ok(node
            .and_then(|node| node.own.as_mut())
            .ok_or(Errno::STALE)?)
    }

    pub(super) fn copy(&mut self, number: u64, emptied: bool) -> io::Result<()> {
        let attributes = self.host_attributes(number)?.ok_or(Errno::STALE)?;
        let xattrs = self.host_xattrs(number)?;
        let file_type = file_type(&attributes);
        let body = match file_type {
            FileType::RegularFile if emptied => Body::File(Content::empty(&self.budget)?),
            FileType::RegularFile => Body::File(self.host_content(number, attributes.size)?),
            FileType::Directory => Body::Directory((attributes.mtime, attributes.mtimensec)),
            FileType::Symlink => Body::Symlink(self.host.readlink(&nobody(), number)?),
            _ => Body::Other,
        };
        let keeps_file = matches!(&body, Body::File(content) if content.keeps_file());
        let own = Own {
            attributes,
            xattrs,
            born: self.host.born(number),
            body,
        };
        let cost: u64 = own
            .xattrs
            .iter()
            .map(|(name, value)| xattr_cost(name, value))
            .sum();
        // It must stay in its place, whatever becomes of that on the Host. The Guest may have reached it
        // by another name, and forgotten the directory of this one.
        let place = match file_type {
            FileType::Directory => None,
            _ => self.host.place(number),
        };
        let place = place.filter(|&(parent, _)| is_made(parent) || self.host.known(parent) > 0);
        self.node(number)?.charge.add(cost)?;
        if let Some((parent, name)) = place {
            let names = self.nodes.get(&parent).and_then(|node| node.names.as_ref());
            if names.is_none_or(|names| names.get(&name).is_none()) {
                self.set_name(parent, &name, Some(number))?;
            }
        }
        self.node(number)?.own = Some(own);
        self.kept += usize::from(keeps_file);
        Ok(())
    }

    pub(super) fn host_content(&self, number: u64, size: u64) -> io::Result<Content> {
        let below = match self.host.open_to_read(number) {
            Ok(file) => Below::File(file),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Below::Unreadable,
            Err(error) => return Err(error),
        };
        let mut content = Content::over(below, size, &self.budget)?;
        if content.keeps_file() && (size <= COPY_WHOLE || self.kept >= self.max_handles) {
            content.take_in()?;
        }
        Ok(content)
    }

    pub(super) fn host_xattrs(&self, number: u64) -> io::Result<BTreeMap<CString, Vec<u8>>> {
        let mut xattrs = BTreeMap::new();
        let listed = self.host.listxattr(&nobody(), number, XATTR_MAX as u32);
        // There may be none on that file system, or not for us.
        let Ok(ListxattrReply::Names(listed)) = listed else {
            return Ok(xattrs);
        };
        for name in listed
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
        {
            let name = CString::new(name)?;
            let value = self
                .host
                .getxattr(&nobody(), number, &name, XATTR_MAX as u32);
            if let Ok(GetxattrReply::Value(value)) = value {
                xattrs.insert(name, value);
            }
        }
        Ok(xattrs)
    }
}
