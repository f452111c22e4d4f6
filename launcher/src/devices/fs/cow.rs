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
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuse_backend_rs::abi::fuse_abi::{
    stat64, statvfs64, Attr, CreateIn, FOPEN_IN_KILL_SUIDGID, ROOT_ID, WRITE_KILL_PRIV,
};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::fs::{FallocateFlags, FileType, OFlags, RawMode, RenameFlags, XattrFlags};
use rustix::io::Errno;

use self::budget::{Budget, Charge};
use self::content::{Below, Content, PAGE};
use self::names::Names;
use super::host;
use super::server::{list_xattrs, FileServer, Limits, VALID};

/// How long the Guest may rely on what only it can change.
const FOREVER: Duration = Duration::from_secs(86400);
/// Numbers from here on are of inodes that were made here, and seen by the Guest as inode numbers,
/// too. Below are the server's.
const MADE: u64 = 1 << 62;
/// Where in a directory the names begin that are from here. ext4, whose offsets are hashes, leaves
/// out the highest 2^32 but for the very last, which means the end; others are far below.
const OWN_NAMES: u64 = 0x7fff_ffff_0000_0000;
/// Where "." and ".." are, before the names.
const DOTS: [(u64, &CStr); 2] = [(0, c"."), (1, c"..")];
/// A file of at most this size is copied whole.
const COPY_WHOLE: u64 = 1 << 17;
/// What an inode, a name, an attribute take of the budget, beside the bytes in them.
const NODE_COST: u64 = 512;
const NAME_COST: u64 = 160;
const XATTR_COST: u64 = 96;
/// XATTR_SIZE_MAX of Linux.
const XATTR_MAX: usize = 1 << 16;
/// What lets a program run with another's rights, beside mode bits.
const CAPABILITY: &CStr = c"security.capability";

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_RUNS: u32 = 0o010;
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
    /// How many files of the Host's are kept open below those that were copied.
    kept: usize,
    budget: Arc<Budget>,
}

/// An inode that was made here; or one of the Host's of which something differs. Such a one is
/// known to the server below once more, so that its number stays.
struct Node {
    /// How often the Guest knows it. Only counted for those that were made here.
    lookups: u64,
    /// How many names it has; for one of the Host's, how many more than there.
    links: i64,
    own: Option<Own>,
    /// Of a directory.
    names: Option<Names>,
    charge: Charge,
}

/// What is the Guest's own of an inode.
struct Own {
    /// `nlink` is that of the Host's.
    attributes: Attr,
    xattrs: BTreeMap<CString, Vec<u8>>,
    /// When it was made, if that is known.
    born: Option<(i64, u32)>,
    body: Body,
}

enum Body {
    File(Content),
    Symlink(Vec<u8>),
    /// When the Host's directory was changed last, before it was changed here.
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
    fn drop_set_id_bits(&mut self) {
        let mode = &mut self.attributes.mode;
        if *mode & GROUP_RUNS != 0 {
            *mode &= !SET_GROUP;
        }
        *mode &= !SET_USER;
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
    /// What the Guest is to see, where the Host has `host`.
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
    /// Serves `root`, a descriptor as [`host::open_root`] gives it. What the Guest changes takes at
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

    /// What the Guest sees of an inode, and when that was made, if that is known.
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

impl State {
    /// The attributes that the Host has, for one of its inodes.
    fn host_attributes(&self, number: u64) -> io::Result<Option<Attr>> {
        if is_made(number) {
            return Ok(None);
        }
        let (attributes, _) = self.host.getattr(&nobody(), number, None)?;
        Ok(Some(attributes.into()))
    }

    fn attributes(&self, number: u64) -> io::Result<Attr> {
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

    /// How long `attributes(number)` stay as they are.
    fn valid(&self, number: u64) -> Duration {
        let own = self.nodes.get(&number).and_then(|node| node.own.as_ref());
        match own {
            Some(_) if is_made(number) => FOREVER,
            Some(own) if !matches!(own.body, Body::Directory(_)) => FOREVER,
            _ => VALID,
        }
    }

    fn entry(&self, number: u64, attributes: Attr, entry_timeout: Duration) -> Entry {
        Entry {
            inode: number,
            attr: attributes.into(),
            attr_timeout: self.valid(number),
            entry_timeout,
            ..Entry::default()
        }
    }

    /// The Guest, or one here, knows an inode once more.
    fn know_again(&mut self, number: u64) -> io::Result<()> {
        if !is_made(number) {
            return self.host.know_again(number);
        }
        let node = self.nodes.get_mut(&number).ok_or(Errno::STALE)?;
        node.lookups = node.lookups.saturating_add(1);
        Ok(())
    }

    /// The opposite.
    fn forget(&mut self, number: u64, count: u64) {
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
    fn drop_unless_needed(&mut self, number: u64) {
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

    /// What differs of an inode; of one of the Host's, nothing yet.
    fn node(&mut self, number: u64) -> io::Result<&mut Node> {
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
    fn change(&mut self, number: u64, emptied: bool) -> io::Result<&mut Own> {
        let known = self.nodes.get(&number);
        if known.is_none_or(|node| node.own.is_none()) {
            self.copy(number, emptied)?;
        }
        let node = self.nodes.get_mut(&number);
        Ok(node
            .and_then(|node| node.own.as_mut())
            .ok_or(Errno::STALE)?)
    }

    fn copy(&mut self, number: u64, emptied: bool) -> io::Result<()> {
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

    fn host_content(&self, number: u64, size: u64) -> io::Result<Content> {
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

    fn host_xattrs(&self, number: u64) -> io::Result<BTreeMap<CString, Vec<u8>>> {
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

    /// The inode that `name` in `parent` leads to, which is known once more then, and how long it
    /// does.
    fn find(&mut self, parent: u64, name: &CStr) -> io::Result<(u64, Duration)> {
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

    fn check_directory(&self, number: u64) -> io::Result<()> {
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
    fn peek(&mut self, parent: u64, name: &CStr) -> io::Result<Option<u64>> {
        match self.find(parent, name) {
            Ok((number, _)) => {
                self.forget(number, 1);
                Ok(Some(number))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Is inode `number`, which `name` in `parent` leads to, a file that the Host has there?
    fn is_in_place(&self, parent: u64, name: &CStr, number: u64) -> bool {
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

    /// From now on `name` in `parent` leads to an inode, or nowhere.
    fn set_name(&mut self, parent: u64, name: &CStr, to: Option<u64>) -> io::Result<()> {
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
    fn remove_name(&mut self, parent: u64, name: &CStr) -> io::Result<()> {
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
    fn change_directory(&mut self, number: u64) -> io::Result<()> {
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
    fn add_links(&mut self, number: u64, count: i64) -> io::Result<()> {
        let node = self.node(number)?;
        node.links += count;
        if let Some(own) = &mut node.own {
            set_changed(&mut own.attributes);
        }
        Ok(())
    }

    /// Makes an inode as `name` in `parent`, known to the Guest once. Its mode is what the umask leaves
    /// of `mode`, unless `parent` says for itself what may be done with it.
    fn make(
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
    fn make_node(
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
    fn inherited(
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
    fn default_list(&self, directory: u64) -> io::Result<Option<Vec<u8>>> {
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

    /// Is nothing in the directory?
    fn is_empty(&self, number: u64) -> io::Result<bool> {
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

    /// `name` in `parent` leads to `number` no longer.
    fn unlink(&mut self, parent: u64, name: &CStr, number: u64) -> io::Result<()> {
        self.change_directory(parent)?;
        self.node(number)?;
        self.remove_name(parent, name)?;
        self.add_links(number, -1)?;
        self.drop_unless_needed(number);
        Ok(())
    }

    fn remove(&mut self, parent: u64, name: &CStr, is_directory: bool) -> io::Result<()> {
        let number = self.peek(parent, name)?.ok_or(Errno::NOENT)?;
        self.check_removable(number, is_directory)?;
        self.unlink(parent, name, number)
    }

    fn check_removable(&self, number: u64, is_directory: bool) -> io::Result<()> {
        let found = file_type(&self.attributes(number)?) == FileType::Directory;
        match (found, is_directory) {
            (false, true) => Err(Errno::NOTDIR.into()),
            (true, false) => Err(Errno::ISDIR.into()),
            (true, true) if !self.is_empty(number)? => Err(Errno::NOTEMPTY.into()),
            _ => Ok(()),
        }
    }

    fn rename(
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

    fn open_file(&mut self, number: u64, flags: u32) -> io::Result<(u64, OpenOptions)> {
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

    fn add_handle(&mut self, inode: u64, host: Option<u64>) -> u64 {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Handle { inode, host });
        handle
    }

    fn handle(&self, handle: u64) -> io::Result<&Handle> {
        Ok(self.handles.get(&handle).ok_or(Errno::BADF)?)
    }

    /// The content of an open file, if that is the Guest's own.
    fn content(&mut self, handle: u64) -> io::Result<Option<&mut Content>> {
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

    /// Gives the entries of a directory from `offset` on to `add`, with their attributes.
    fn read_directory(
        &mut self,
        (inode, handle): (u64, u64),
        size: u32,
        offset: u64,
        with_attributes: bool,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let &Handle {
            inode: opened,
            host,
        } = self.handle(handle)?;
        if opened != inode {
            return Err(Errno::BADF.into());
        }
        let (mut full, mut to_forget) = (false, Vec::new());
        let is_own = (OWN_NAMES..u64::from(u32::MAX) + OWN_NAMES).contains(&offset);
        if let (Some(host), false) = (host, is_own) {
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
        }
        for number in to_forget {
            self.forget(number, 1);
        }
        if full {
            return Ok(());
        }
        let first = if is_own { offset - OWN_NAMES } else { 0 };
        let dots = DOTS
            .iter()
            .filter(|&&(at, _)| host.is_none() && at >= first);
        for &(at, name) in dots {
            let shown = DirEntry {
                ino: inode,
                offset: OWN_NAMES + at + 1,
                type_: directory_type(FileType::Directory.as_raw_mode()),
                name: name.to_bytes(),
            };
            if add(shown, Entry::default())? == 0 {
                return Ok(());
            }
        }
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
            if host.is_some() && self.is_in_place(inode, &name, number) {
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
                entry_timeout: VALID,
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
        _: &Context,
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
            own.drop_set_id_bits();
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
        _: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let mut state = self.state();
        let (handle, options) = state.open_file(inode, flags)?;
        if fuse_flags & FOPEN_IN_KILL_SUIDGID != 0 {
            state.change(inode, false)?.drop_set_id_bits();
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
        _: &Context,
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
            own.drop_set_id_bits();
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
        _: &Context,
        _: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.handle(handle)?.inode;
        let (content, attributes) = state.change(inode, false)?.content()?;
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
