// SPDX-License-Identifier: GPL-2.0
//! Copy on write: a directory of the Host's, in which the Guest may change everything, in memory.
//!
//! Below is a [`FileServer`] that changes nothing. What the Guest has not changed is asked of it
//! each time, so that the Guest sees what the Host has now, as by a mount in the Host itself. What it
//! has made or changed is here, by the number of the inode:
//!
//! * A **file** is copied when the Guest changes it, renames it or links it: its attributes, its
//!   content, and the name by which it was found last. From then on it is the Guest's own, under each
//!   of its names, for a number stands for a file of the Host's and not for a name. A large one keeps
//!   the Host's file open instead, and what the Guest has not written is read from there.
//! * A **directory** stays the Host's. Here is only what the Guest has changed: its attributes, and
//!   names that were added or removed ([`Names`]). A renamed one is a name that leads to it.
//! * What is **made** here has numbers that the server below never gives.
//!
//! All of it is bounded by a [`Budget`], and gone with the Guest.

mod acl;
mod budget;
mod content;
mod listing;
mod names;
mod nodes;
mod open;
mod requests;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuse_backend_rs::abi::fuse_abi::{Attr, CreateIn};
use fuse_backend_rs::api::filesystem::{Context, Entry};
use rustix::fs::{FileType, RawMode};
use rustix::io::Errno;

use self::budget::{Budget, Charge};
use self::content::Content;
use self::names::Names;
use super::server::{without_set_id_bits, FileServer, Limits};

/// The time for which the Guest may rely on what only it can change.
const FOREVER: Duration = Duration::from_secs(86400);
/// Numbers from here on are of inodes that were made here, and seen by the Guest as inode numbers,
/// too. Below are the server's.
const MADE: u64 = 1 << 62;
/// Where in a directory the names begin that are from here. ext4, whose offsets are hashes, leaves
/// out the highest 2^32 but for the very last, which means the end; others are far below.
const OWN_NAMES: u64 = 0x7fff_ffff_0000_0000;
/// The offsets of "." and "..", before the names.
const DOTS: [(u64, &CStr); 2] = [(0, c"."), (1, c"..")];
/// A file of at most this size is copied whole.
const COPY_WHOLE: u64 = 1 << 17;
/// The cost of an inode, a name and an attribute, beside the bytes in them: about what they take of
/// lg's memory.
const NODE_COST: u64 = 512;
const NAME_COST: u64 = 160;
const XATTR_COST: u64 = 96;
/// XATTR_SIZE_MAX of Linux.
const XATTR_MAX: usize = 1 << 16;
/// The attribute that lets a program run with another's rights, as mode bits do.
const CAPABILITY: &CStr = c"security.capability";

const SET_GROUP: u32 = 0o2000;
const PERMISSIONS: u32 = 0o7777;

/// A directory of the Host's, and what the Guest has made of it.
pub struct CowServer {
    state: Mutex<State>,
}

struct State {
    /// The Host's files.
    host: FileServer,
    nodes: HashMap<u64, Node>,
    next: u64,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
    max_handles: usize,
    /// The most files of the Host's that are kept open below those that were copied.
    kept: usize,
    budget: Arc<Budget>,
}

/// An inode that was made here; or one of the Host's of which something differs. Such a one is
/// known to the server below once more, so that its number stays.
struct Node {
    /// The Guest's count of references to it. Only counted for those that were made here.
    lookups: u64,
    /// The number of its names; for one of the Host's, how many more than there.
    links: i64,
    own: Option<Own>,
    /// Of a directory.
    names: Option<Names>,
    charge: Charge,
}

/// The Guest's own part of an inode.
struct Own {
    /// `nlink` is that of the Host's.
    attributes: Attr,
    xattrs: BTreeMap<CString, Vec<u8>>,
    /// The time when it was made, if that is known.
    born: Option<(i64, u32)>,
    body: Body,
}

enum Body {
    File(Content),
    Symlink(Vec<u8>),
    /// The time of the Host directory's last change, before it was changed here.
    Directory((u64, u32)),
    Other,
}

/// Something open.
struct Handle {
    inode: u64,
    /// Of the server below; none if that has nothing of it.
    host: Option<u64>,
}

fn is_made(number: u64) -> bool {
    number >= MADE
}

fn file_type(attributes: &Attr) -> FileType {
    FileType::from_raw_mode(attributes.mode as RawMode)
}

/// `DT_*` of a file type: the bits above the permissions.
fn directory_type(mode: u32) -> u32 {
    (mode & 0o170_000) >> 12
}

fn now() -> (u64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or((0, 0), |now| (now.as_secs(), now.subsec_nanos()))
}

fn set_changed(attributes: &mut Attr) {
    (attributes.ctime, attributes.ctimensec) = now();
}

fn set_modified(attributes: &mut Attr) {
    set_changed(attributes);
    (attributes.mtime, attributes.mtimensec) = (attributes.ctime, attributes.ctimensec);
}

impl Own {
    /// Nobody runs it with another's rights any more, who could not before it was changed.
    fn drop_set_id_bits(&mut self, context: &Context) {
        self.attributes.mode = without_set_id_bits(context, &self.attributes);
        self.xattrs.remove(CAPABILITY);
    }

    fn content(&mut self) -> io::Result<(&mut Content, &mut Attr)> {
        match &mut self.body {
            Body::File(content) => Ok((content, &mut self.attributes)),
            _ => Err(Errno::INVAL.into()),
        }
    }
}

impl Node {
    /// The attributes that the Guest sees, where the Host has `host`.
    fn shown(&self, host: Option<Attr>) -> io::Result<Attr> {
        let base = self.own.as_ref().map(|own| own.attributes);
        let mut shown = base.or(host).ok_or(Errno::STALE)?;
        match self.own.as_ref().map(|own| &own.body) {
            Some(Body::File(content)) => {
                shown.size = content.size();
                shown.blocks = content.blocks();
            }
            Some(Body::Directory(before)) => {
                if let Some(host) = host {
                    shown.size = host.size;
                    shown.blocks = host.blocks;
                    let changed = (host.mtime, host.mtimensec);
                    if changed != *before && changed > (shown.mtime, shown.mtimensec) {
                        (shown.mtime, shown.mtimensec) = changed;
                    }
                }
            }
            _ => {}
        }
        let links = i64::from(shown.nlink) + self.links;
        shown.nlink = match file_type(&shown) {
            // How many directories are in it is not counted: 1 says that nobody knows.
            FileType::Directory if self.is_removed() => 0,
            FileType::Directory if self.names.is_some() => 1,
            FileType::Directory => shown.nlink,
            _ => u32::try_from(links.max(0)).unwrap_or(u32::MAX),
        };
        Ok(shown)
    }

    /// Is it a file, or the like, that has changed here?
    fn is_own_file(&self) -> bool {
        let own = self.own.as_ref();
        own.is_some_and(|own| !matches!(own.body, Body::Directory(_)))
    }

    /// Is it such a one of the Host's, shown with inode number `shown`?
    fn is_file_of_host(&self, shown: u64) -> bool {
        let own = self.own.as_ref();
        self.is_own_file() && own.is_some_and(|own| own.attributes.ino == shown)
    }

    /// Of a directory.
    fn is_removed(&self) -> bool {
        match &self.own {
            Some(own) if is_made(own.attributes.ino) => self.links == 0,
            _ => self.links < 0,
        }
    }
}

impl CowServer {
    /// Serves `root`, a descriptor as [`super::host::open_root`] gives it. What the Guest changes takes at
    /// most `budget` bytes of memory.
    pub fn new(root: OwnedFd, limits: Limits, budget: u64) -> io::Result<Self> {
        // Of what may be open, a half is for what the Guest has open, and the rest for files that
        // stay open below changed ones.
        let handles = limits.handles / 2;
        let below = Limits {
            handles,
            inodes: limits.inodes,
        };
        Ok(Self {
            state: Mutex::new(State {
                host: FileServer::new(root, true, below)?,
                nodes: HashMap::new(),
                next: MADE,
                handles: HashMap::new(),
                next_handle: 1,
                max_handles: handles,
                kept: 0,
                budget: Budget::new(budget),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attributes of an inode that the Guest sees, and when it was made, if that is known.
    pub(super) fn attributes(
        &self,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(Attr, Option<(i64, u32)>)> {
        let state = self.state();
        if !state.nodes.contains_key(&inode) && !is_made(inode) {
            let open = handle.and_then(|handle| state.handle(handle).ok()?.host);
            return state.host.attributes(inode, open);
        }
        let own = state.nodes.get(&inode).and_then(|node| node.own.as_ref());
        let born = match own {
            Some(own) => own.born,
            None => state.host.born(inode),
        };
        Ok((state.attributes(inode)?, born))
    }

    /// Makes a file in a directory without a name, and opens it.
    pub(super) fn create_unnamed(
        &self,
        context: &Context,
        parent: u64,
        arguments: CreateIn,
    ) -> io::Result<(Entry, u64)> {
        let mut state = self.state();
        if state.handles.len() >= state.max_handles {
            return Err(Errno::NFILE.into());
        }
        state.check_directory(parent)?;
        let body = Body::File(Content::empty(&state.budget)?);
        let mode = FileType::RegularFile.as_raw_mode() | arguments.mode & PERMISSIONS;
        let mode = (mode, arguments.umask);
        let number = state.make_node(context, parent, mode, 0, body)?;
        let attributes = state.attributes(number)?;
        let entry = state.entry(number, attributes, FOREVER);
        let handle = state.add_handle(number, None);
        Ok((entry, handle))
    }

    fn reset(&self) {
        let mut state = self.state();
        state.host.reset();
        state.nodes.clear();
        state.handles.clear();
        state.kept = 0;
    }
}

/// Nobody asks the server below in anybody's name.
fn nobody() -> Context {
    Context::default()
}

/// There is nothing by that name, or no longer.
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::NOENT, Errno::STALE].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|error| absent.contains(&error))
}

fn name_cost(name: &CStr) -> u64 {
    NAME_COST + 2 * name.count_bytes() as u64
}

fn xattr_cost(name: &CStr, value: &[u8]) -> u64 {
    XATTR_COST + (name.count_bytes() + value.len()) as u64
}
