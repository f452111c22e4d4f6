// SPDX-License-Identifier: GPL-2.0
//! The Guest's changes of the names in a directory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};

/// Names that the Guest has added, or removed from what the Host has there.
#[derive(Default)]
pub(super) struct Names {
    names: HashMap<CString, (u64, Option<u64>)>,
    /// By a number that a name keeps, and that no other gets: where somebody reads on stays good
    /// while names come and go.
    order: BTreeMap<u64, CString>,
    next: u64,
}

impl Names {
    /// The inode that `name` leads to. `Some(None)`: none, whatever the Host has there; `None`:
    /// that is the Host's matter.
    pub(super) fn get(&self, name: &CStr) -> Option<Option<u64>> {
        self.names.get(name).map(|&(_, inode)| inode)
    }

    /// From now on `name` leads to `inode`, or nowhere. Returns what [`get`](Self::get) did.
    pub(super) fn set(&mut self, name: &CStr, inode: Option<u64>) -> Option<Option<u64>> {
        if let Some((_, known)) = self.names.get_mut(name) {
            return Some(std::mem::replace(known, inode));
        }
        self.names.insert(name.into(), (self.next, inode));
        self.order.insert(self.next, name.into());
        self.next += 1;
        None
    }

    /// From now on `name` is the Host's matter. Returns what [`get`](Self::get) did.
    pub(super) fn unset(&mut self, name: &CStr) -> Option<Option<u64>> {
        let (number, inode) = self.names.remove(name)?;
        self.order.remove(&number);
        Some(inode)
    }

    /// The names that lead somewhere, from `number` on: the number, the name, the inode.
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = (u64, &CStr, u64)> {
        self.order.range(number..).filter_map(|(&number, name)| {
            let inode = self.get(name)??;
            Some((number, name.as_c_str(), inode))
        })
    }
}
