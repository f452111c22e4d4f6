// SPDX-License-Identifier: GPL-2.0
//! A device's interrupt: the reasons for it, and the way out.
//!
//! A driver of virtio-mmio asks for the reasons by a load from one register, and acknowledges them by a store to
//! another (section 4.2.2 of the specification). For a Guest of lg each is an exit to the Launcher, and there are two of
//! them at every interrupt. So a driver that knows lg names a word of its memory, and the reasons are put there: it
//! takes them by one exchange, without an exit.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vm_memory::{GuestAddress, GuestMemory, VolatileMemory};

use crate::memory::Memory;

/// The cause of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The configuration space has changed.
    Config,
    /// Buffers of this queue were used.
    Queue(usize),
}

/// A word of the Guest's RAM that takes the reasons.
struct Word {
    memory: Memory,
    gpa: GuestAddress,
}

impl Word {
    /// Adds `reasons` to those that are there; `None` where no RAM is, or the word is not aligned.
    fn add(&self, reasons: u32) -> Option<()> {
        let word = self.memory.get_slice(self.gpa, size_of::<u32>()).ok()?;
        let word = word.get_atomic_ref::<AtomicU32>(0).ok()?;
        word.fetch_or(reasons, Ordering::SeqCst);
        Some(())
    }
}

/// A device's interrupt: the reasons for it, and the way out.
pub struct Interrupt {
    reasons: AtomicU32,
    word: Mutex<Option<Word>>,
    pub(super) generation: AtomicU32,
    raise: Box<dyn Fn(Cause) + Send + Sync>,
}

impl Interrupt {
    /// An interrupt that `raise` raises.
    pub fn new(raise: impl Fn(Cause) + Send + Sync + 'static) -> Self {
        Self {
            reasons: AtomicU32::new(0),
            word: Mutex::new(None),
            generation: AtomicU32::new(0),
            raise: Box::new(raise),
        }
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.send(VIRTIO_MMIO_INT_CONFIG, Cause::Config);
    }

    /// The reasons that the driver has not acknowledged.
    pub(super) fn reasons(&self) -> u32 {
        self.reasons.load(Ordering::SeqCst)
    }

    /// The driver acknowledges these reasons.
    pub(super) fn acknowledge(&self, reasons: u32) {
        self.reasons.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// The driver hears the reasons, and acknowledges them with that.
    pub(super) fn take(&self) -> u32 {
        self.reasons.swap(0, Ordering::SeqCst)
    }

    /// Tells the driver that buffers of queue `index` were used.
    pub(super) fn buffers_used(&self, index: usize) {
        self.send(VIRTIO_MMIO_INT_VRING, Cause::Queue(index));
    }

    /// From now on the reasons go to the word at `gpa` of `memory`, those included that wait for the driver. At 0, and
    /// where no word can be, they go to the register.
    pub(super) fn tell_at(&self, memory: &Memory, gpa: u64) {
        let mut word = self.word();
        *word = None;
        let new = Word {
            memory: memory.clone(),
            gpa: GuestAddress(gpa),
        };
        if gpa != 0 && new.add(self.reasons()).is_some() {
            self.reasons.store(0, Ordering::SeqCst);
            *word = Some(new);
        }
    }

    /// The GPA of the word that takes the reasons; 0 if the register does.
    pub(super) fn told_at(&self) -> u64 {
        self.word().as_ref().map_or(0, |word| word.gpa.0)
    }

    /// The driver is gone: no reason is left, and further ones go to the register.
    pub(super) fn reset(&self) {
        *self.word() = None;
        self.acknowledge(u32::MAX);
    }

    /// Whoever holds this is alone in changing where the reasons go, and in adding one.
    fn word(&self) -> MutexGuard<'_, Option<Word>> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, reason: u32, cause: Cause) {
        let word = self.word();
        if word.as_ref().and_then(|word| word.add(reason)).is_none() {
            self.reasons.fetch_or(reason, Ordering::SeqCst);
        }
        drop(word);
        (self.raise)(cause);
    }
}
