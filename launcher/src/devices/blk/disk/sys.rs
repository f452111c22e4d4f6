// SPDX-License-Identifier: GPL-2.0
//! What disks need of the kernel by pointer: buffers in the Guest's RAM, and discarding on block
//! devices.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::libc::{self, iovec};
use vm_memory::{GuestAddress, GuestMemory};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_io_nr;

use crate::memory::dma::Dma;

/// The unit of a disk's size, in bytes.
pub const SECTOR: u64 = 512;

ioctl_io_nr!(BLKDISCARD, 0x12, 119);

/// Pieces of the Guest's RAM, in order, which the kernel fills or reads on behalf of a request.
///
/// The Guest may change them meanwhile, so they are never references: only the kernel follows the
/// pointers, and it copes with whatever happens to user memory.
pub struct Buffers {
    /// Each lies within a mapping that `memory` holds.
    pieces: Vec<iovec>,
    length: usize,
    memory: Dma,
}

// SAFETY: the pointers are to mappings shared by all threads, and `memory` keeps them in place.
unsafe impl Send for Buffers {}

impl Buffers {
    /// The pieces at these GPAs, with these lengths in bytes.
    ///
    /// # Errors
    ///
    /// One of them is not in RAM.
    pub fn new(
        memory: &Dma,
        pieces: impl IntoIterator<Item = (GuestAddress, usize)>,
    ) -> Result<Self, vm_memory::GuestMemoryError> {
        let mut buffers = Self::none(memory);
        for (gpa, length) in pieces {
            for slice in memory.get_slices(gpa, length) {
                let slice = slice?;
                buffers.length += slice.len();
                buffers.pieces.push(iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Ok(buffers)
    }

    /// No pieces, for what needs none.
    pub fn none(memory: &Dma) -> Self {
        Self {
            pieces: Vec::new(),
            length: 0,
            memory: memory.clone(),
        }
    }

    /// The length of all pieces together, in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Is there no byte in it?
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes of `range`.
    pub fn part(&self, range: Range<usize>) -> Self {
        let mut at = 0;
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            let start = range.start.clamp(at, at + piece.iov_len);
            let end = range.end.clamp(start, at + piece.iov_len);
            if start != end {
                pieces.push(iovec {
                    iov_base: piece.iov_base.wrapping_byte_add(start - at),
                    iov_len: end - start,
                });
            }
            at += piece.iov_len;
        }
        Self {
            length: pieces.iter().map(|piece| piece.iov_len).sum(),
            pieces,
            memory: self.memory.clone(),
        }
    }

    /// The pieces, for the kernel. They are good as long as `self` lives.
    pub(super) fn pieces(&self) -> &[iovec] {
        &self.pieces
    }

    /// Fills all of it with what is at `offset` of `file`.
    pub fn fill(&self, file: &File, offset: u64) -> io::Result<()> {
        self.all(|pieces, done| {
            // SAFETY: the kernel writes to `pieces`, which `self` keeps mapped, and to which nobody
            // has references.
            unsafe {
                libc::preadv(
                    file.as_raw_fd(),
                    pieces.as_ptr(),
                    pieces.len() as i32,
                    (offset + done) as i64,
                )
            }
        })
    }

    /// Writes all of it to `offset` of `file`; when `stable`, it is on the medium on return.
    pub fn store(&self, file: &File, offset: u64, stable: bool) -> io::Result<()> {
        let flags = if stable { libc::RWF_DSYNC } else { 0 };
        self.all(|pieces, done| {
            // SAFETY: the kernel reads `pieces`, which `self` keeps mapped.
            unsafe {
                libc::pwritev2(
                    file.as_raw_fd(),
                    pieces.as_ptr(),
                    pieces.len() as i32,
                    (offset + done) as i64,
                    flags,
                )
            }
        })
    }

    /// Fills all of it with what is at `offset` of `file`, if that takes no waiting; returns whether it has.
    /// `in_memory` says that nothing in this file does, and the file system is not asked.
    pub fn fill_now(&self, file: &File, offset: u64, in_memory: bool) -> bool {
        let (pieces, flags) = (&self.pieces, no_wait(in_memory));
        // SAFETY: as in `fill`.
        let count = unsafe {
            libc::preadv2(
                file.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len() as i32,
                offset as i64,
                flags,
            )
        };
        usize::try_from(count) == Ok(self.length)
    }

    /// Writes all of it to `offset` of `file`, if that takes no waiting; returns whether it has. `in_memory` is
    /// that of [`Buffers::fill_now`].
    pub fn store_now(&self, file: &File, offset: u64, in_memory: bool) -> bool {
        let (pieces, flags) = (&self.pieces, no_wait(in_memory));
        // SAFETY: as in `store`.
        let count = unsafe {
            libc::pwritev2(
                file.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len() as i32,
                offset as i64,
                flags,
            )
        };
        usize::try_from(count) == Ok(self.length)
    }

    /// Calls `transfer` with what is left, and how much is done, until all is done.
    fn all(&self, transfer: impl Fn(&[iovec], u64) -> isize) -> io::Result<()> {
        let mut done = 0;
        let mut rest = None;
        while done < self.length {
            let left: &Self = rest.as_ref().unwrap_or(self);
            match transfer(&left.pieces, done as u64) {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count if count > 0 => {
                    done += count as usize;
                    if done < self.length {
                        rest = Some(self.part(done..self.length));
                    }
                }
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The flags of a transfer that must not wait.
fn no_wait(in_memory: bool) -> i32 {
    match in_memory {
        true => 0,
        false => libc::RWF_NOWAIT,
    }
}

/// Tells the block device `file` that nobody needs what is in these bytes.
pub(super) fn discard(file: &File, range: Range<u64>) -> io::Result<()> {
    let range = [range.start, range.end - range.start];
    // SAFETY: BLKDISCARD reads two u64s.
    match unsafe { ioctl_with_ref(file, BLKDISCARD(), &range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::Memory;

    const PIECES: [(GuestAddress, usize); 4] = [
        (GuestAddress(0x1000), 10),
        (GuestAddress(0x3000), 0),
        (GuestAddress(0x2000), 1),
        (GuestAddress(0xff0), 16),
    ];
    const LENGTH: usize = 27;

    fn bytes(memory: &Dma) -> Vec<u8> {
        let read = |(gpa, length)| {
            let mut bytes = vec![0; length];
            memory.read_slice(&mut bytes, gpa).unwrap();
            bytes
        };
        PIECES.into_iter().flat_map(read).collect()
    }

    fn memory() -> Dma {
        Memory::from_ranges(&[(GuestAddress(0), 0x4000)])
            .unwrap()
            .into()
    }

    #[test]
    fn pieces_outside_ram() {
        let memory = memory();
        for piece in [(0x4000, 1), (0x3fff, 2), (u64::MAX, 1), (u64::MAX, 2)] {
            assert!(Buffers::new(&memory, [(GuestAddress(piece.0), piece.1)]).is_err());
        }
        assert!(Buffers::new(&memory, [(GuestAddress(0x3fff), 1)]).is_ok());
    }

    #[test]
    fn a_file_that_ends_early() {
        let (memory, file) = (
            memory(),
            crate::devices::blk::disk::tests::file(b"0123456789"),
        );
        let buffers = Buffers::new(&memory, PIECES).unwrap();
        let error = buffers.fill(&file, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        buffers.part(0..10).fill(&file, 0).unwrap();
        assert_eq!(&bytes(&memory)[..10], b"0123456789");
    }

    proptest! {
        /// A part is that part, there and back.
        #[test]
        fn parts(start in 0..LENGTH, length in 0..LENGTH, offset in 0u64..64) {
            let end = (start + length).min(LENGTH);
            let content: Vec<u8> = (0..128).collect();
            let (memory, file) = (memory(), crate::devices::blk::disk::tests::file(&content));
            let part = Buffers::new(&memory, PIECES).unwrap().part(start..end);
            prop_assert_eq!(part.len(), end - start);
            part.fill(&file, offset).unwrap();
            let mut expected = vec![0; LENGTH];
            expected[start..end].copy_from_slice(&content[offset as usize..][..end - start]);
            prop_assert_eq!(bytes(&memory), expected);
            part.store(&file, 100, true).unwrap();
            let mut written = vec![0; end - start];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut written, 100).unwrap();
            prop_assert_eq!(&written, &content[offset as usize..][..end - start]);
        }
    }
}
