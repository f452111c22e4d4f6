// SPDX-License-Identifier: GPL-2.0
//! The network device (section 5.1 of the specification): a queue of empty buffers for what comes
//! from the peer at the other end of its [`Cable`], and one of frames for it.
//!
//! Nothing is thrown away for want of room: without buffers, frames wait with the peer; when the
//! peer is full, the driver's frames wait in their queue. A frame is copied once each way, so what
//! the Guest does to its buffers meanwhile is its own affair.

pub mod cable;
pub mod options;
pub mod passt;
pub mod peer;
pub mod stream;
pub mod tap;

use std::io::{self, Read, Write};
use std::mem;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT, Writer};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{Device, Fault, Kicked, Served, Source};
use crate::devices::net::cable::Cable;
use crate::devices::net::peer::{Mac, HEADER_SIZE};
use crate::memory::dma::Dma;

/// The queue of empty buffers.
pub const RECEIVE: usize = 0;
/// The queue of frames for the peer.
pub const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// So many frames in one direction, then it is the turn of the other.
const BURST: usize = 64;
/// The offset at which a header says how many buffers its frame fills.
const NUM_BUFFERS: usize = 10;

/// The device.
pub struct Net {
    mac: Mac,
    cable: Cable,
    /// The driver was last told that the link is up.
    told_up: bool,
    /// A frame may fill several buffers.
    mergeable: bool,
    /// There was more to receive than a burst.
    more: bool,
}

/// The outcome of putting a frame into buffers.
enum Placed {
    /// The driver has it.
    Used,
    /// It must wait for buffers, of which the driver will tell.
    NoBuffers,
    /// No buffers of this driver's can hold it.
    TooLong,
}

impl Net {
    /// A device with this address, and this cable. Where that is cut, the driver sees the link go down, and goes on.
    pub fn new(mac: Mac, cable: Cable) -> Self {
        Self {
            mac,
            cable,
            told_up: true,
            mergeable: false,
            more: false,
        }
    }

    /// Moves frames from the peer into buffers.
    fn receive(&mut self, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut served = Served {
            used: false,
            // It may be that there is room again.
            then: u64::from(self.cable.is_waiting()) << TRANSMIT,
        };
        for _ in 0..BURST {
            let Some((header, frame)) = self.cable.receive() else {
                return Ok(served);
            };
            match place(header, frame, queue, memory, self.mergeable)? {
                Placed::Used => served.used = true,
                Placed::NoBuffers => return Ok(served),
                Placed::TooLong => {}
            }
            self.cable.received();
        }
        self.more = true;
        served.then |= 1 << TRANSMIT;
        Ok(served)
    }

    /// Gives the driver's frames to the peer.
    fn transmit(&mut self, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut served = Served {
            used: false,
            then: u64::from(mem::take(&mut self.more)) << RECEIVE,
        };
        for _ in 0..BURST {
            if !self.cable.has_room() {
                return Ok(served);
            }
            let chain = loop {
                queue.disable_notification(memory)?;
                if let Some(chain) = queue.iter(memory)?.next() {
                    break chain;
                }
                if !queue.enable_notification(memory)? {
                    return Ok(served);
                }
            };
            let head = chain.head_index();
            let mut reader = chain.reader(memory)?;
            let length = reader.available_bytes();
            let Some(packet) = self.cable.packet().get_mut(..length.max(HEADER_SIZE)) else {
                return Err(Fault::LongFrame(length - HEADER_SIZE));
            };
            // Less than a header cannot be meant.
            reader.read_exact(packet).map_err(Fault::Buffer)?;
            self.cable.put(length);
            queue.add_used(memory, head, 0)?;
            served.used = true;
        }
        served.then |= (1 << RECEIVE) | (1 << TRANSMIT);
        Ok(served)
    }
}

/// Puts a frame into buffers of `queue`: one, or as many as it takes if they are `mergeable`.
fn place(
    mut header: [u8; HEADER_SIZE],
    frame: &[u8],
    queue: &mut Queue,
    memory: &Dma,
    mergeable: bool,
) -> Result<Placed, Fault> {
    let size = HEADER_SIZE + frame.len();
    let first = queue.next_avail();
    let mut buffers = Vec::with_capacity(1);
    let mut room = 0;
    queue.disable_notification(memory)?;
    while room < size {
        if buffers.len() == if mergeable { queue.size().into() } else { 1 } {
            queue.set_next_avail(first);
            return Ok(Placed::TooLong);
        }
        let Some(chain) = queue.iter(memory)?.next() else {
            // From here on, behind the buffers that do not suffice, the driver tells of new ones.
            if queue.enable_notification(memory)? {
                queue.disable_notification(memory)?;
                continue;
            }
            queue.set_next_avail(first);
            return Ok(Placed::NoBuffers);
        };
        let head = chain.head_index();
        let writer = chain.writer(memory)?;
        room += writer.available_bytes();
        buffers.push((head, writer));
    }
    header[NUM_BUFFERS..].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
    let mut rest = [&header[..], frame];
    let filled: Vec<_> = buffers
        .into_iter()
        .map(|(head, writer)| Ok((head, fill(writer, &mut rest)?)))
        .collect::<io::Result<_>>()
        .map_err(Fault::Buffer)?;
    add_used(queue, memory, &filled)?;
    Ok(Placed::Used)
}

/// Writes as much of `rest` as there is room for, and takes it away there. Returns how much.
fn fill(mut writer: Writer, rest: &mut [&[u8]; 2]) -> io::Result<u32> {
    for part in rest {
        let (now, later) = part.split_at(part.len().min(writer.available_bytes()));
        writer.write_all(now)?;
        *part = later;
    }
    Ok(writer.bytes_written() as u32)
}

/// Uses these buffers, as head and length, all at once: when a driver finds the first buffer of a
/// frame, it expects the others there.
fn add_used(queue: &mut Queue, memory: &Dma, buffers: &[(u16, u32)]) -> Result<(), Fault> {
    let Some(((last, length), others)) = buffers.split_last() else {
        return Ok(());
    };
    let ring = GuestAddress(queue.used_ring());
    for &(head, length) in others {
        let slot = u64::from(queue.next_used() % queue.size());
        // Behind flags and index, 8 bytes each: struct virtq_used_elem.
        let place = ring.unchecked_add(4 + 8 * slot);
        memory
            .write_obj([u32::from(head).to_le(), length.to_le()], place)
            .map_err(virtio_queue::Error::GuestMemory)?;
        queue.set_next_used(queue.next_used().wrapping_add(1));
    }
    // This tells the driver of all.
    Ok(queue.add_used(memory, *last, *length)?)
}

impl Device for Net {
    fn name(&self) -> &str {
        "net"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_NET_F_MAC)
            | (1 << VIRTIO_NET_F_STATUS)
            | (1 << VIRTIO_NET_F_MTU)
            | (1 << VIRTIO_NET_F_MRG_RXBUF)
            | self.cable.offloads()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn kicked(&self, _: usize) -> Kicked {
        Kicked::Thread
    }

    /// `struct virtio_net_config`: address, status, number of queue pairs, MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.0);
        let status = if self.cable.is_up() {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        } as u16;
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&self.cable.mtu().to_le_bytes());
        super::copy_config(&config, offset, data);
    }

    fn start(&mut self, features: u64) {
        self.mergeable = features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        self.cable.agree(features & self.cable.offloads());
    }

    fn source(&self) -> Option<Source> {
        Some(Source {
            fd: self.cable.readiness(),
            queue: RECEIVE,
        })
    }

    fn config_changed(&mut self) -> bool {
        mem::replace(&mut self.told_up, self.cable.is_up()) != self.cable.is_up()
    }

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        match index {
            RECEIVE => self.receive(queue, memory),
            _ => self.transmit(queue, memory),
        }
    }
}

#[cfg(test)]
mod tests;
