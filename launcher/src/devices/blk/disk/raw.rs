// SPDX-License-Identifier: GPL-2.0
//! A file or a block device, byte for byte what the Guest sees.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::{fallocate, FallocateFlags};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{fstatfs, TMPFS_MAGIC};

use super::sys::{self, Buffers};

/// Deallocates, and reads as zeros.
const PUNCH_HOLE: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
/// Reads as zeros, and stays allocated.
const ZERO_RANGE: FallocateFlags =
    FallocateFlags::FALLOC_FL_ZERO_RANGE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

/// The file, and what can be done with it.
pub(super) struct Raw {
    pub(super) file: File,
    is_device: bool,
    /// On a tmpfs, which cannot say whether a transfer would wait: but for memory that was swapped out, as the
    /// Guest's own may be, none does.
    in_memory: bool,
    /// Can what is not needed be deallocated?
    pub(super) can_discard: bool,
    /// Sizes of a logical and a physical block, in bytes.
    pub(super) blocks: Blocks,
}

/// The units of a disk, in bytes, powers of 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The smallest unit that can be addressed.
    pub logical: u32,
    /// The smallest unit that is written without reading what is around.
    pub physical: u32,
}

impl Raw {
    /// `file`, which has `size` bytes.
    pub(super) fn new(file: File, size: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let limits = |name| queue_limit(metadata.rdev(), name);
        let block = |size: u64, least| {
            let size = u32::try_from(size)
                .ok()
                .filter(|size| size.is_power_of_two());
            size.unwrap_or(least).clamp(least, 1 << 16)
        };
        let (logical, physical) = if is_device {
            let logical = block(limits("logical_block_size"), sys::SECTOR as u32);
            (logical, block(limits("physical_block_size"), logical))
        } else {
            let logical = sys::SECTOR as u32;
            (logical, block(metadata.blksize(), logical))
        };
        let can_discard = if is_device {
            limits("discard_max_bytes") != 0
        } else {
            // Behind the end nothing is lost.
            fallocate(&file, PUNCH_HOLE, size as i64, 1 << 12).is_ok()
        };
        let in_memory = fstatfs(&file)?.filesystem_type() == TMPFS_MAGIC;
        Ok(Self {
            file,
            is_device,
            in_memory,
            can_discard,
            blocks: Blocks { logical, physical },
        })
    }

    /// Fills `buffers` from `offset`.
    pub(super) fn read(&self, buffers: &Buffers, offset: u64) -> io::Result<()> {
        buffers.fill(&self.file, offset)
    }

    /// Writes `buffers` to `offset`; when `stable`, they are on the medium on return.
    pub(super) fn write(&self, buffers: &Buffers, offset: u64, stable: bool) -> io::Result<()> {
        buffers.store(&self.file, offset, stable)
    }

    /// Fills `buffers` from `offset` if that takes no waiting, and returns whether it has.
    pub(super) fn read_now(&self, buffers: &Buffers, offset: u64) -> bool {
        small(buffers) && buffers.fill_now(&self.file, offset, self.in_memory)
    }

    /// Writes `buffers` to `offset` if that takes no waiting, and returns whether it has.
    pub(super) fn write_now(&self, buffers: &Buffers, offset: u64) -> bool {
        small(buffers) && buffers.store_now(&self.file, offset, self.in_memory)
    }

    /// Deallocates these bytes, as far as the blocks below can be.
    pub(super) fn discard(&self, range: Range<u64>) -> io::Result<()> {
        if self.is_device {
            sys::discard(&self.file, range)
        } else {
            Ok(allocate(&self.file, PUNCH_HOLE, &range)?)
        }
    }

    /// Makes these bytes 0. They may get deallocated if `unmap` says so.
    pub(super) fn zero(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        let ways = [unmap.then_some(PUNCH_HOLE), Some(ZERO_RANGE)];
        for way in ways.into_iter().flatten() {
            match allocate(&self.file, way, &range) {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                result => return Ok(result?),
            }
        }
        write_zeros(&self.file, range)
    }
}

/// Do these bytes take no longer to copy than it takes to have another thread do it? Above that it pays to copy beside
/// the Guest, on another CPU.
fn small(buffers: &Buffers) -> bool {
    const MOST: usize = 64 << 10;
    !buffers.is_empty() && buffers.len() <= MOST
}

fn allocate(file: &File, how: FallocateFlags, range: &Range<u64>) -> nix::Result<()> {
    loop {
        let length = (range.end - range.start) as i64;
        match fallocate(file, how, range.start as i64, length) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn write_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    for start in range.clone().step_by(ZEROS.len()) {
        let length = (range.end - start).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..length as usize], start)?;
    }
    Ok(())
}

/// A limit of the queue of block device `number`, which may be a partition; 0 if the kernel does
/// not say.
fn queue_limit(number: u64, name: &str) -> u64 {
    let device = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    let read = |queue: &str| fs::read_to_string(format!("{device}/{queue}/{name}")).ok();
    let text = read("queue").or_else(|| read("../queue"));
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::blk::disk::tests::file;

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn zeros_by_every_way() {
        const SIZE: usize = 0x30_000;
        for way in 0..3 {
            let file = file(&vec![7; SIZE]);
            let raw = Raw::new(file.try_clone().unwrap(), SIZE as u64).unwrap();
            let range = 0x201..0x2_0600;
            match way {
                0 => raw.zero(range, false),
                1 => raw.zero(range, true),
                _ => write_zeros(&file, range),
            }
            .unwrap();
            let mut expected = vec![7; SIZE];
            expected[0x201..0x2_0600].fill(0);
            assert!(content(&file) == expected);
        }
    }

    #[test]
    fn discarded_blocks_are_deallocated() {
        let size = 1 << 20;
        let file = file(&vec![7; size]);
        file.sync_all().unwrap();
        let raw = Raw::new(file, size as u64).unwrap();
        assert!(raw.can_discard);
        let before = raw.file.metadata().unwrap().blocks();
        raw.discard(0..size as u64 / 2).unwrap();
        let metadata = raw.file.metadata().unwrap();
        assert!(
            metadata.blocks() <= before / 2 + 16,
            "of {before} are left {}",
            metadata.blocks()
        );
        assert_eq!(metadata.len(), size as u64);
    }
}
