// SPDX-License-Identifier: GPL-2.0
//! The requests of a driver to a disk: section 5.2.6 of the specification.
//!
//! A request is a header, data and a status byte, in however many buffers. All of it but the data
//! is copied once, and then checked.

use std::ops::Range;

use virtio_bindings::virtio_blk::*;
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use crate::devices::blk::disk::{Buffers, SECTOR};
use crate::devices::Fault;
use crate::memory::dma::Dma;

/// The size of the queue, and how many requests are in flight at most.
pub(super) const QUEUE: u16 = 256;
/// The most buffers that a request has; header and status take two.
pub(super) const MAX_CHAIN: usize = QUEUE as usize;
/// How many ranges a DISCARD or a WRITE_ZEROES has at most, and how long each is: what is done while
/// other requests wait.
pub(super) const MAX_RANGES: u32 = 16;
pub(super) const MAX_RANGE_SECTORS: u32 = (64 << 20) / SECTOR as u32;

/// Type (4 bytes), something that nobody uses, and the sector (8 bytes).
const HEADER: usize = 16;
/// One range of DISCARD and WRITE_ZEROES: sector (8 bytes), number of sectors and flags.
const RANGE: usize = 16;

/// The status of a request, as the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It is done.
    Ok = VIRTIO_BLK_S_OK as isize,
    /// It failed, or makes no sense.
    Failed = VIRTIO_BLK_S_IOERR as isize,
    /// There is no such thing here.
    Unsupported = VIRTIO_BLK_S_UNSUPP as isize,
}

/// A request that can be answered.
pub(super) struct Request {
    /// The operation to do, or the status to give at once.
    pub(super) task: Result<Task, Status>,
    /// The place of the status, in RAM.
    pub(super) status: GuestAddress,
}

/// The operation to do. All offsets and ranges, in bytes, are within the disk.
pub(super) enum Task {
    Read(Buffers, u64),
    Write(Buffers, u64),
    Flush,
    /// The disk's name goes to these buffers.
    Id(Vec<Piece>),
    Discard(Vec<Range<u64>>),
    Zero(Ranges),
}

/// The features that the driver may use.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// In bytes.
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) can_flush: bool,
    pub(super) can_discard: bool,
}

/// Ranges in bytes, and whether they may get deallocated.
type Ranges = Vec<(Range<u64>, bool)>;

/// GPA and length of a buffer, or of a part.
pub(super) type Piece = (GuestAddress, usize);

impl Request {
    /// Takes the request in `chain`.
    ///
    /// # Errors
    ///
    /// It cannot even be answered.
    pub(super) fn take(
        chain: DescriptorChain<&Dma>,
        memory: &Dma,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        let (readable, mut writable) = pieces(chain)?;
        let status = last_byte(&mut writable)
            .filter(|&gpa| memory.address_in_range(gpa))
            .ok_or(Fault::Request("there is no place for its status"))?;
        let (header, data) = split(readable, HEADER);
        let header: [u8; HEADER] = copy(&header, memory)?
            .try_into()
            .map_err(|_| Fault::Request("its header is too short"))?;
        let kind = u32::from_le_bytes(header[..4].try_into().expect("4 bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
        let task = match kind {
            VIRTIO_BLK_T_IN => {
                let into = buffers(memory, writable)?;
                place(limits, sector, into.len()).map(|offset| Task::Read(into, offset))
            }
            VIRTIO_BLK_T_OUT if limits.read_only => Err(Status::Failed),
            VIRTIO_BLK_T_OUT => {
                let from = buffers(memory, data)?;
                place(limits, sector, from.len()).map(|offset| Task::Write(from, offset))
            }
            VIRTIO_BLK_T_FLUSH if limits.can_flush => Ok(Task::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Task::Id(writable)),
            VIRTIO_BLK_T_DISCARD if limits.can_discard => {
                let bytes = copy_ranges(&data, memory)?;
                let only = |ranges: Ranges| ranges.into_iter().map(|(range, _)| range).collect();
                ranges(&bytes, limits, 0).map(only).map(Task::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if !limits.read_only => {
                let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                ranges(&copy_ranges(&data, memory)?, limits, unmap).map(Task::Zero)
            }
            _ => Err(Status::Unsupported),
        };
        Ok(Self { task, status })
    }
}

/// The readable and the writable buffers of `chain`.
fn pieces(chain: DescriptorChain<&Dma>) -> Result<(Vec<Piece>, Vec<Piece>), Fault> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut goes_on = false;
    for (count, descriptor) in chain.enumerate() {
        if count == MAX_CHAIN {
            return Err(Fault::Request("it has more buffers than the queue"));
        }
        goes_on = descriptor.has_next();
        let piece = (descriptor.addr(), descriptor.len() as usize);
        if descriptor.is_write_only() {
            writable.push(piece);
        } else if writable.is_empty() {
            readable.push(piece);
        } else {
            return Err(Fault::Request("a buffer to read follows one to write"));
        }
    }
    if goes_on {
        return Err(Fault::Request("its chain of buffers is broken"));
    }
    Ok((readable, writable))
}

/// Takes the last byte off.
fn last_byte(pieces: &mut Vec<Piece>) -> Option<GuestAddress> {
    while let Some((gpa, length)) = pieces.pop() {
        if let Some(rest) = length.checked_sub(1) {
            pieces.push((gpa, rest));
            return gpa.checked_add(rest as u64);
        }
    }
    None
}

/// The first `length` bytes, or what there is, and the rest.
fn split(pieces: Vec<Piece>, mut length: usize) -> (Vec<Piece>, Vec<Piece>) {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    for (gpa, size) in pieces {
        let here = size.min(length);
        length -= here;
        if here != 0 {
            front.push((gpa, here));
        }
        if here != size {
            // Past the end of addresses is no RAM, and neither is at 2^64 - 1.
            let rest = GuestAddress(gpa.0.saturating_add(here as u64));
            back.push((rest, size - here));
        }
    }
    (front, back)
}

/// What is there.
fn copy(pieces: &[Piece], memory: &Dma) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    for &(gpa, length) in pieces {
        let start = bytes.len();
        bytes.resize(start + length, 0);
        memory
            .read_slice(&mut bytes[start..], gpa)
            .map_err(outside)?;
    }
    Ok(bytes)
}

/// The data's buffers.
fn buffers(memory: &Dma, pieces: Vec<Piece>) -> Result<Buffers, Fault> {
    Buffers::new(memory, pieces).map_err(outside)
}

pub(super) fn outside(error: vm_memory::GuestMemoryError) -> Fault {
    Fault::Buffer(std::io::Error::other(error))
}

/// The offset of `sector`, if `length` bytes from there are sectors of the disk.
fn place(limits: &Limits, sector: u64, length: usize) -> Result<u64, Status> {
    let length = length as u64;
    let offset = sector.checked_mul(SECTOR);
    offset
        .filter(|_| length % SECTOR == 0)
        .filter(|offset| {
            offset
                .checked_add(length)
                .is_some_and(|end| end <= limits.size)
        })
        .ok_or(Status::Failed)
}

/// The bytes of the ranges of a DISCARD or a WRITE_ZEROES; none if there are too many, or a part of one.
fn copy_ranges(data: &[Piece], memory: &Dma) -> Result<Vec<u8>, Fault> {
    let length: usize = data.iter().map(|&(_, length)| length).sum();
    match length % RANGE == 0 && length <= RANGE * MAX_RANGES as usize {
        true => copy(data, memory),
        false => Ok(Vec::new()),
    }
}

/// The ranges of a DISCARD or a WRITE_ZEROES, whose flags are `known`, and whether they have any.
fn ranges(bytes: &[u8], limits: &Limits, known: u32) -> Result<Ranges, Status> {
    if bytes.is_empty() {
        return Err(Status::Failed);
    }
    let range = |bytes: &[u8]| {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let sector = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let (sectors, flags) = (number(8), number(12));
        if flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Status::Failed);
        }
        let length = u64::from(sectors) * SECTOR;
        let offset = place(limits, sector, length as usize)?;
        Ok((offset..offset + length, flags != 0))
    };
    bytes.chunks_exact(RANGE).map(range).collect()
}
