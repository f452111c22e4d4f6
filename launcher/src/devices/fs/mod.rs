// SPDX-License-Identifier: GPL-2.0
//! File systems (section 5.11 of the specification): a Guest mounts a directory of the Host by the
//! device's tag. The Guest is not trusted.
//!
//! What travels in the queues is FUSE. A chain holds one request and room for its answer; how they
//! are laid out is fuse-backend-rs's matter, and what they do is the matter of some [`Files`]:
//! [`server`]'s, or [`cow`]'s for a private root.
//!
//! [`share`] is what the user asks for · [`server`] answers the requests · [`inodes`]
//! knows which file a number of the Guest's stands for · [`handles`] has what is open, [`locks`] what
//! is locked · [`newer`] are requests that the library does not know · [`host`] is the system calls:
//! each takes a descriptor and at most one name, so there is no path that could lead out of the
//! directory · [`attributes`] changes modes, owners and the like, in a process of its own. [`cow`]
//! lies over all that for a root in which the Guest may change everything, and nothing of the Host's.

pub mod attributes;
pub mod cow;
pub mod handles;
pub mod host;
pub mod inodes;
pub mod links;
pub mod locks;
pub mod newer;
pub mod server;
pub mod share;
mod statvfs;

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use nix::libc;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{until_quiet, Device, Fault, Kicked, Served, Source};
use crate::devices::fs::newer::{Answer, Files};
use crate::memory::dma::Dma;

/// The longest tag, in bytes: the field of the device's configuration space.
pub const TAG_MAX: usize = 36;

/// Requests that must not wait behind others: the driver uses it for FORGET and INTERRUPT.
const HIGH_PRIORITY: u16 = 128;
/// Linux makes requests as large as the queue: 508 pages, of which FUSE uses 256.
const REQUESTS: u16 = 512;
/// The index of the queue for those.
const REQUEST_QUEUE: usize = 1;

/// The device.
pub struct Fs<F: Files> {
    name: String,
    config: [u8; TAG_MAX + 4],
    server: Server<Arc<F>>,
    files: Arc<F>,
    /// The requests that wait for a lock, by the wait's number.
    waiting: HashMap<u64, Waiting>,
}

/// A request that is answered later, with no more than a header.
struct Waiting {
    head: u16,
    unique: u64,
    /// The place for the answer; None if there is no room for one.
    room: Option<GuestAddress>,
}

impl<F: Files> Fs<F> {
    /// A device by which a Guest mounts `tag`, and sees `files`.
    ///
    /// # Panics
    ///
    /// If the tag is longer than [`TAG_MAX`] bytes.
    pub fn new(tag: &str, files: F) -> Self {
        // `struct virtio_fs_config`: the tag, and the number of request queues.
        let mut config = [0; TAG_MAX + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_MAX..].copy_from_slice(&1u32.to_le_bytes());
        let files = Arc::new(files);
        Self {
            name: format!("share {tag}"),
            config,
            server: Server::new(files.clone()),
            files,
            waiting: HashMap::new(),
        }
    }

    /// Answers the request in `chain`. Returns the length of the answer, or None if it comes later, as one
    /// `may_wait` for a lock.
    fn answer(
        &mut self,
        chain: DescriptorChain<&Dma>,
        memory: &Dma,
        may_wait: bool,
    ) -> Result<Option<usize>, Fault> {
        let head = chain.head_index();
        let room = chain.clone().writable().next();
        let room = room.filter(|room| room.len() as usize >= size_of::<OutHeader>());
        let room = room.map(|room| room.addr());
        let bad = |error| Fault::Buffer(std::io::Error::other(error));
        let reader = Reader::from_descriptor_chain(memory, chain.clone()).map_err(bad)?;
        let mut writer = VirtioFsWriter::new(memory, chain).map_err(bad)?;
        // What makes no sense has no answer. To wait for one is the driver's own problem.
        let mut body = reader.clone();
        let Ok(header) = body.read_obj::<InHeader>() else {
            return Ok(Some(0));
        };
        match self.files.answer_newer(&header, body, may_wait) {
            Answer::Now(answer) => Ok(write(&mut writer, header.unique, answer).ok().or(Some(0))),
            Answer::Never => Ok(Some(0)),
            Answer::Later(number) => {
                let unique = header.unique;
                self.waiting.insert(number, Waiting { head, unique, room });
                Ok(None)
            }
            Answer::Unknown => {
                let writer = Writer::VirtioFs(writer);
                let answered = self.server.handle_message(reader, writer, None, None);
                Ok(answered.ok().or(Some(0)))
            }
        }
    }

    /// Answers those that have waited for locks.
    fn finish(&mut self, queue: &mut Queue, memory: &Dma) -> Result<bool, Fault> {
        let mut used = false;
        for (number, result) in self.files.locked() {
            let Some(Waiting { head, unique, room }) = self.waiting.remove(&number) else {
                continue;
            };
            let header = answer_header(unique, &result.map(|()| Vec::new()));
            let length = match room {
                Some(room) => {
                    let outside = |error| Fault::Buffer(io::Error::other(error));
                    memory
                        .write_slice(header.as_slice(), room)
                        .map_err(outside)?;
                    header.len
                }
                None => 0,
            };
            queue.add_used(memory, head, length)?;
            used = true;
        }
        Ok(used)
    }
}

/// The beginning of an answer, or all of an error.
fn answer_header(unique: u64, answer: &io::Result<Vec<u8>>) -> OutHeader {
    let (error, length) = match answer {
        Ok(content) => (0, content.len()),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), 0),
    };
    OutHeader {
        len: (size_of::<OutHeader>() + length) as u32,
        error,
        unique,
    }
}

/// Writes an answer, or the error. Returns its length.
fn write(
    writer: &mut VirtioFsWriter<'_>,
    unique: u64,
    answer: io::Result<Vec<u8>>,
) -> io::Result<usize> {
    let header = answer_header(unique, &answer);
    writer.write_all(header.as_slice())?;
    writer.write_all(&answer.unwrap_or_default())?;
    Ok(header.len as usize)
}

impl<F: Files> Device for Fs<F> {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[HIGH_PRIORITY, REQUESTS]
    }

    fn kicked(&self, _: usize) -> Kicked {
        Kicked::Thread
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config, offset, data);
    }

    fn start(&mut self, _: u64) {}

    fn reset(&mut self) {
        self.files.destroy();
        self.waiting.clear();
    }

    fn source(&self) -> Option<Source> {
        Some(Source {
            fd: self.files.lock_event()?,
            queue: REQUEST_QUEUE,
        })
    }

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| {
            let may_wait = index == REQUEST_QUEUE;
            let mut used = may_wait && self.finish(queue, memory)?;
            while let Some(chain) = queue.iter(memory)?.next() {
                let head = chain.head_index();
                if let Some(length) = self.answer(chain, memory, may_wait)? {
                    queue.add_used(memory, head, length as u32)?;
                    used = true;
                }
            }
            Ok((Served { used, then: 0 }, true))
        })
    }
}

#[cfg(test)]
mod tests;
