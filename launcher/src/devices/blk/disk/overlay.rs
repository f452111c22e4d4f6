// SPDX-License-Identifier: GPL-2.0
//! A disk that is never written to: what the Guest writes goes to a temporary file without a name,
//! which is gone with this process.

use std::env;
use std::fs::{File, OpenOptions};
use std::io;
use std::iter;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::libc::O_TMPFILE;

use super::raw::{Blocks, Raw};
use super::sys::{Buffers, SECTOR};

/// The unit, in bytes, that is taken from one file or the other as a whole.
const BLOCK: u64 = 4096;
/// To write less than [`BLOCK`] is to read it before.
pub(super) const BLOCKS: Blocks = Blocks {
    logical: SECTOR as u32,
    physical: BLOCK as u32,
};

/// The two files.
pub(super) struct Overlay {
    base: File,
    size: u64,
    top: Raw,
    /// Bit n: block n is in `top`. Zeroed pages that are never written to take no memory.
    present: Vec<u64>,
}

impl Overlay {
    /// An overlay over `base`, which has `size` bytes; what is written goes to `top`.
    pub(super) fn new(base: File, size: u64, top: File) -> io::Result<Self> {
        top.set_len(size)?;
        let words = size.div_ceil(BLOCK).div_ceil(64);
        Ok(Self {
            base,
            size,
            top: Raw::new(top, size)?,
            present: vec![0; words as usize],
        })
    }

    /// Fills `buffers` from `offset`.
    pub(super) fn read(&self, buffers: &Buffers, offset: u64) -> io::Result<()> {
        let end = offset + buffers.len() as u64;
        let mut start = offset;
        while start < end {
            let present = self.has(start / BLOCK);
            // As far as the same file has it.
            let blocks = start / BLOCK..end.div_ceil(BLOCK);
            let other = blocks.into_iter().find(|&block| self.has(block) != present);
            let stop = other.map_or(end, |block| block * BLOCK);
            let part = buffers.part((start - offset) as usize..(stop - offset) as usize);
            part.fill(if present { &self.top.file } else { &self.base }, start)?;
            start = stop;
        }
        Ok(())
    }

    /// Writes `buffers` to `offset`.
    pub(super) fn write(&mut self, buffers: &Buffers, offset: u64) -> io::Result<()> {
        let range = offset..offset + buffers.len() as u64;
        self.complete(&range)?;
        buffers.store(&self.top.file, offset, false)?;
        self.mark(range);
        Ok(())
    }

    /// Makes these bytes 0.
    pub(super) fn zero(&mut self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        self.complete(&range)?;
        self.top.zero(range.clone(), unmap)?;
        self.mark(range);
        Ok(())
    }

    fn has(&self, block: u64) -> bool {
        self.present[block as usize / 64] & (1 << (block % 64)) != 0
    }

    /// The blocks of `range` are in `top` from now on.
    fn mark(&mut self, range: Range<u64>) {
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            self.present[block as usize / 64] |= 1 << (block % 64);
        }
    }

    /// Copies what `range`, which is about to be written and is not empty, leaves of its first and its
    /// last block.
    fn complete(&self, range: &Range<u64>) -> io::Result<()> {
        let first = range.start / BLOCK;
        let last = (range.end - 1) / BLOCK;
        let other = Some(last).filter(|&last| last != first);
        for block in iter::once(first).chain(other) {
            let whole = block * BLOCK..((block + 1) * BLOCK).min(self.size);
            let covered = range.start <= whole.start && whole.end <= range.end;
            if !covered && !self.has(block) {
                let mut bytes = [0; BLOCK as usize];
                let bytes = &mut bytes[..(whole.end - whole.start) as usize];
                self.base.read_exact_at(bytes, whole.start)?;
                self.top.file.write_all_at(bytes, whole.start)?;
            }
        }
        Ok(())
    }
}

/// Makes the temporary file. Returns its directory with an error.
pub(super) fn temporary() -> Result<File, (PathBuf, io::Error)> {
    let directory = directory();
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_TMPFILE)
        .mode(0o600)
        .open(&directory)
        .map_err(|error| (directory, error))
}

/// The directory of large temporary files.
fn directory() -> PathBuf {
    let large = || Some(PathBuf::from("/var/tmp")).filter(|large| large.is_dir());
    let named = env::var_os("TMPDIR").map(PathBuf::from);
    named.or_else(large).unwrap_or_else(|| "/tmp".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::blk::disk::tests::file;
    use crate::memory::dma::Dma;
    use crate::memory::Memory;

    /// Not a multiple of BLOCK.
    const SIZE: u64 = 16 * BLOCK + 512;

    fn base() -> Vec<u8> {
        (0..SIZE).map(|n| (n / 512) as u8 ^ n as u8).collect()
    }

    proptest! {
        /// After any writes and zeroes, the Guest reads what it would read of a disk of its own,
        /// and the base is what it was.
        #[test]
        fn like_a_disk(steps in prop::collection::vec(
            (0u8..3, 0..SIZE / 512, 1..SIZE / 512, any::<u8>()), 1..20,
        )) {
            let memory = Dma::from(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
            let mut disk = base();
            let below = file(&disk);
            let mut overlay =
                Overlay::new(below.try_clone().unwrap(), SIZE, temporary().unwrap()).unwrap();
            for (what, sector, sectors, byte) in steps {
                let start = sector * 512;
                let end = (start + sectors * 512).min(SIZE);
                let here = &mut disk[start as usize..end as usize];
                let pieces = [(GuestAddress(0x1000), 512), (GuestAddress(0x2000), here.len() - 512)];
                let buffers = Buffers::new(&memory, pieces).unwrap();
                if what == 0 {
                    memory.write_slice(&vec![byte; 512], GuestAddress(0x1000)).unwrap();
                    memory.write_slice(&vec![!byte; here.len() - 512], GuestAddress(0x2000)).unwrap();
                    overlay.write(&buffers, start).unwrap();
                    here.fill(!byte);
                    here[..512].fill(byte);
                } else {
                    overlay.zero(start..end, what == 1).unwrap();
                    here.fill(0);
                }
                let all = Buffers::new(&memory, [(GuestAddress(0), SIZE as usize)]).unwrap();
                overlay.read(&all, 0).unwrap();
                let mut read = vec![0; SIZE as usize];
                memory.read_slice(&mut read, GuestAddress(0)).unwrap();
                prop_assert!(read == disk);
                overlay.read(&buffers, start).unwrap();
            }
            let mut left = vec![0; SIZE as usize];
            below.read_exact_at(&mut left, 0).unwrap();
            prop_assert!(left == base());
        }
    }
}
