// SPDX-License-Identifier: GPL-2.0
//! The files of lzop(1): a header, and blocks of LZO1X.
//!
//! Source: lib/decompress_unlzo.c of Linux, and what lzop 1.04 writes. All numbers are big-endian.

use std::io::{self, Read};

const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, 0x0d, 0x0a, 0x1a, 0x0a];
/// From this version on the header has more fields.
const VERSION_LEVEL: u16 = 0x0940;
/// Checksums that follow the sizes of a block: of what it unpacks to, and of what it is.
const PLAIN_SUMS: [u32; 2] = [1 << 0, 1 << 8];
const PACKED_SUMS: [u32; 2] = [1 << 1, 1 << 9];
const HAS_FILTER: u32 = 1 << 11;
/// No lzop makes larger blocks.
const BLOCK_MAX: usize = 64 << 20;

/// Unpacks a file, a block at a time.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    flags: u32,
    block: Vec<u8>,
    /// So much of the block is read.
    read: usize,
}

impl<'a> Reader<'a> {
    /// Reads the header of `packed`.
    pub(super) fn new(packed: &'a [u8]) -> io::Result<Self> {
        let mut rest = packed;
        if take(&mut rest, MAGIC.len())? != MAGIC {
            return Err(damaged("this is not of lzop"));
        }
        let version = u16::from_be_bytes(array(&mut rest)?);
        let newer = version >= VERSION_LEVEL;
        // The versions of the library, of who can unpack it; the method and its level.
        take(&mut rest, if newer { 2 + 2 + 1 + 1 } else { 2 + 1 })?;
        let flags = u32::from_be_bytes(array(&mut rest)?);
        if flags & HAS_FILTER != 0 {
            return Err(damaged("it is filtered"));
        }
        // The file's mode and time.
        take(&mut rest, if newer { 4 + 4 + 4 } else { 4 + 4 })?;
        let [name] = array(&mut rest)?;
        // The name, and the checksum of the header.
        take(&mut rest, usize::from(name) + 4)?;
        let block = Vec::new();
        Ok(Self {
            rest,
            flags,
            block,
            read: 0,
        })
    }

    /// Unpacks the next block. There is none if it is empty then.
    fn next(&mut self) -> io::Result<()> {
        self.read = 0;
        self.block.clear();
        let plain = u32::from_be_bytes(array(&mut self.rest)?) as usize;
        if plain == 0 {
            return Ok(());
        }
        let packed = u32::from_be_bytes(array(&mut self.rest)?) as usize;
        if plain > BLOCK_MAX || packed > plain {
            return Err(damaged("a block is too large"));
        }
        let sums = |kinds: [u32; 2]| kinds.iter().filter(|kind| self.flags & *kind != 0).count();
        let of_packed = if packed < plain { sums(PACKED_SUMS) } else { 0 };
        let size = 4 * (sums(PLAIN_SUMS) + of_packed);
        take(&mut self.rest, size)?;
        let block = take(&mut self.rest, packed)?;
        if packed == plain {
            self.block.extend(block);
            return Ok(());
        }
        self.block.resize(plain, 0);
        match lzokay::decompress::decompress(block, &mut self.block) {
            Ok(size) if size == plain => Ok(()),
            Ok(_) => Err(damaged("a block does not have the size that it should")),
            Err(error) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{error:?}"),
            )),
        }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.block.len() {
            self.next()?;
        }
        let count = buffer.len().min(self.block.len() - self.read);
        buffer[..count].copy_from_slice(&self.block[self.read..][..count]);
        self.read += count;
        Ok(count)
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The next `count` bytes of `rest`.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> io::Result<&'a [u8]> {
    let (taken, others) = (rest.split_at_checked(count)).ok_or(io::ErrorKind::UnexpectedEof)?;
    *rest = others;
    Ok(taken)
}

fn array<const N: usize>(rest: &mut &[u8]) -> io::Result<[u8; N]> {
    Ok(take(rest, N)?.try_into().expect("so many were taken"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What lzop makes of `plain`: blocks of 256 KiB, each with one checksum.
    pub(in crate::image::unpack) fn packed(plain: &[u8]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        for field in [0x1040u16, 0x20a0, 0x0940] {
            file.extend(field.to_be_bytes());
        }
        file.extend([3, 9]);
        file.extend(PLAIN_SUMS[0].to_be_bytes());
        file.extend([0; 4 + 4 + 4]);
        file.extend([4]);
        file.extend(b"name");
        file.extend([0; 4]);
        for block in plain.chunks(256 << 10) {
            let packed = lzokay::compress::compress(block).unwrap();
            // What does not become smaller is kept as it is.
            let kept = if packed.len() < block.len() {
                &packed
            } else {
                block
            };
            for size in [block.len(), kept.len()] {
                file.extend((size as u32).to_be_bytes());
            }
            file.extend([0; 4]);
            file.extend(kept);
        }
        file.extend([0; 4]);
        file
    }

    fn unpacked(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Reader::new(file)?.read_to_end(&mut plain).map(|_| plain)
    }

    #[test]
    fn blocks_follow_each_other() {
        let plain: Vec<u8> = (0..600_000u32).map(|n| (n / 7) as u8).collect();
        assert!(unpacked(&packed(&plain)).unwrap() == plain);
    }

    #[test]
    fn what_does_not_become_smaller_is_kept() {
        assert_eq!(unpacked(&packed(b"x")).unwrap(), b"x");
    }

    #[test]
    fn damage() {
        let file = packed(&[7; 5000]);
        for length in 0..file.len() {
            unpacked(&file[..length]).unwrap_err();
        }
        let mut filtered = file.clone();
        // The third byte of the flags, behind versions, method and level.
        filtered[MAGIC.len() + 8 + 2] |= (HAS_FILTER >> 8) as u8;
        unpacked(&filtered).unwrap_err();
    }
}
