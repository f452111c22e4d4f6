// SPDX-License-Identifier: GPL-2.0
//! The files that the Guest knows, by the numbers it knows them by.
//!
//! An inode lives as long as the Guest has looked it up more often than it has forgotten it. A
//! number is never used twice, so one that has been forgotten stands for nothing.
//!
//! Most inodes have a descriptor, but a Guest may know more files than a process may have
//! descriptors. Those not used for long lose theirs, and are found again by directory and name; the
//! [`Identity`] tells whether it is still the same file. If it is not, the Guest hears ESTALE and
//! looks the name up again.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{Attr, ROOT_ID};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::host::{self, Found, Identity};

/// The most inodes that a Guest may know at a time. This bounds the memory that they take.
const MAX: usize = 1 << 21;
/// The most directories that a file may be deep.
const DEPTH_MAX: usize = 4096;
/// Inode numbers of the Host's that fit beside the number of a file system.
const HOST_NUMBER_BITS: u32 = 48;

/// A file that the Guest knows.
struct Inode {
    identity: Identity,
    file_type: FileType,
    lookups: u64,
    /// Where it was when it was last seen: a directory, and the name there. None once its name is
    /// removed.
    place: Option<(u64, CString)>,
    descriptor: Option<Arc<OwnedFd>>,
    /// The time of its last use.
    used: u64,
    /// Shown as an empty directory.
    closed: bool,
    /// Size and time of the content that the Guest was last told of.
    content: Option<Content>,
}

/// The size and mtime of a file, which change when its content does.
type Content = (u64, u64, u32);

fn content(attributes: &Attr) -> Content {
    (attributes.size, attributes.mtime, attributes.mtimensec)
}

/// All inodes of a share.
pub struct Inodes {
    inodes: HashMap<u64, Inode>,
    numbers: HashMap<Identity, u64>,
    /// The file systems, in the order in which they were seen; the shared directory's is the first.
    devices: Vec<u64>,
    next: u64,
    clock: u64,
    open: usize,
    max_open: usize,
}

impl Inodes {
    /// The inodes of a share which is rooted at `root`, with at most `max_open` descriptors.
    pub fn new(root: OwnedFd, max_open: usize) -> io::Result<Self> {
        let found = host::stat(root.as_fd())?;
        let inode = Inode {
            identity: found.identity,
            file_type: found.file_type(),
            lookups: 1,
            place: None,
            descriptor: Some(Arc::new(root)),
            used: 0,
            closed: false,
            content: None,
        };
        Ok(Self {
            inodes: [(ROOT_ID, inode)].into(),
            numbers: [(found.identity, ROOT_ID)].into(),
            devices: vec![found.identity.device],
            next: ROOT_ID + 1,
            clock: 0,
            open: 1,
            max_open: max_open.max(8),
        })
    }

    /// The Guest knows nothing any more but the root.
    pub fn clear(&mut self) {
        self.inodes.retain(|&number, _| number == ROOT_ID);
        self.numbers.retain(|_, &mut number| number == ROOT_ID);
        self.open = 1;
    }

    fn get(&self, number: u64) -> io::Result<&Inode> {
        Ok(self.inodes.get(&number).ok_or(Errno::STALE)?)
    }

    /// The type of an inode.
    pub fn file_type(&self, number: u64) -> io::Result<FileType> {
        Ok(self.get(number)?.file_type)
    }

    /// Is it shown as an empty directory?
    pub fn is_closed(&self, number: u64) -> io::Result<bool> {
        Ok(self.get(number)?.closed)
    }

    /// A descriptor for an inode, of the kind that [`host::find`] gives.
    pub fn descriptor(&mut self, number: u64) -> io::Result<Arc<OwnedFd>> {
        // Upwards to the first directory that has one.
        let mut way = Vec::new();
        let mut at = number;
        let mut descriptor = loop {
            let inode = self.get(at)?;
            if let Some(descriptor) = &inode.descriptor {
                break descriptor.clone();
            }
            // What moved on the Host may seem to be in itself.
            if way.len() == DEPTH_MAX {
                return Err(Errno::STALE.into());
            }
            way.push(at);
            at = inode.place.as_ref().ok_or(Errno::STALE)?.0;
        };
        self.touch(at);
        // And down again.
        while let Some(at) = way.pop() {
            let inode = self.get(at)?;
            let (_, name) = inode.place.as_ref().ok_or(Errno::STALE)?;
            let next = match host::find(descriptor.as_fd(), name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Errno::STALE.into()),
                result => result,
            }?;
            if host::stat(next.as_fd())?.identity != inode.identity {
                return Err(Errno::STALE.into());
            }
            descriptor = self.keep(at, next)?;
        }
        Ok(descriptor)
    }

    /// The same for a directory, in which something may be looked up.
    pub fn directory(&mut self, number: u64) -> io::Result<Arc<OwnedFd>> {
        let inode = self.get(number)?;
        if inode.file_type != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        if inode.closed {
            return Err(Errno::NOENT.into());
        }
        self.descriptor(number)
    }

    /// The Guest looks up `name` in directory `parent`. Returns its number and attributes.
    pub fn look_up(&mut self, parent: u64, name: &CStr) -> io::Result<(u64, Attr)> {
        let directory = self.directory(parent)?;
        let descriptor = host::find(directory.as_fd(), name)?;
        let found = host::stat(descriptor.as_fd())?;
        let crossed = found.identity.mount != self.get(parent)?.identity.mount;
        let closed = crossed && host::is_kernels_own(descriptor.as_fd())?;
        let number = self.number(&found, Some((parent, name)))?;
        let inode = self.inodes.get_mut(&number).ok_or(Errno::STALE)?;
        inode.closed = closed;
        inode.lookups = inode.lookups.saturating_add(1);
        if inode.descriptor.is_none() {
            // Without one it will be looked for when it is needed.
            let _ = self.keep(number, descriptor);
        }
        Ok((number, self.tell(number, found.attributes)))
    }

    /// The same for a name that was read from `parent` just now, without the cost of a descriptor.
    pub fn look_up_entry(&mut self, parent: u64, name: &CStr) -> io::Result<(u64, Attr)> {
        let directory = self.directory(parent)?;
        let found = host::stat_at(directory.as_fd(), name)?;
        if found.identity.mount != self.get(parent)?.identity.mount {
            return self.look_up(parent, name);
        }
        let number = self.number(&found, Some((parent, name)))?;
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.lookups = inode.lookups.saturating_add(1);
        }
        Ok((number, self.tell(number, found.attributes)))
    }

    /// The same for a file that has no name, of which `descriptor` is one.
    pub fn adopt(&mut self, descriptor: OwnedFd) -> io::Result<(u64, Attr)> {
        let found = host::stat(descriptor.as_fd())?;
        let number = self.number(&found, None)?;
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.lookups = inode.lookups.saturating_add(1);
        }
        if let Err(error) = self.keep(number, descriptor) {
            // It could not be found again.
            self.forget(number, 1);
            return Err(error);
        }
        Ok((number, self.tell(number, found.attributes)))
    }

    /// For each file system that the Guest knows files of, the numbers of some of them that can be
    /// opened, if the user may.
    pub fn some_of_each_file_system(&self) -> Vec<Vec<u64>> {
        const SOME: usize = 16;
        // The root's descriptor is always there.
        let mut some: HashMap<_, _> = [(self.devices[0], vec![ROOT_ID])].into();
        for (&number, inode) in &self.inodes {
            let opens = matches!(inode.file_type, FileType::RegularFile | FileType::Directory);
            let known: &mut Vec<_> = some.entry(inode.identity.device).or_default();
            if opens && !inode.closed && known.len() < SOME {
                known.push(number);
            }
        }
        some.into_values().collect()
    }

    /// The Guest forgets that it has looked an inode up so many times.
    pub fn forget(&mut self, number: u64, count: u64) {
        if number == ROOT_ID {
            return;
        }
        let Some(inode) = self.inodes.get_mut(&number) else {
            return;
        };
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups == 0 {
            self.open -= usize::from(inode.descriptor.is_some());
            self.numbers.remove(&inode.identity);
            self.inodes.remove(&number);
        }
    }

    /// The Guest knows an inode once more, without having looked it up by a name.
    pub fn know_again(&mut self, number: u64) -> io::Result<()> {
        let inode = self.inodes.get_mut(&number).ok_or(Errno::STALE)?;
        inode.lookups = inode.lookups.saturating_add(1);
        Ok(())
    }

    /// The number of times that an inode has to be forgotten until it is.
    pub fn known(&self, number: u64) -> u64 {
        self.get(number).map_or(0, |inode| inode.lookups)
    }

    /// The directory and the name by which an inode was found last.
    pub fn place(&self, number: u64) -> Option<(u64, CString)> {
        self.get(number).ok()?.place.clone()
    }

    /// These are the attributes that the Guest is told next. Returns them with the inode number
    /// that the Guest is to see.
    pub fn tell(&mut self, number: u64, mut attributes: Attr) -> Attr {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.content = Some(content(&attributes));
            let device = inode.identity.device;
            attributes.ino = self.number_to_show(device, attributes.ino);
        }
        attributes
    }

    /// Is the content still what the Guest was last told, `attributes` being those of now? From now
    /// on it counts as told.
    pub fn is_unchanged(&mut self, number: u64, attributes: &Attr) -> bool {
        let now = Some(content(attributes));
        self.inodes
            .get_mut(&number)
            .is_some_and(|inode| std::mem::replace(&mut inode.content, now) == now)
    }

    /// The inode number that the Guest sees, for one of the Host's on the file system of an inode.
    pub fn shown_number(&mut self, number: u64, host_number: u64) -> io::Result<u64> {
        let device = self.get(number)?.identity.device;
        Ok(self.number_to_show(device, host_number))
    }

    /// `name` in `parent` is about to be removed, or replaced. If the Guest knows the file it must
    /// go on to reach it.
    pub fn removing(&mut self, parent: u64, name: &CStr) -> Option<u64> {
        let directory = self.directory(parent).ok()?;
        let found = host::stat_at(directory.as_fd(), name).ok()?;
        let number = *self.numbers.get(&found.identity)?;
        if self.inodes.get(&number)?.descriptor.is_none() {
            let descriptor = host::find(directory.as_fd(), name).ok()?;
            let same = host::stat(descriptor.as_fd()).ok()?.identity == found.identity;
            if same {
                self.keep(number, descriptor).ok()?;
            }
        }
        Some(number)
    }

    /// `name` in `parent` is no longer the place of inode `number`.
    pub fn removed(&mut self, number: u64, parent: u64, name: &CStr) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            if is_place(inode, parent, name) {
                inode.place = None;
            }
        }
    }

    /// Something was moved to `name` in `parent`.
    pub fn moved_to(&mut self, parent: u64, name: &CStr) {
        let found = self
            .directory(parent)
            .and_then(|directory| host::stat_at(directory.as_fd(), name));
        let Ok(found) = found else { return };
        let number = self.numbers.get(&found.identity);
        if let Some(inode) = number.and_then(|number| self.inodes.get_mut(number)) {
            inode.place = Some((parent, name.into()));
        }
    }

    /// The number of the file that was found at `place`, or without a name: an old one, or a new one.
    fn number(&mut self, found: &Found, place: Option<(u64, &CStr)>) -> io::Result<u64> {
        if let Some(&number) = self.numbers.get(&found.identity) {
            let inode = self.inodes.get_mut(&number).ok_or(Errno::STALE)?;
            if let Some((parent, name)) = place {
                // The root has no place: its descriptor never goes.
                if number != ROOT_ID && !is_place(inode, parent, name) {
                    inode.place = Some((parent, name.into()));
                }
            }
            return Ok(number);
        }
        if self.inodes.len() >= MAX {
            return Err(Errno::NFILE.into());
        }
        let number = self.next;
        self.next += 1;
        let inode = Inode {
            identity: found.identity,
            file_type: found.file_type(),
            lookups: 0,
            place: place.map(|(parent, name)| (parent, name.into())),
            descriptor: None,
            used: self.clock,
            closed: false,
            content: None,
        };
        self.inodes.insert(number, inode);
        self.numbers.insert(found.identity, number);
        Ok(number)
    }

    /// Inode numbers of the Host's are unique on one file system. The Guest sees one file system,
    /// whatever is mounted within the share, so the others' numbers get a mark.
    fn number_to_show(&mut self, device: u64, host_number: u64) -> u64 {
        let index = self.devices.iter().position(|&known| known == device);
        let index = index.unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        host_number ^ ((index as u64) << HOST_NUMBER_BITS)
    }

    fn touch(&mut self, number: u64) {
        self.clock += 1;
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.used = self.clock;
        }
    }

    /// Gives an inode its descriptor, for as long as there are not too many.
    fn keep(&mut self, number: u64, descriptor: OwnedFd) -> io::Result<Arc<OwnedFd>> {
        let descriptor = Arc::new(descriptor);
        if self.open >= self.max_open {
            self.close_oldest()?;
        }
        self.touch(number);
        if let Some(inode) = self.inodes.get_mut(&number) {
            let before = inode.descriptor.replace(descriptor.clone());
            self.open += usize::from(before.is_none());
        }
        Ok(descriptor)
    }

    /// Closes the descriptors of the half that was not used for longest. What has no place could
    /// not be found again.
    fn close_oldest(&mut self) -> io::Result<()> {
        let mut candidates: Vec<_> = self
            .inodes
            .iter()
            .filter(|(_, inode)| inode.descriptor.is_some() && inode.place.is_some())
            .map(|(&number, inode)| (inode.used, number))
            .collect();
        let count = candidates.len().div_ceil(2);
        if count == 0 {
            return Err(Errno::NFILE.into());
        }
        candidates.select_nth_unstable(count - 1);
        for &(_, number) in &candidates[..count] {
            if let Some(inode) = self.inodes.get_mut(&number) {
                inode.descriptor = None;
                self.open -= 1;
            }
        }
        Ok(())
    }
}

fn is_place(inode: &Inode, parent: u64, name: &CStr) -> bool {
    inode
        .place
        .as_ref()
        .is_some_and(|(directory, known)| *directory == parent && known.as_c_str() == name)
}
