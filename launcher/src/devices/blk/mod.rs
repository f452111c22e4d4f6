// SPDX-License-Identifier: GPL-2.0
//! A disk: the block device of section 5.2 of the specification.

mod request;
#[cfg(test)]
mod tests;

pub mod disk;

use std::io;

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{until_quiet, Device, Fault, Kicked, Served, Source};
use crate::devices::blk::disk::ring::{Operation, Ring};
use crate::devices::blk::disk::{Buffers, Disk, SECTOR};
use crate::memory::dma::Dma;
use request::{
    Limits, Piece, Request, Status, Task, MAX_CHAIN, MAX_RANGES, MAX_RANGE_SECTORS, QUEUE,
};

/// `struct virtio_blk_config`, up to and with the fields for WRITE_ZEROES.
const CONFIG_SIZE: usize = 60;

/// How many requests a vCPU serves at a kick before it leaves the others to the device's thread: then a driver has so
/// many at a time that the two had better work side by side.
const AT_ONCE: usize = 4;

/// The device.
pub struct Blk {
    name: String,
    disk: Disk,
    limits: Limits,
    config: [u8; CONFIG_SIZE],
    ring: Option<Ring<InFlight>>,
    /// The driver does not flush, so every write has to stay when it is done.
    stable: bool,
    /// A flush has failed: what it was for may be lost, which a later one must not hide.
    lost: bool,
}

/// A request that the ring works on.
pub struct InFlight {
    request: Pending,
    operation: Operation,
    offset: u64,
}

/// A request that is to be answered.
#[derive(Clone, Copy)]
struct Pending {
    head: u16,
    status: GuestAddress,
}

impl Blk {
    /// The depth that a ring has to have.
    pub const DEPTH: u16 = QUEUE;

    /// A device for `disk`. `ring`, for [`Disk::file`] and with room for [`Blk::DEPTH`], lets it
    /// work on many requests at a time.
    pub fn new(disk: Disk, ring: Option<Ring<InFlight>>) -> Self {
        Self {
            name: format!("disk {}", disk.path().display()),
            limits: Limits {
                size: disk.size(),
                read_only: disk.is_read_only(),
                can_flush: disk.can_flush(),
                can_discard: disk.can_discard(),
            },
            config: config(&disk),
            disk,
            ring,
            stable: false,
            lost: false,
        }
    }

    /// Takes the requests that are there, as far as there is room for them.
    fn begin(&mut self, queue: &mut Queue, memory: &Dma) -> Result<bool, Fault> {
        let mut used = false;
        while self.has_room() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let Request { task, status } = Request::take(chain, memory, &self.limits)?;
            let request = Pending { head, status };
            let (status, filled) = match task {
                Ok(task) => match self.perform(task, request, memory)? {
                    Some(done) => done,
                    None => continue,
                },
                Err(status) => (status, 0),
            };
            answer(request, status, filled, queue, memory)?;
            used = true;
        }
        if let Some(ring) = &mut self.ring {
            ring.submit().map_err(Fault::Disk)?;
        }
        Ok(used)
    }

    /// Performs `task`, and returns how it ended and how many bytes it has filled; or leaves it to
    /// the ring.
    fn perform(
        &mut self,
        task: Task,
        request: Pending,
        memory: &Dma,
    ) -> Result<Option<(Status, usize)>, Fault> {
        let (operation, buffers, offset) = match task {
            Task::Read(into, offset) => (Operation::Read, into, offset),
            Task::Write(from, offset) => {
                let stable = self.stable;
                (Operation::Write { stable }, from, offset)
            }
            Task::Flush => (Operation::Flush, Buffers::none(memory), 0),
            Task::Id(pieces) => return self.tell_id(pieces, memory).map(Some),
            Task::Discard(ranges) => {
                let mut ranges = ranges.into_iter();
                let result = ranges.try_for_each(|range| self.disk.discard(range));
                return Ok(Some((self.ended(result), 0)));
            }
            Task::Zero(ranges) => {
                let mut ranges = ranges.into_iter();
                let result = ranges.try_for_each(|(range, unmap)| self.disk.zero(range, unmap));
                return Ok(Some((self.ended(result), 0)));
            }
        };
        let transfers = operation != Operation::Flush;
        match &mut self.ring {
            Some(ring) if !(transfers && buffers.is_empty()) => {
                let in_flight = InFlight {
                    request,
                    operation,
                    offset,
                };
                ring.push(operation, buffers, offset, in_flight);
                Ok(None)
            }
            _ => {
                let result = self.transfer(operation, &buffers, offset);
                Ok(Some(self.outcome(operation, &buffers, result)))
            }
        }
    }

    /// Does a transfer that need not wait, and returns how it ended and how many bytes it has filled.
    fn try_now(&mut self, task: Task) -> Option<(Status, usize)> {
        match task {
            Task::Read(into, offset) if self.disk.read_now(&into, offset) => {
                Some((Status::Ok, into.len()))
            }
            Task::Write(from, offset) if !self.stable && self.disk.write_now(&from, offset) => {
                Some((Status::Ok, 0))
            }
            _ => None,
        }
    }

    /// Does it, however long it takes.
    fn transfer(&mut self, operation: Operation, buffers: &Buffers, offset: u64) -> io::Result<()> {
        match operation {
            Operation::Read => self.disk.read(buffers, offset),
            Operation::Write { stable } => self.disk.write(buffers, offset, stable),
            Operation::Flush => self.disk.flush(),
        }
    }

    /// The driver's answer about an operation.
    fn outcome(
        &mut self,
        operation: Operation,
        buffers: &Buffers,
        result: io::Result<()>,
    ) -> (Status, usize) {
        if operation == Operation::Flush {
            self.lost |= result.is_err();
            return (
                if self.lost {
                    Status::Failed
                } else {
                    Status::Ok
                },
                0,
            );
        }
        match result {
            Ok(()) if operation == Operation::Read => (Status::Ok, buffers.len()),
            Ok(()) => (Status::Ok, 0),
            Err(_) => (Status::Failed, 0),
        }
    }

    /// The result of a change that is not a transfer.
    fn ended(&mut self, result: io::Result<()>) -> Status {
        let flush = |()| match self.stable {
            true => self.disk.flush(),
            false => Ok(()),
        };
        match result.and_then(flush) {
            Ok(()) => Status::Ok,
            // What the blocks below cannot do after all.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
            Err(_) => Status::Failed,
        }
    }

    /// GET_ID: the name of the file, as far as it fits.
    fn tell_id(&self, pieces: Vec<Piece>, memory: &Dma) -> Result<(Status, usize), Fault> {
        let name = self.disk.path().file_name().unwrap_or_default();
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(name.as_encoded_bytes()) {
            *to = *from;
        }
        let mut left = &id[..];
        for (gpa, length) in pieces {
            let (here, rest) = left.split_at(length.min(left.len()));
            memory.write_slice(here, gpa).map_err(request::outside)?;
            left = rest;
        }
        Ok((Status::Ok, id.len() - left.len()))
    }

    /// Answers the requests that the ring is done with.
    fn finish(&mut self, queue: &mut Queue, memory: &Dma) -> Result<bool, Fault> {
        let mut used = false;
        while let Some((in_flight, buffers, result)) = self.ring.as_mut().and_then(Ring::next) {
            let InFlight {
                request,
                operation,
                offset,
            } = in_flight;
            let result = match result {
                Ok(count) if count < buffers.len() => {
                    // It got stuck half-way, as at the end of a file that has shrunk.
                    let rest = buffers.part(count..buffers.len());
                    self.transfer(operation, &rest, offset + count as u64)
                }
                result => result.map(drop),
            };
            let (status, filled) = self.outcome(operation, &buffers, result);
            answer(request, status, filled, queue, memory)?;
            used = true;
        }
        Ok(used)
    }

    fn has_room(&self) -> bool {
        self.ring.as_ref().is_none_or(Ring::has_room)
    }
}

/// Gives a request back, with its status behind the `filled` bytes.
fn answer(
    request: Pending,
    status: Status,
    filled: usize,
    queue: &mut Queue,
    memory: &Dma,
) -> Result<(), Fault> {
    let Pending { head, status: gpa } = request;
    memory
        .write_obj(status as u8, gpa)
        .map_err(request::outside)?;
    Ok(queue.add_used(memory, head, filled as u32 + 1)?)
}

/// The configuration space. What belongs to a feature that is not offered stays 0.
fn config(disk: &Disk) -> [u8; CONFIG_SIZE] {
    let mut config = [0; CONFIG_SIZE];
    let mut put = |at: usize, bytes: &[u8]| config[at..][..bytes.len()].copy_from_slice(bytes);
    let blocks = disk.blocks();
    let physical_block_exp = (blocks.physical / blocks.logical).ilog2() as u8;
    put(0, &(disk.size() / SECTOR).to_le_bytes()); // capacity
    put(12, &(MAX_CHAIN as u32 - 2).to_le_bytes()); // seg_max
    put(20, &blocks.logical.to_le_bytes()); // blk_size
    put(24, &[physical_block_exp]);
    put(26, &1u16.to_le_bytes()); // min_io_size, in blocks
    if disk.can_discard() {
        let alignment = blocks.logical / SECTOR as u32;
        put(36, &MAX_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
        put(40, &MAX_RANGES.to_le_bytes()); // max_discard_seg
        put(44, &alignment.to_le_bytes()); // discard_sector_alignment
    }
    if !disk.is_read_only() {
        put(48, &MAX_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &MAX_RANGES.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
    }
    config
}

impl Device for Blk {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let Limits {
            read_only,
            can_flush,
            can_discard,
            ..
        } = self.limits;
        let offered = [
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_RO, read_only),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_FLUSH, can_flush),
            (VIRTIO_BLK_F_TOPOLOGY, true),
            (VIRTIO_BLK_F_DISCARD, can_discard),
            (VIRTIO_BLK_F_WRITE_ZEROES, !read_only),
        ];
        let bit = |(feature, offered)| u64::from(offered) << feature;
        offered.into_iter().map(bit).sum()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE]
    }

    fn kicked(&self, _: usize) -> Kicked {
        // Without a ring everything waits.
        match self.ring {
            Some(_) => Kicked::VcpuFirst,
            None => Kicked::Thread,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config, offset, data);
    }

    fn start(&mut self, features: u64) {
        self.stable = self.disk.can_flush() && features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
    }

    fn reset(&mut self) {
        if let Some(ring) = &mut self.ring {
            // The buffers are the driver's again, so nobody may go on without this. Nobody is told how
            // these requests end; but a flush that failed is one, whoever asked for it: the Host says
            // so once.
            let lost = &mut self.lost;
            let flush_failed = |in_flight: InFlight, result: io::Result<usize>| {
                *lost |= in_flight.operation == Operation::Flush && result.is_err();
            };
            let waited = ring.wait(flush_failed);
            waited.expect("the kernel lets us wait for it");
        }
    }

    fn source(&self) -> Option<Source> {
        let ring = self.ring.as_ref()?;
        Some(Source {
            fd: ring.completed(),
            queue: 0,
        })
    }

    fn serve(&mut self, _: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| {
            let mut used = self.finish(queue, memory)?;
            used |= self.begin(queue, memory)?;
            // What needs no waiting is done by now.
            used |= self.finish(queue, memory)?;
            // Without room, the next completion goes on with what is there.
            Ok((Served { used, then: 0 }, self.has_room()))
        })
    }

    /// Transfers of which the file system says beforehand that they need not wait. It has the last word: whatever the
    /// sizes, the Guest's next instruction waits for the copying alone.
    fn serve_first(&mut self, _: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut left = AT_ONCE;
        until_quiet(queue, memory, |queue| {
            let mut used = false;
            while self.ring.as_ref().is_some_and(Ring::is_idle) && left > 0 {
                let Some(chain) = queue.iter(memory)?.next() else {
                    return Ok((Served { used, then: 0 }, true));
                };
                let head = chain.head_index();
                let Request { task, status } = Request::take(chain, memory, &self.limits)?;
                let Some((status_now, filled)) = task.ok().and_then(|task| self.try_now(task))
                else {
                    // The thread takes it anew: nothing of this look at it is used.
                    queue.go_to_previous_position();
                    break;
                };
                answer(Pending { head, status }, status_now, filled, queue, memory)?;
                used = true;
                left -= 1;
            }
            Ok((Served { used, then: 1 }, false))
        })
    }
}
