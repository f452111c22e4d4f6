// SPDX-License-Identifier: GPL-2.0
//! Standard input, of which lg uses up no more than the command reads.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use nix::fcntl::{fcntl, tee, FcntlArg, OFlag, SpliceFFlags};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{lseek, pipe2, Whence};
use rustix::fs::{fstat, FileType};
use rustix::io::Errno;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

pub(super) fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

/// What there is to read now, or that nothing will come any more. Waits for nothing.
pub(super) fn state_of(stream: impl AsFd) -> PollFlags {
    let mut files = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut files, PollTimeout::ZERO);
    files[0].revents().unwrap_or(PollFlags::empty())
}

/// The way in which standard input is read.
pub(super) enum Source {
    /// As it comes: what is read is gone.
    Stream,
    /// By copies of what is in a pipe.
    Pipe(File, File),
    /// By position, from this one on.
    File(i64),
}

/// Standard input, of which only what is read in the Guest is used up.
pub struct Stdin {
    pub(super) source: Source,
    pub(super) used: Mutex<Used>,
    /// Somebody in the Guest has read more.
    pub(super) changed: EventFd,
}

/// Numbers of bytes.
#[derive(Default)]
pub(super) struct Used {
    /// Sent to the Guest.
    sent: u64,
    /// Read there.
    pub(super) read: u64,
    /// Gone from here.
    gone: u64,
}

impl Stdin {
    /// The number of bytes that a pipe at our standard input holds at least, if that is to be had.
    const PIPE_MIN: i32 = 1 << 16;

    /// Looks at what it is.
    ///
    /// # Errors
    ///
    /// There are too many descriptors.
    pub fn find() -> io::Result<Self> {
        let stdin = io::stdin();
        let kind = fstat(&stdin).map(|file| FileType::from_raw_mode(file.st_mode));
        let source = match kind {
            Ok(FileType::Fifo) => {
                let (reader, writer) = pipe()?;
                if let Ok(size) = fcntl(&stdin, FcntlArg::F_GETPIPE_SZ) {
                    let size = size.max(Self::PIPE_MIN);
                    let grown = fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(size));
                    // Else less is seen at a time.
                    let _ = grown.and_then(|_| fcntl(&writer, FcntlArg::F_SETPIPE_SZ(size)));
                }
                Source::Pipe(reader, writer)
            }
            Ok(FileType::RegularFile | FileType::BlockDevice) => {
                match lseek(&stdin, 0, Whence::SeekCur) {
                    Ok(position) => Source::File(position),
                    Err(_) => Source::Stream,
                }
            }
            _ => Source::Stream,
        };
        Ok(Self {
            source,
            used: Mutex::default(),
            changed: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// So much has been read in the Guest.
    pub(super) fn is_read(&self, count: u64) {
        let mut used = self.used.lock().unwrap();
        // It can read no more than it has got, and gives nothing back.
        used.read = count.clamp(used.read, used.sent.max(used.read));
        drop(used);
        let _ = self.changed.write(1);
    }

    /// What was read in the Guest is gone here, too.
    pub fn settle(&self) {
        let mut used = self.used.lock().unwrap();
        match self.source {
            Source::Stream => {}
            Source::File(start) => {
                used.gone = used.read;
                let _ = lseek(io::stdin(), start + used.gone as i64, Whence::SeekSet);
            }
            Source::Pipe(..) => {
                let mut buffer = [0; 4096];
                while used.gone < used.read && state_of(io::stdin()).contains(PollFlags::POLLIN) {
                    let most = (used.read - used.gone).min(buffer.len() as u64);
                    match rustix::io::read(io::stdin(), &mut buffer[..most as usize]) {
                        Ok(0) | Err(Errno::AGAIN) => break,
                        Ok(count) => used.gone += count as u64,
                        Err(_) => {}
                    }
                }
            }
        }
    }

    /// Is it time to settle? For each byte would be too often. But this, what the Guest's pipe holds
    /// and what it has read since it told us of it must be less than [`PIPE_MIN`](Self::PIPE_MIN): what
    /// is to come has to fit in behind it.
    fn is_due(&self) -> bool {
        const STEP: u64 = 1 << 14;
        let used = self.used.lock().unwrap();
        used.read - used.gone >= STEP || used.read == used.sent
    }

    /// Counts what is about to be sent.
    pub(super) fn send(&self, count: usize) {
        self.used.lock().unwrap().sent += count as u64;
    }

    /// Reads it to its end, and gives all to `pass`.
    pub(super) fn read(&self, mut pass: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        match &self.source {
            Source::Stream => loop {
                match io::stdin().read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => pass(&buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        wait_for(&io::stdin(), PollFlags::POLLIN);
                    }
                    Err(error) => return Err(error),
                }
            },
            Source::File(start) => {
                let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
                let mut position = *start as u64;
                loop {
                    match file.read_at(&mut buffer, position) {
                        Ok(0) => return Ok(()),
                        Ok(count) => {
                            self.send(count);
                            position += count as u64;
                            pass(&buffer[..count]);
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Source::Pipe(reader, writer) => self.look(reader, writer, pass),
        }
    }

    /// [`read`](Self::read), of a pipe. What is sent stays in it until somebody in the Guest has read
    /// it, so what is new is behind that.
    fn look(
        &self,
        mut reader: &File,
        writer: &File,
        mut pass: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        const ALL: usize = 1 << 30;
        let stdin = io::stdin();
        let epoll = Epoll::new()?;
        // By edge: of what is there already we know.
        let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, stdin.as_raw_fd(), edge)?;
        let level = EpollEvent::new(EventSet::IN, 1);
        epoll.ctl(ControlOperation::Add, self.changed.as_raw_fd(), level)?;
        let mut events = [EpollEvent::default(); 2];
        let mut copy = Vec::new();
        let mut ended = false;
        loop {
            if self.is_due() {
                self.settle();
            }
            // In this order: what was written before the last writer went is seen.
            let last = state_of(&stdin).contains(PollFlags::POLLHUP);
            let used = self.used.lock().unwrap();
            let known = (used.sent - used.gone) as usize;
            drop(used);
            let seen = match tee(&stdin, writer, ALL, SpliceFFlags::SPLICE_F_NONBLOCK) {
                Ok(count) => count,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            copy.resize(seen, 0);
            reader.read_exact(&mut copy)?;
            if let Some(new) = copy.get(known..).filter(|new| !new.is_empty()) {
                self.send(new.len());
                pass(new);
                continue;
            }
            if last && !ended {
                ended = true;
                pass(&[]);
            }
            epoll.wait(-1, &mut events).or_else(interrupted)?;
            let _ = self.changed.read();
        }
    }
}

pub(super) fn interrupted(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

/// Waits for a stream that whoever gave it to us, or has it too, made one that nobody waits for:
/// that is a property of the open file.
pub(super) fn wait_for(stream: &impl AsFd, events: PollFlags) {
    // Who is interrupted tries again.
    let _ = poll(
        &mut [PollFd::new(stream.as_fd(), events)],
        PollTimeout::NONE,
    );
}
