// SPDX-License-Identifier: GPL-2.0
//! Bytes from our side to buffers of a driver, and from there to our side.
//!
//! What goes to the Guest waits in an [`Input`], which is shared with the thread that reads it:
//! that thread must never wait for the Guest, or the user could not leave a Guest that hangs.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::{Condvar, Mutex};

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::Fault;
use crate::memory::Memory;

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
}

impl Input {
    /// How many bytes wait at most.
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

    /// Does nothing wait?
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().unwrap().waiting.is_empty()
    }

    /// Does nothing wait, and will there be no more?
    pub(super) fn is_at_end(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.ended && state.waiting.is_empty()
    }

    /// Moves what waits into buffers of `queue`, as long as there are both. Tells whether any were
    /// used.
    pub(super) fn fill(&self, queue: &mut Queue, memory: &Memory) -> Result<bool, Fault> {
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

/// Takes what the Guest writes.
pub type Output = Box<dyn FnMut(&[u8]) + Send>;

/// Gives what is in the buffers of `queue` to `output`. Tells whether there were any.
pub(super) fn drain(
    output: &mut dyn FnMut(&[u8]),
    queue: &mut Queue,
    memory: &Memory,
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
