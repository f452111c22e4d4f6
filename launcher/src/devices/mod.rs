// SPDX-License-Identifier: GPL-2.0
//! virtio devices, as the specification (version 1.3) describes them.
//!
//! A [`Device`] knows what it does with buffers; [`virtio::Virtio`] owns its virtqueues, which the
//! Guest's driver sets up through a [`Window`]. The Guest is hostile: rings and buffers hold
//! anything, and change while they are read.
//!
//! Another device is a folder here, with its [`Device`]; a variant of `plan::Make`, which says when a run has
//! one; and the line of `machine::make` that makes it.

pub mod balloon;
pub mod blk;
pub mod bytes;
pub mod console;
pub mod fs;
mod interrupt;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod rng;
pub mod slot;
#[cfg(any(test, fuzzing))]
pub mod testing;
pub mod virtio;
pub mod vsock;

use std::os::fd::RawFd;

use virtio_queue::{Queue, QueueT};

use crate::memory::dma::Dma;

pub use interrupt::{Cause, Interrupt};

/// A driver broke the rules of its device, which will do nothing more until it is reset.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Fault {
    #[error("queue {0} is not where a queue can be")]
    BadQueue(usize),
    #[error("{0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("a buffer is too small, or outside RAM: {0}")]
    Buffer(#[source] std::io::Error),
    #[error("a frame of {0} bytes is too long")]
    LongFrame(usize),
    #[error("a packet of {0} bytes is too long")]
    LongPacket(u32),
    #[error("the host cannot: {0}")]
    Host(#[source] std::io::Error),
    #[error("more than {0} answers wait for buffers")]
    Flood(usize),
    #[error("a request makes no sense: {0}")]
    Request(&'static str),
    #[error("the disk can no longer be worked on: {0}")]
    Disk(#[source] std::io::Error),
}

/// The outcome of serving a queue.
#[derive(Default)]
pub struct Served {
    /// Buffers were used.
    pub used: bool,
    /// A set of other queues, bit n for queue n, for which there may be something to do now.
    pub then: u64,
}

/// Serves `queue` until it stays quiet: buffers that the driver adds in between are not announced.
///
/// Each `pass` serves what is there, and tells whether further buffers would be of use.
fn until_quiet(
    queue: &mut Queue,
    memory: &Dma,
    mut pass: impl FnMut(&mut Queue) -> Result<(Served, bool), Fault>,
) -> Result<Served, Fault> {
    let mut all = Served::default();
    loop {
        queue.disable_notification(memory)?;
        let (served, wants_more) = pass(queue)?;
        all.used |= served.used;
        all.then |= served.then;
        if !queue.enable_notification(memory)? || !wants_more {
            return Ok(all);
        }
    }
}

/// The event by which a device hears from our side that there is something to do.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Becomes readable. Only the change is noticed, so the device reads until nothing is left, or
    /// remembers that there is more.
    pub fd: RawFd,
    /// The queue that is then to be served.
    pub queue: usize,
}

/// Who serves a queue that its driver kicks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kicked {
    /// The device's thread: the vCPU goes on at once.
    Thread,
    /// The vCPU, and nobody else. For a driver that spins until its buffers are used.
    Vcpu,
    /// The vCPU what takes no waiting, by [`Device::serve_first`], and the device's thread the rest. For requests that
    /// mostly take less time than it takes to wake a thread, and to be woken by it.
    VcpuFirst,
}

/// The behaviour of a virtio device, whatever the transport.
///
/// Each device is served by a thread of its own, so [`Device::serve`] may wait for a disk or a peer.
/// Calls never overlap: the transport holds a lock over each.
pub trait Device: Send {
    /// The device's name in messages.
    fn name(&self) -> &str;
    /// The device type, section 5 of the specification.
    fn device_type(&self) -> u32;
    /// The device type's own features, bits 0 to 23.
    fn features(&self) -> u64;
    /// The largest size of each queue, powers of 2. At most 64 queues.
    fn queue_sizes(&self) -> &[u16];
    /// Who serves queue `index` when the driver kicks it.
    fn kicked(&self, index: usize) -> Kicked;
    /// Fills `data` from the configuration space at `offset`. What lies beyond its end is 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver is ready, after a reset. `features` are those of [`Device::features`] that were
    /// agreed on.
    fn start(&mut self, features: u64);
    /// The driver resets the device: when this returns, nothing that was asked for before touches
    /// the Guest's memory any more.
    fn reset(&mut self) {}
    /// Our side's descriptor, if the device has one. It stays the same and open as long as the
    /// device lives; for a changing set of descriptors it is an epoll of the device's own.
    fn source(&self) -> Option<Source> {
        None
    }
    /// Has the configuration space changed since the last call? Asked after each [`Device::serve`].
    fn config_changed(&mut self) -> bool {
        false
    }
    /// There may be something to do for queue `index`, which is set up: the driver said so, or our
    /// side of the device.
    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault>;
    /// Serves queue `index`, of [`Kicked::VcpuFirst`], as far as nothing has to wait, and not for long: the Guest
    /// stands still meanwhile. What is left is in [`Served::then`], this queue included.
    fn serve_first(
        &mut self,
        index: usize,
        _queue: &mut Queue,
        _memory: &Dma,
    ) -> Result<Served, Fault> {
        Ok(Served {
            used: false,
            then: 1 << index,
        })
    }
}

/// The registers of a device, in the Guest's physical memory: what a transport is.
pub trait Window: Send + Sync {
    /// The driver loads from `offset`.
    fn load(&self, offset: u64, data: &mut [u8]);
    /// The driver stores to `offset`. No device here lets it change its configuration space.
    fn store(&self, offset: u64, data: &[u8]);
}

/// Fills `data` with what is at `offset` of a configuration space; beyond its end is 0.
fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    for (byte, offset) in data.iter_mut().zip(offset..) {
        let index = usize::try_from(offset).ok();
        *byte = index
            .and_then(|index| config.get(index))
            .copied()
            .unwrap_or(0);
    }
}
