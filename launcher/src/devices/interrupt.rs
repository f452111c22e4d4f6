// SPDX-License-Identifier: GPL-2.0
//! A device's interrupt: the reasons for it, and the way out.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// The cause of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The configuration space has changed.
    Config,
    /// Buffers of this queue were used.
    Queue(usize),
}

/// A device's interrupt: the reasons for it, and the way out.
pub struct Interrupt {
    reasons: AtomicU32,
    pub(super) generation: AtomicU32,
    raise: Box<dyn Fn(Cause) + Send + Sync>,
}

impl Interrupt {
    /// An interrupt that `raise` raises.
    pub fn new(raise: impl Fn(Cause) + Send + Sync + 'static) -> Self {
        Self {
            reasons: AtomicU32::new(0),
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

    fn send(&self, reason: u32, cause: Cause) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        (self.raise)(cause);
    }
}
