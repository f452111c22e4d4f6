// SPDX-License-Identifier: GPL-2.0
//! The backend of xen-blkfront: a disk for a kernel that has no driver for the PCI bus.
//!
//! The kernel grants a page, a ring of requests, and with each request the pages of its data. A thread of the disk's own
//! serves them one after the other, with what serves a disk of virtio's: [`crate::devices::blk::disk`]. Data goes between
//! the file and the kernel's pages; all else of a request is copied once, and then checked.
//!
//! Source: io/blkif.h of Xen, with the layout that it calls x86_64-abi.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vm_memory::GuestAddress;

use crate::devices::blk::disk::{Buffers, Disk, SECTOR};
use crate::memory::dma::Dma;
use crate::memory::grants::{Grants, Use};
use crate::memory::Memory;
use crate::report::messages::say;
use crate::xen::events::Events;
use crate::xen::link::{Backend, Kernel, Link, Served, Work};
use crate::xen::slots::Slots;
use crate::xen::store::Store;

/// Size of a request, and of a response.
const REQUEST: usize = 112;
const RESPONSE: usize = 16;

const READ: u8 = 0;
const WRITE: u8 = 1;
const FLUSH: u8 = 3;
const DISCARD: u8 = 5;

/// Pieces of a request, each in a page of its own.
const PIECES_MAX: usize = 11;
const SECTORS_OF_PAGE: u8 = 8;

/// Number of the first disk, /dev/xvda. Each has 16: itself, and its partitions.
const XVDA: u32 = 202 << 8;
const NUMBERS: u32 = 16;
/// Disks that there are numbers for.
pub const BLOCKS_MAX: usize = 16;
/// In the node "info": it is not written.
const READ_ONLY: u32 = 4;

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Done = 0,
    Failed = -1,
    Unsupported = -2,
}

/// A disk.
pub struct Block {
    served: Served<Medium, Slots<REQUEST>>,
    number: u32,
    memory: Memory,
    grants: Grants,
    events: Arc<Events>,
    /// The kernel has called, and whoever serves has not seen to it.
    called: Mutex<bool>,
    calls: Condvar,
}

/// What holds the data.
struct Medium {
    disk: Disk,
    /// A flush has failed: what it was for may be lost, which a later one must not hide.
    lost: bool,
}

impl Block {
    /// Disk `number`, below [`BLOCKS_MAX`], of a kernel with this memory and these grants, which hears by `events`.
    pub fn new(
        number: u32,
        disk: Disk,
        memory: Memory,
        grants: Grants,
        events: Arc<Events>,
    ) -> Self {
        let number = XVDA + number * NUMBERS;
        let link = Link::new("vbd", number, "ring-ref");
        Self {
            served: Served::new(link, Medium { disk, lost: false }),
            number,
            memory,
            grants,
            events,
            called: Mutex::new(false),
            calls: Condvar::new(),
        }
    }

    fn connect(&self, store: &Store) -> Option<Kernel<Slots<REQUEST>>> {
        let link = &self.served.link;
        // Without a word it is the native one, which is the same.
        let protocol = link.told(store, "protocol").unwrap_or("x86_64-abi");
        let grant = link.number(store, "ring-ref")?;
        let page = self.grants.page(grant, Use::Write).ok()?;
        let rings = Slots::new(self.memory.clone(), page);
        let port = link.number(store, "event-channel")?;
        (protocol == "x86_64-abi").then_some(Kernel { rings, port })
    }

    fn call(&self) {
        *self.called.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.calls.notify_one();
    }

    /// Serves a request; false: there was none.
    fn process_one(&self) -> bool {
        let mut work = self.served.work();
        let Work { device, kernel } = &mut *work;
        let Some(Kernel { rings, port }) = kernel else {
            return false;
        };
        let served = (|| {
            let Some(request) = rings.take()? else {
                return Ok(None);
            };
            let status = perform(&request, device, &self.memory, &self.grants);
            rings.answer(&response(&request, status))?;
            Ok(Some(rings.tell()?))
        })();
        match served {
            Ok(Some(wants_call)) => {
                if wants_call {
                    self.events.port(*port);
                }
                true
            }
            Ok(None) => false,
            Err(error) => {
                let error: crate::xen::ring::Broken = error;
                say(&format!(
                    "disk {} is not served any more: {error}",
                    device.disk.path().display()
                ));
                *kernel = None;
                false
            }
        }
    }
}

impl Backend for Block {
    fn announce(&self, store: &mut Store) {
        let work = self.served.work();
        let disk = &work.device.disk;
        let blocks = disk.blocks();
        let info = if disk.is_read_only() { READ_ONLY } else { 0 };
        let number = self.number.to_string();
        let backend = [
            ("sectors", disk.size() / SECTOR),
            ("sector-size", blocks.logical.into()),
            ("physical-sector-size", blocks.physical.into()),
            ("info", info.into()),
            ("feature-flush-cache", disk.can_flush().into()),
            ("feature-discard", disk.can_discard().into()),
            ("discard-granularity", blocks.logical.into()),
            ("feature-persistent", 0),
            ("max-ring-page-order", 0),
            ("multi-queue-max-queues", 1),
        ];
        let backend = backend.map(|(name, value)| (name, value.to_string()));
        let backend = backend.each_ref().map(|(name, value)| (*name, &value[..]));
        let frontend = [("virtual-device", &number[..]), ("device-type", "disk")];
        self.served.link.announce(store, &frontend, &backend);
    }

    fn follow(&self, store: &mut Store) -> bool {
        let connect = |store: &Store| self.connect(store);
        self.served.follow(store, connect, || self.call())
    }

    fn serve(&self, port: u32) {
        if self.served.may_hear(port) {
            self.call();
        }
    }

    fn serve_calls(&self) -> io::Result<()> {
        loop {
            let called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
            let called = self.calls.wait_while(called, |called| !*called);
            *called.unwrap_or_else(PoisonError::into_inner) = false;
            self.process();
        }
    }

    fn process(&self) {
        // In between, the kernel may leave.
        while self.process_one() {}
    }
}

fn response(request: &[u8; REQUEST], status: Status) -> [u8; RESPONSE] {
    let mut response = [0; RESPONSE];
    response[..8].copy_from_slice(&request[8..16]);
    response[8] = request[0];
    response[10..12].copy_from_slice(&(status as i16).to_le_bytes());
    response
}

/// Does what is asked for.
fn perform(
    request: &[u8; REQUEST],
    Medium { disk, lost }: &mut Medium,
    memory: &Memory,
    grants: &Grants,
) -> Status {
    let result = match request[0] {
        READ => buffers(request, disk, memory, grants, Use::Write)
            .and_then(|(into, offset)| disk.read(&into, offset)),
        WRITE if disk.is_read_only() => return Status::Failed,
        WRITE => buffers(request, disk, memory, grants, Use::Read)
            .and_then(|(from, offset)| disk.write(&from, offset, false)),
        FLUSH if disk.can_flush() && request[1] == 0 => {
            let flushed = disk.flush();
            *lost |= flushed.is_err();
            match *lost {
                true => return Status::Failed,
                false => flushed,
            }
        }
        DISCARD if disk.can_discard() => {
            let start = place(
                disk,
                number(request, 16),
                number(request, 24).checked_mul(SECTOR),
            );
            let range = start.map(|start| start..start + number(request, 24) * SECTOR);
            range.and_then(|range| disk.discard(range))
        }
        _ => return Status::Unsupported,
    };
    match result {
        Ok(()) => Status::Done,
        // What the blocks below cannot do after all.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
        Err(_) => Status::Failed,
    }
}

/// The data of a request that transfers some, and where on the disk it begins.
fn buffers(
    request: &[u8; REQUEST],
    disk: &Disk,
    memory: &Memory,
    grants: &Grants,
    how: Use,
) -> io::Result<(Buffers, u64)> {
    let count = usize::from(request[1]);
    if count == 0 || count > PIECES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut pieces = Vec::with_capacity(count);
    for piece in request[24..].chunks_exact(8).take(count) {
        let grant = u32::from_le_bytes(piece[..4].try_into().expect("4 bytes"));
        let (first, last) = (piece[4], piece[5]);
        if first > last || last >= SECTORS_OF_PAGE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let page = grants.page(grant, how).map_err(io::Error::other)?;
        let length = usize::from(last - first + 1) * SECTOR as usize;
        pieces.push((GuestAddress(page + u64::from(first) * SECTOR), length));
    }
    let buffers = Buffers::new(&Dma::from(memory.clone()), pieces).map_err(io::Error::other)?;
    let offset = place(disk, number(request, 16), Some(buffers.len() as u64))?;
    Ok((buffers, offset))
}

/// The offset of `sector`, if `length` bytes from there are blocks of the disk.
fn place(disk: &Disk, sector: u64, length: Option<u64>) -> io::Result<u64> {
    let block = u64::from(disk.blocks().logical);
    let place = sector
        .checked_mul(SECTOR)
        .zip(length)
        .filter(|&(offset, length)| {
            let end = offset.checked_add(length);
            end.is_some_and(|end| end <= disk.size()) && offset % block == 0 && length % block == 0
        });
    let (offset, _) = place.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(offset)
}

/// The 8 bytes at `at`, as a number.
fn number(request: &[u8; REQUEST], at: usize) -> u64 {
    u64::from_le_bytes(request[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests;
