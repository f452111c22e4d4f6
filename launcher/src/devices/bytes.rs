// SPDX-License-Identifier: GPL-2.0
//! Bytes from our side to buffers of a driver, and from there to our side.
//!
//! What goes to the Guest waits in an [`Input`], which is shared with the thread that reads it:
//! that thread must never wait for the Guest, or the user could not leave a Guest that hangs.
//! What comes from the Guest waits in an [`Outlet`], which is shared with the thread that writes it:
//! a reader that does not read must stop who writes to it, and neither the vCPU nor other streams.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::Fault;
use crate::memory::dma::Dma;

/// Bytes on their way to the Guest.
#[derive(Default)]
pub struct Input {
    state: Mutex<InputState>,
    taken: Condvar,
}

#[derive(Default)]
struct InputState {
    waiting: VecDeque<u8>,
    ended: bool,
    wanted: bool,
}

impl Input {
    /// The most bytes that wait.
    pub const CAPACITY: usize = 1 << 16;

    /// Adds as many of `bytes` as there is room for, and tells how many.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let waiting = &mut self.state.lock().unwrap().waiting;
        let count = bytes.len().min(Self::CAPACITY - waiting.len());
        waiting.extend(&bytes[..count]);
        count
    }

    /// There will be no more.
    pub fn end(&self) {
        self.state.lock().unwrap().ended = true;
    }

    /// A program in the Guest is there to take it.
    pub(super) fn want(&self) {
        self.state.lock().unwrap().wanted = true;
        self.taken.notify_all();
    }

    /// Waits until somebody in the Guest is there to take it.
    pub fn wait_until_wanted(&self) {
        let unwanted = |state: &mut InputState| !state.wanted;
        drop(self.taken.wait_while(self.state.lock().unwrap(), unwanted));
    }

    /// Does nothing wait?
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().unwrap().waiting.is_empty()
    }

    /// Does nothing wait, and will there be no more?
    pub(super) fn is_at_end(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.ended && state.waiting.is_empty()
    }

    /// Takes at most `count` of the bytes that wait. Who takes them is there for more.
    pub fn take(&self, count: usize) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        let count = count.min(state.waiting.len());
        let bytes = state.waiting.drain(..count).collect();
        state.wanted = true;
        self.taken.notify_all();
        bytes
    }

    /// Moves what waits into buffers of `queue`, as long as there are both. Tells whether any were
    /// used.
    pub(super) fn fill(&self, queue: &mut Queue, memory: &Dma) -> Result<bool, Fault> {
        let waiting = &mut self.state.lock().unwrap().waiting;
        let mut used = false;
        while !waiting.is_empty() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let mut writer = chain.writer(memory)?;
            let (front, _) = waiting.as_slices();
            let count = writer.available_bytes().min(front.len());
            writer.write_all(&front[..count]).map_err(Fault::Buffer)?;
            waiting.drain(..count);
            queue.add_used(memory, head, count as u32)?;
            used = true;
        }
        self.taken.notify_all();
        Ok(used)
    }

    /// Waits until there is room.
    pub fn wait(&self) {
        let full = |state: &mut InputState| state.waiting.len() == Self::CAPACITY;
        drop(self.taken.wait_while(self.state.lock().unwrap(), full));
    }
}

/// Bytes on their way from the Guest.
pub struct Outlet {
    state: Mutex<OutletState>,
    changed: Condvar,
}

struct OutletState {
    waiting: VecDeque<u8>,
    /// So many bytes are taken out of here, and not written yet.
    in_flight: usize,
    /// The Guest's have to wait when so many wait here.
    limit: usize,
    /// Nobody takes them any more.
    closed: bool,
    /// So many threads wait for a change. To wake nobody is a system call, too.
    waiters: usize,
}

impl OutletState {
    fn pending(&self) -> usize {
        self.waiting.len() + self.in_flight
    }

    fn is_full(&self) -> bool {
        !self.closed && self.pending() >= self.limit
    }
}

impl Default for Outlet {
    fn default() -> Self {
        Self {
            state: Mutex::new(OutletState {
                waiting: VecDeque::new(),
                in_flight: 0,
                limit: Self::LIMIT,
                closed: false,
                waiters: 0,
            }),
            changed: Condvar::new(),
        }
    }
}

impl Outlet {
    /// The number of waiting bytes from which on the Guest's have to wait too.
    const LIMIT: usize = 1 << 16;
    /// The same for what is still to come when the command has ended: more than all the pipes and
    /// queues on the way hold.
    const LAST_LIMIT: usize = 4 << 20;
    /// As much as is written at a time.
    const CHUNK: usize = 1 << 16;
    /// No driver has a reason to put more into one chain.
    const CHAIN_MAX: usize = 1 << 20;

    fn state(&self) -> MutexGuard<'_, OutletState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `bytes`, however many wait.
    pub fn add(&self, bytes: &[u8]) {
        let mut state = self.state();
        if !state.closed {
            state.waiting.extend(bytes);
            self.tell(&state);
        }
    }

    /// Something has changed.
    fn tell(&self, state: &OutletState) {
        if state.waiters != 0 {
            self.changed.notify_all();
        }
    }

    /// Waits as long as `condition` holds.
    fn wait_while(&self, condition: impl Fn(&OutletState) -> bool) -> MutexGuard<'_, OutletState> {
        let mut state = self.state();
        while condition(&state) {
            state.waiters += 1;
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            state.waiters -= 1;
        }
        state
    }

    /// Adds `bytes` if there is room, and tells whether there was.
    pub fn offer(&self, bytes: &[u8]) -> bool {
        let has_room = self.has_room();
        if has_room {
            self.add(bytes);
        }
        has_room
    }

    /// Adds `bytes` when there is room, and waits for it.
    pub fn add_patiently(&self, bytes: &[u8]) {
        drop(self.wait_while(OutletState::is_full));
        self.add(bytes);
    }

    /// Who is in the Guest may write more.
    pub fn has_room(&self) -> bool {
        !self.state().is_full()
    }

    /// All that the Guest has on the way is to come here, for it is about to end.
    pub fn take_all(&self) {
        let mut state = self.state();
        state.limit = Self::LAST_LIMIT;
        self.tell(&state);
    }

    /// Nobody takes anything any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Is what comes the last, for the command has ended?
    pub fn has_last(&self) -> bool {
        self.state().limit == Self::LAST_LIMIT
    }

    /// The number of bytes that are not written yet.
    pub fn pending(&self) -> usize {
        self.state().pending()
    }

    /// Waits for bytes, takes some and gives them to `write`, for ever, and calls `on_room` when a
    /// Guest that had to wait may go on. A failure of `write` closes this.
    pub fn empty(
        &self,
        mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
        on_room: impl Fn(),
    ) -> std::io::Error {
        loop {
            let mut state = self.wait_while(|state| state.waiting.is_empty());
            let count = state.waiting.len().min(Self::CHUNK);
            let bytes: Vec<u8> = state.waiting.drain(..count).collect();
            state.in_flight = count;
            drop(state);
            let result = write(&bytes);
            let mut state = self.state();
            // Only a Guest that found it so has to wait.
            let was_full = state.is_full();
            state.in_flight = 0;
            if result.is_err() {
                state.closed = true;
                state.waiting.clear();
            }
            self.tell(&state);
            drop(state);
            if was_full || result.is_err() {
                on_room();
            }
            if let Err(error) = result {
                return error;
            }
        }
    }

    /// Waits until all is written; with `patience`, only as long as there is progress in such a time.
    /// Tells whether it is.
    pub fn wait(&self, patience: Option<Duration>) -> bool {
        let mut state = self.state();
        while state.pending() != 0 {
            let before = state.pending();
            state.waiters += 1;
            let woken = (self.changed).wait_timeout(state, patience.unwrap_or(Duration::MAX));
            let (after, time) = woken.unwrap_or_else(PoisonError::into_inner);
            state = after;
            state.waiters -= 1;
            if patience.is_some() && time.timed_out() && state.pending() == before {
                return false;
            }
        }
        true
    }

    /// Takes what is in the buffers of `queue`, as long as there is room. Tells whether any were used.
    pub(super) fn fill(&self, queue: &mut Queue, memory: &Dma) -> Result<bool, Fault> {
        let mut used = false;
        while self.has_room() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let mut reader = chain.reader(memory)?;
            let length = reader.available_bytes();
            if length > Self::CHAIN_MAX {
                return Err(Fault::LongPacket(length.try_into().unwrap_or(u32::MAX)));
            }
            let mut bytes = vec![0; length];
            reader.read_exact(&mut bytes).map_err(Fault::Buffer)?;
            self.add(&bytes);
            queue.add_used(memory, head, 0)?;
            used = true;
        }
        Ok(used)
    }
}

/// Takes what the Guest writes.
pub type Output = Box<dyn FnMut(&[u8]) + Send>;

/// Gives what is in the buffers of `queue` to `output`. Tells whether there were any.
pub(super) fn drain(
    output: &mut dyn FnMut(&[u8]),
    queue: &mut Queue,
    memory: &Dma,
) -> Result<bool, Fault> {
    let mut used = false;
    let mut buffer = [0; 4096];
    while let Some(chain) = queue.iter(memory)?.next() {
        let head = chain.head_index();
        let mut reader = chain.reader(memory)?;
        while reader.available_bytes() != 0 {
            let count = reader.available_bytes().min(buffer.len());
            reader
                .read_exact(&mut buffer[..count])
                .map_err(Fault::Buffer)?;
            output(&buffer[..count]);
        }
        queue.add_used(memory, head, 0)?;
        used = true;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_has_a_limit() {
        let input = Input::default();
        assert_eq!(input.offer(&[0; Input::CAPACITY - 1]), Input::CAPACITY - 1);
        assert_eq!(input.offer(b"abc"), 1);
        assert_eq!(input.offer(b"abc"), 0);
    }
}
