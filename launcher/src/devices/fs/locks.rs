// SPDX-License-Identifier: GPL-2.0
//! Locks on files, of both kinds: what the Guest's programs lock is locked on the Host, so that its
//! programs, other Guests' and this one's exclude each other.
//!
//! A lock of flock(2) belongs to what the Guest has open, and so to our handle. A lock of fcntl(2)
//! belongs to an owner in the Guest: a process, or something open (`F_OFD_SETLK`). For us all of
//! those are one process; so each owner gets an open file of its own here for each inode that it
//! locks, and its locks are that one's (again `F_OFD_SETLK`). They go with the owner's first close
//! of the file, of which the Guest's kernel tells (FLUSH), or the last one of the handle.
//!
//! Who waits for a lock has a thread of its own, which the kernel wakes in its turn. Nobody sees
//! that two wait for each other, as the Host's kernel would for processes: there is no EDEADLK.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuse_backend_rs::api::filesystem::FileLock;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};
use nix::libc;
use rustix::fs::{FlockOperation, OFlags};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

use super::host;

/// How many requests of a share may wait at a time: they take places in the virtqueue, in which
/// others, such as those that unlock, must find one too.
pub const WAITS_MAX: usize = 64;
/// The thread of a wait needs no more: it makes one system call.
const STACK: usize = 64 << 10;
/// The end of a file, however long it gets.
const END: u64 = i64::MAX as u64;

/// The Guest's request.
#[derive(Clone, Copy)]
pub struct Request {
    /// The number of the file's inode.
    pub inode: u64,
    /// The number of the handle by which it is asked for.
    pub handle: u64,
    /// The lock's owner.
    pub owner: u64,
    /// Of flock(2)'s kind.
    pub flock: bool,
    /// Type and range: all of the file for flock.
    pub lock: FileLock,
}

/// All locks of a share's.
pub struct Locks {
    owners: HashMap<(u64, u64), Owner>,
    waits: Vec<Wait>,
    next: u64,
    done: Arc<Done>,
}

/// Somebody in the Guest who has locks on an inode.
struct Owner {
    file: Arc<File>,
    /// By which handles he got them.
    handles: HashSet<u64>,
}

struct Wait {
    number: u64,
    /// The number of the Guest's request.
    unique: u64,
    cancelled: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// The place where the threads leave the results of their waits.
struct Done {
    results: Mutex<Vec<(u64, io::Result<()>)>>,
    event: EventFd,
}

/// The lock as the Host's kernel takes it, on the open file that it is for.
enum Lock {
    Flock(File, FlockOperation),
    Range(Arc<File>, libc::flock),
}

impl Lock {
    fn take(&self) -> io::Result<()> {
        match self {
            Self::Flock(file, operation) => Ok(rustix::fs::flock(file, *operation)?),
            Self::Range(file, range) => {
                fcntl(file.as_fd(), FcntlArg::F_OFD_SETLKW(range))?;
                Ok(())
            }
        }
    }

    fn try_to_take(&self) -> io::Result<()> {
        match self {
            Self::Flock(file, operation) => {
                let operation = match operation {
                    FlockOperation::LockShared => FlockOperation::NonBlockingLockShared,
                    FlockOperation::LockExclusive => FlockOperation::NonBlockingLockExclusive,
                    other => *other,
                };
                Ok(rustix::fs::flock(file, operation)?)
            }
            Self::Range(file, range) => {
                fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(range))?;
                Ok(())
            }
        }
    }
}

impl Locks {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        register_signal_handler(interruption(), nothing)?;
        Ok(Self {
            owners: HashMap::new(),
            waits: Vec::new(),
            next: 0,
            done: Arc::new(Done {
                results: Mutex::default(),
                event: EventFd::new(EFD_NONBLOCK)?,
            }),
        })
    }

    /// The number of descriptors that the locks take.
    pub fn descriptors(&self) -> usize {
        self.owners.len() + self.waits.len()
    }

    /// Becomes readable when a wait is over: see [`Locks::done`].
    pub fn event(&self) -> RawFd {
        self.done.event.as_raw_fd()
    }

    /// Locks or unlocks at once, or fails with EAGAIN. `file` is the open file of the handle.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2) and flock(2); ENOLCK if a new owner needs a descriptor and `room` says that
    /// there is none.
    pub fn set(&mut self, request: &Request, file: &File, room: bool) -> io::Result<()> {
        match self.prepare(request, file, room)? {
            Some(lock) => lock.try_to_take(),
            None => Ok(()),
        }
    }

    /// Locks, and if that takes a while returns the number by which [`Locks::done`] will tell of it.
    /// `unique` is the number of the request, by which it can be interrupted.
    ///
    /// # Errors
    ///
    /// Those of [`Locks::set`]; ENOLCK if too many wait.
    pub fn wait(
        &mut self,
        unique: u64,
        request: &Request,
        file: &File,
        room: bool,
    ) -> io::Result<Option<u64>> {
        let Some(lock) = self.prepare(request, file, room)? else {
            return Ok(None);
        };
        match lock.try_to_take() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result.map(|()| None),
        }
        if self.waits.len() >= WAITS_MAX {
            return Err(Errno::ENOLCK.into());
        }
        let number = self.next;
        self.next += 1;
        let cancelled = Arc::new(AtomicBool::new(false));
        let thread = {
            let (cancelled, done) = (cancelled.clone(), self.done.clone());
            thread::Builder::new().stack_size(STACK).spawn(move || {
                let result = loop {
                    if cancelled.load(Ordering::Acquire) {
                        break Err(Errno::EINTR.into());
                    }
                    match lock.take() {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        result => break result,
                    }
                };
                // If nobody wants it any more, it goes here.
                drop(lock);
                done.tell(number, result);
            })
        };
        // There is a limit to a user's threads.
        let thread = thread.map_err(|_| io::Error::from(Errno::ENOLCK))?;
        self.waits.push(Wait {
            number,
            unique,
            cancelled,
            thread,
        });
        Ok(Some(number))
    }

    /// The lock that stands in the way of this one, or `F_UNLCK`. Its holder is not known.
    pub fn find(&mut self, request: &Request, file: &File, room: bool) -> io::Result<FileLock> {
        let mut range = range(&request.lock)?;
        let owner = self.owner(request, file, room)?;
        fcntl(owner.as_fd(), FcntlArg::F_OFD_GETLK(&mut range))?;
        let end = match range.l_len {
            0 => END,
            length => (range.l_start + length - 1) as u64,
        };
        Ok(FileLock {
            start: range.l_start as u64,
            end,
            lock_type: range.l_type as u32,
            pid: 0,
        })
    }

    /// The owner closes the file: his locks go.
    pub fn closed_by(&mut self, inode: u64, owner: u64) {
        if let Some(owner) = self.owners.remove(&(inode, owner)) {
            owner.unlock();
        }
    }

    /// The handle is closed: the locks that were got by it go, but for those that their owner got by
    /// others too.
    pub fn released(&mut self, handle: u64) {
        self.owners.retain(|_, owner| {
            let last = owner.handles.remove(&handle) && owner.handles.is_empty();
            if last {
                owner.unlock();
            }
            !last
        });
    }

    /// The waits that are over, by their numbers.
    pub fn done(&mut self) -> Vec<(u64, io::Result<()>)> {
        // The event is looked at by edge, so nobody takes its count back: this is asked at each request.
        let done = std::mem::take(&mut *self.done.results());
        for (number, _) in &done {
            if let Some(at) = self.waits.iter().position(|wait| wait.number == *number) {
                let _ = self.waits.swap_remove(at).thread.join();
            }
        }
        done
    }

    /// A signal has come for whom request `unique` is for. If it waits still, that is soon over.
    pub fn interrupt(&mut self, unique: u64) {
        for wait in self.waits.iter().filter(|wait| wait.unique == unique) {
            wait.cancel();
        }
    }

    /// Nobody has locks any more, or waits for one.
    pub fn clear(&mut self) {
        for wait in &self.waits {
            wait.cancel();
        }
        for wait in self.waits.drain(..) {
            let _ = wait.thread.join();
        }
        self.done.results().clear();
        self.owners.clear();
    }

    /// The lock to be taken, and on which open file; None if there is nothing to do.
    fn prepare(&mut self, request: &Request, file: &File, room: bool) -> io::Result<Option<Lock>> {
        let unlocks = request.lock.lock_type == libc::F_UNLCK as u32;
        if request.flock {
            let operation = match request.lock.lock_type as i32 {
                libc::F_RDLCK => FlockOperation::LockShared,
                libc::F_WRLCK => FlockOperation::LockExclusive,
                libc::F_UNLCK => FlockOperation::Unlock,
                _ => return Err(Errno::EINVAL.into()),
            };
            return Ok(Some(Lock::Flock(file.try_clone()?, operation)));
        }
        let range = range(&request.lock)?;
        if unlocks && !self.owners.contains_key(&(request.inode, request.owner)) {
            return Ok(None);
        }
        let owner = self.owner(request, file, room)?;
        Ok(Some(Lock::Range(owner, range)))
    }

    /// The open file whose locks are those of the request's owner.
    fn owner(&mut self, request: &Request, file: &File, room: bool) -> io::Result<Arc<File>> {
        let key = (request.inode, request.owner);
        if let Some(owner) = self.owners.get_mut(&key) {
            owner.handles.insert(request.handle);
            return Ok(owner.file.clone());
        }
        if !room {
            return Err(Errno::ENOLCK.into());
        }
        // He may have it open otherwise too, and lock by that.
        let opened = host::open(file.as_fd(), OFlags::RDWR).or_else(|_| {
            let flags = rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE;
            host::open(file.as_fd(), flags)
        });
        let file = Arc::new(opened?);
        let owner = Owner {
            file: file.clone(),
            handles: [request.handle].into(),
        };
        self.owners.insert(key, owner);
        Ok(file)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Owner {
    /// A thread that still waits may keep the file open.
    fn unlock(&self) {
        let all = libc::flock {
            l_type: libc::F_UNLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // Without locks there is nothing to fail.
        let _ = fcntl(self.file.as_fd(), FcntlArg::F_OFD_SETLK(&all));
    }
}

impl Wait {
    /// Ends the wait. When this returns, it is over.
    fn cancel(&self) {
        /// The time that the thread has to notice before it is told again.
        const AGAIN: Duration = Duration::from_millis(1);
        self.cancelled.store(true, Ordering::Release);
        // A signal that comes just before the system call has no effect on that: so more than one.
        while !self.thread.is_finished() {
            let _ = self.thread.kill(interruption());
            thread::sleep(AGAIN);
        }
    }
}

impl Done {
    fn results(&self) -> std::sync::MutexGuard<'_, Vec<(u64, io::Result<()>)>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, number: u64, result: io::Result<()>) {
        self.results().push((number, result));
        // It fails only when it has been told 2^64 times.
        let _ = self.event.write(1);
    }
}

/// The signal that ends a system call of a thread that waits.
fn interruption() -> i32 {
    SIGRTMIN() + 1
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// A range as fcntl takes it.
fn range(lock: &FileLock) -> io::Result<libc::flock> {
    let &FileLock {
        start,
        end,
        lock_type,
        ..
    } = lock;
    let known = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK];
    if !known.contains(&(lock_type as i32)) || start > end || end > END {
        return Err(Errno::EINVAL.into());
    }
    Ok(libc::flock {
        l_type: lock_type as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start as i64,
        l_len: match end {
            END => 0,
            _ => (end - start + 1) as i64,
        },
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(&path).unwrap()
        };
        let (holder, file) = (open(), open());
        rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
        let mut locks = Locks::new().unwrap();
        let request = Request {
            inode: 1,
            handle: 1,
            owner: 1,
            flock: true,
            lock: FileLock {
                start: 0,
                end: END,
                lock_type: libc::F_RDLCK as u32,
                pid: 0,
            },
        };
        let mut wait = |unique| locks.wait(unique, &request, &file, true);
        for unique in 0..WAITS_MAX as u64 {
            assert_eq!(wait(unique).unwrap(), Some(unique));
        }
        let error = wait(0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOLCK));
        // Those that are interrupted make room.
        for unique in 0..WAITS_MAX as u64 {
            locks.interrupt(unique);
        }
        let done = locks.done();
        assert_eq!(done.len(), WAITS_MAX);
        for (_, result) in done {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINTR));
        }
        assert_eq!(locks.wait(0, &request, &file, true).unwrap(), Some(64));
    }
}
