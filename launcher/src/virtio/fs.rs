// SPDX-License-Identifier: GPL-2.0
//! File systems (section 5.11 of the specification): a Guest mounts a directory of the Host by the
//! device's tag.
//!
//! What travels in the queues is FUSE. A chain holds one request and room for its answer; how they
//! are laid out is fuse-backend-rs's matter, and what they do is [`FileServer`]'s.

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{until_quiet, Device, Fault, Served};
use crate::fs::server::FileServer;
use crate::fs::share::TAG_MAX;
use crate::memory::Memory;

/// Requests that must not wait behind others: the driver uses it for FORGET and INTERRUPT.
const HIGH_PRIORITY: u16 = 128;
/// Linux makes requests as large as the queue: 508 pages, of which FUSE uses 256.
const REQUESTS: u16 = 512;

/// The device.
pub struct Fs {
    name: String,
    config: [u8; TAG_MAX + 4],
    server: Server<std::sync::Arc<FileServer>>,
    files: std::sync::Arc<FileServer>,
}

impl Fs {
    /// A device by which a Guest mounts `tag`, and sees `files`.
    ///
    /// # Panics
    ///
    /// If the tag is longer than [`TAG_MAX`] bytes.
    pub fn new(tag: &str, files: FileServer) -> Self {
        // `struct virtio_fs_config`: the tag, and the number of request queues.
        let mut config = [0; TAG_MAX + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_MAX..].copy_from_slice(&1u32.to_le_bytes());
        let files = std::sync::Arc::new(files);
        Self {
            name: format!("share {tag}"),
            config,
            server: Server::new(files.clone()),
            files,
        }
    }

    /// Answers the request in `chain`. Returns the length of the answer.
    fn answer(&self, chain: DescriptorChain<&Memory>, memory: &Memory) -> Result<usize, Fault> {
        let bad = |error| Fault::Buffer(std::io::Error::other(error));
        let reader = Reader::from_descriptor_chain(memory, chain.clone()).map_err(bad)?;
        let writer = VirtioFsWriter::new(memory, chain).map_err(bad)?;
        // What makes no sense has no answer. To wait for one is the driver's own problem.
        Ok(self
            .server
            .handle_message(reader, Writer::VirtioFs(writer), None, None)
            .unwrap_or(0))
    }
}

impl Device for Fs {
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

    fn serves_at_once(&self, _: usize) -> bool {
        false
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config, offset, data);
    }

    fn start(&mut self, _: u64) {}

    fn reset(&mut self) {
        self.files.reset();
    }

    fn serve(&mut self, _: usize, queue: &mut Queue, memory: &Memory) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| {
            let mut used = false;
            while let Some(chain) = queue.iter(memory)?.next() {
                let head = chain.head_index();
                let length = self.answer(chain, memory)?;
                queue.add_used(memory, head, length as u32)?;
                used = true;
            }
            Ok((Served { used, then: 0 }, true))
        })
    }
}

#[cfg(test)]
mod tests;
