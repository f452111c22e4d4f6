// SPDX-License-Identifier: GPL-2.0
//! Many reads and writes of a file at a time, by io_uring(7).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue, IoUring};
use nix::libc::RWF_DSYNC;
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use super::sys::Buffers;

/// The operation on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the buffers.
    Read,
    /// Write the buffers.
    Write {
        /// It is on the medium when it is complete.
        stable: bool,
    },
    /// Writes that were complete before are on the medium.
    Flush,
}

/// A ring for one file, for operations that are each called T by their owner.
pub struct Ring<T> {
    uring: IoUring,
    /// Not registered with the kernel: a ring that ends with its process keeps registered files open,
    /// and so locked, a while longer.
    file: File,
    completed: EventFd,
    /// The operations that the kernel works on. Their buffers stay here until it says that it is
    /// done with them.
    in_flight: Vec<Option<(T, Buffers)>>,
    /// The empty ones of these.
    free: Vec<usize>,
}

impl<T> Ring<T> {
    /// A ring for `file`, for `depth` operations at a time.
    ///
    /// # Errors
    ///
    /// The system does not have or does not allow io_uring.
    pub fn new(file: &File, depth: u16) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        let uring = builder
            .setup_submit_all()
            .setup_r_disabled()
            .build(depth.into())?;
        let completed = EventFd::new(EFD_NONBLOCK)?;
        let submitter = uring.submitter();
        submitter.register_eventfd(completed.as_raw_fd())?;
        // A ring can do much that the sandbox takes from us: make sockets, open files.
        let codes = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        submitter.register_restrictions(&mut codes.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self {
            uring,
            file: file.try_clone()?,
            completed,
            in_flight: (0..depth).map(|_| None).collect(),
            free: (0..depth.into()).collect(),
        })
    }

    /// Signalled at each completion. Its count is of no meaning.
    pub fn completed(&self) -> RawFd {
        self.completed.as_raw_fd()
    }

    /// Is there room for another operation?
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Is there no operation that the kernel works on?
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.in_flight.len()
    }

    /// Adds an operation on `buffers`, at `offset` of the file. There must be room. It begins with
    /// the next [`Ring::submit`].
    pub fn push(&mut self, operation: Operation, buffers: Buffers, offset: u64, tag: T) {
        let slot = self.free.pop().expect("there is room");
        let file = Fd(self.file.as_raw_fd());
        let pieces = buffers.pieces();
        let (pointer, count) = (pieces.as_ptr(), pieces.len() as u32);
        let entry: squeue::Entry = match operation {
            Operation::Read => opcode::Readv::new(file, pointer, count)
                .offset(offset)
                .build(),
            Operation::Write { stable } => opcode::Writev::new(file, pointer, count)
                .offset(offset)
                .rw_flags(if stable { RWF_DSYNC } else { 0 })
                .build(),
            Operation::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(slot as u64);
        // Its pieces stay where they are on the heap.
        self.in_flight[slot] = Some((tag, buffers));
        // SAFETY: the kernel uses the pieces and what they point to until it completes the entry.
        // Until then they are in `in_flight`: only `next` takes them out, and `drop` waits.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        // It has as many entries as there are slots.
        pushed.expect("there is room");
    }

    /// Gives the kernel what was pushed.
    pub fn submit(&mut self) -> io::Result<()> {
        while !self.uring.submission().is_empty() {
            retry(self.uring.submit())?;
        }
        Ok(())
    }

    /// An operation that is complete, with its buffers, and how many bytes were transferred.
    #[allow(clippy::should_implement_trait)] // there may be more later
    pub fn next(&mut self) -> Option<(T, Buffers, io::Result<usize>)> {
        let completion = self.uring.completion().next()?;
        let slot = completion.user_data() as usize;
        let (tag, buffers) = self.in_flight[slot].take()?;
        self.free.push(slot);
        let result = match completion.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            count => Ok(count as usize),
        };
        Some((tag, buffers, result))
    }

    /// Waits until the kernel has nothing more to do, and tells what came of it. The buffers are
    /// nobody's then.
    ///
    /// # Errors
    ///
    /// The kernel refuses to wait: it may still be at work.
    pub fn wait(&mut self, mut done: impl FnMut(T, io::Result<usize>)) -> io::Result<()> {
        loop {
            while let Some((tag, _, result)) = self.next() {
                done(tag, result);
            }
            if self.is_idle() {
                return Ok(());
            }
            retry(self.uring.submit_and_wait(1))?;
        }
    }
}

/// Passes for success what is worth another try.
fn retry(result: io::Result<usize>) -> io::Result<()> {
    use io::ErrorKind::{Interrupted, ResourceBusy, WouldBlock};
    match result {
        Err(error) if ![Interrupted, ResourceBusy, WouldBlock].contains(&error.kind()) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        if self.wait(|_, _| {}).is_err() {
            // Better lost than given to somebody else while the kernel writes there.
            std::mem::take(&mut self.in_flight)
                .into_iter()
                .for_each(std::mem::forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::blk::disk::tests::file;
    use crate::memory::dma::Dma;
    use crate::memory::Memory;

    const DEPTH: u16 = 8;

    fn complete(ring: &mut Ring<u16>) -> (u16, io::Result<usize>) {
        loop {
            if let Some((tag, _, result)) = ring.next() {
                return (tag, result);
            }
            ring.uring.submit_and_wait(1).unwrap();
        }
    }

    #[test]
    fn nothing_else() {
        let mut ring = Ring::<u16>::new(&file(&[0; 0x1000]), DEPTH).unwrap();
        let socket = opcode::Socket::new(nix::libc::AF_INET, nix::libc::SOCK_STREAM, 0);
        // SAFETY: has no memory.
        unsafe { ring.uring.submission().push(&socket.build()) }.unwrap();
        ring.uring.submit_and_wait(1).unwrap();
        let result = ring.uring.completion().next().unwrap().result();
        assert_eq!(result, -nix::libc::EACCES);
    }

    #[test]
    fn operations() {
        let memory = Dma::from(Memory::from_ranges(&[(GuestAddress(0), 0x10_000)]).unwrap());
        let file = file(&[0; 0x1000]);
        let mut ring = Ring::new(&file, DEPTH).unwrap();
        let buffers = |gpa, length| Buffers::new(&memory, [(GuestAddress(gpa), length)]).unwrap();
        memory.write_slice(b"hello", GuestAddress(0x100)).unwrap();
        for stable in [false, true] {
            ring.push(Operation::Write { stable }, buffers(0x100, 5), 0x200, 7);
            ring.submit().unwrap();
            let (tag, result) = complete(&mut ring);
            assert_eq!((tag, result.unwrap()), (7, 5));
        }
        assert!(ring.completed.read().unwrap() > 0);
        ring.push(Operation::Flush, buffers(0, 0), 0, 1);
        ring.submit().unwrap();
        assert_eq!(complete(&mut ring).1.unwrap(), 0);
        // More than there is.
        ring.push(Operation::Read, buffers(0x1000, 0x1000), 0x200, 2);
        ring.submit().unwrap();
        assert_eq!(complete(&mut ring).1.unwrap(), 0xe00);
        let mut read = [0; 6];
        memory.read_slice(&mut read, GuestAddress(0x1000)).unwrap();
        assert_eq!(&read, b"hello\0");
    }

    #[test]
    fn full_and_forgotten() {
        let memory = Dma::from(Memory::from_ranges(&[(GuestAddress(0), 0x10_000)]).unwrap());
        let file = file(&[0; 0x1000]);
        let mut ring = Ring::new(&file, DEPTH).unwrap();
        memory.write_slice(&[5; 0x1000], GuestAddress(0)).unwrap();
        for round in 0..3 {
            for n in 0..DEPTH {
                assert!(ring.has_room());
                let buffers = Buffers::new(&memory, [(GuestAddress(0), 0x1000)]).unwrap();
                let offset = u64::from(n + round) * 0x1000;
                ring.push(Operation::Write { stable: false }, buffers, offset, n);
            }
            assert!(!ring.has_room());
            let mut done = Vec::new();
            ring.wait(|n, result| done.push((n, result.unwrap())))
                .unwrap();
            done.sort_unstable();
            assert!(done.into_iter().eq((0..DEPTH).map(|n| (n, 0x1000))));
            assert!(ring.has_room() && ring.next().is_none());
        }
        let mut written = vec![0; 10 * 0x1000];
        file.read_exact_at(&mut written, 0).unwrap();
        assert!(written.iter().all(|&byte| byte == 5));
    }
}
