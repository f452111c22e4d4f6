// SPDX-License-Identifier: GPL-2.0
//! Rings of requests and responses, as Xen's devices have them (io/ring.h of Xen): a page with four indices, and behind them
//! slots, in which a response takes the place of a request.
//!
//! The indices run freely, and the kernel can store anything in all of them. Ours are kept here, and only told; of the
//! kernel's, one that is too far ahead breaks the ring. A slot is copied once.

use std::sync::atomic::{fence, Ordering};

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::xen::ring::Broken;

/// Offsets of the indices: of requests that the kernel has added, of that for which it calls us; the same of responses.
const REQUESTS: u64 = 0;
const REQUEST_EVENT: u64 = 4;
const RESPONSES: u64 = 8;
const RESPONSE_EVENT: u64 = 12;
/// Offset of the first slot.
const SLOTS: u64 = 64;

/// A ring of slots of `SIZE` bytes.
pub struct Slots<const SIZE: usize> {
    memory: Memory,
    page: u64,
    /// Requests that were taken, and responses: those that are there, and those that the kernel has been told of.
    taken: u32,
    answered: u32,
    told: u32,
}

impl<const SIZE: usize> Slots<SIZE> {
    /// The number of slots: as many as a page has room for, down to a power of 2.
    pub const COUNT: u32 = 1 << ((4096 - SLOTS as u32) / SIZE as u32).ilog2();

    /// That in the page at GPA `page` of `memory`, with nothing in it.
    pub fn new(memory: Memory, page: u64) -> Self {
        let (taken, answered, told) = (0, 0, 0);
        Self {
            memory,
            page,
            taken,
            answered,
            told,
        }
    }

    /// Takes a request, if there is one. If there is none, the kernel calls when there is.
    ///
    /// # Errors
    ///
    /// The kernel has broken the ring.
    pub fn take(&mut self) -> Result<Option<[u8; SIZE]>, Broken> {
        if self.waiting()? == 0 {
            self.memory.store(
                self.taken.wrapping_add(1),
                self.at(REQUEST_EVENT),
                Ordering::SeqCst,
            )?;
            // It may have looked whether to call before it could see this.
            fence(Ordering::SeqCst);
            if self.waiting()? == 0 {
                return Ok(None);
            }
        }
        let mut request = [0; SIZE];
        self.memory
            .read_slice(&mut request, self.slot(self.taken))?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(request))
    }

    /// Adds a response to one of the requests that were taken.
    ///
    /// # Errors
    ///
    /// The ring is not in RAM.
    pub fn answer(&mut self, response: &[u8]) -> Result<(), Broken> {
        assert!(
            self.answered != self.taken,
            "there is a request for each response"
        );
        self.memory
            .write_slice(response, self.slot(self.answered))?;
        self.answered = self.answered.wrapping_add(1);
        Ok(())
    }

    /// Tells the kernel of all responses. Returns whether it wants to be called.
    ///
    /// # Errors
    ///
    /// The ring is not in RAM.
    pub fn tell(&mut self) -> Result<bool, Broken> {
        let new = self.answered.wrapping_sub(self.told);
        self.memory
            .store(self.answered, self.at(RESPONSES), Ordering::SeqCst)?;
        fence(Ordering::SeqCst);
        let event: u32 = self
            .memory
            .load(self.at(RESPONSE_EVENT), Ordering::SeqCst)?;
        self.told = self.answered;
        Ok(self.answered.wrapping_sub(event) < new)
    }

    /// The number of requests that were not taken.
    fn waiting(&self) -> Result<u32, Broken> {
        let added: u32 = self.memory.load(self.at(REQUESTS), Ordering::SeqCst)?;
        let held = added.wrapping_sub(self.answered);
        match held <= Self::COUNT && held >= self.taken.wrapping_sub(self.answered) {
            true => Ok(added.wrapping_sub(self.taken)),
            false => Err(Broken::Indices {
                size: Self::COUNT,
                held,
            }),
        }
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.page + offset)
    }

    fn slot(&self, index: u32) -> GuestAddress {
        self.at(SLOTS + u64::from(index % Self::COUNT) * SIZE as u64)
    }
}
