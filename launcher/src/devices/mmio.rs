// SPDX-License-Identifier: GPL-2.0
//! The MMIO transport, version 2: a page of registers (section 4.2 of the specification).

use std::sync::Arc;

use lguest_abi::{LGUEST_MMIO_REASONS_HIGH, LGUEST_MMIO_REASONS_LOW};
use virtio_bindings::virtio_mmio::*;
use virtio_queue::QueueT;

use super::virtio::{State, Virtio};
use super::Window;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// "lg", a vendor that nobody has registered.
const VENDOR: u32 = u32::from_le_bytes(*b"lg\0\0");

/// A device behind its registers.
pub struct Mmio(Arc<Virtio>);

impl Mmio {
    /// Puts `device` behind registers.
    pub fn new(device: Arc<Virtio>) -> Self {
        Self(device)
    }
}

impl Window for Mmio {
    fn load(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.0.state().device.read_config(offset, data);
        } else if let Some(offset) = register(offset, data.len()) {
            let value = match offset {
                VIRTIO_MMIO_INTERRUPT_STATUS => self.0.interrupt().reasons(),
                LGUEST_MMIO_REASONS_LOW => self.0.interrupt().told_at() as u32,
                LGUEST_MMIO_REASONS_HIGH => (self.0.interrupt().told_at() >> 32) as u32,
                _ => load(&self.0.state(), offset),
            };
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn store(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = register(offset, data.len()) {
            let value = data.try_into().expect("a register has four bytes");
            match (offset, u32::from_le_bytes(value)) {
                (VIRTIO_MMIO_INTERRUPT_ACK, value) => self.0.interrupt().acknowledge(value),
                (VIRTIO_MMIO_QUEUE_NOTIFY, value) => self.0.notify(value.into()),
                (offset, value) => store(&mut self.0.state(), offset, value),
            }
        }
    }
}

fn load(state: &State, offset: u32) -> u32 {
    match offset {
        VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
        VIRTIO_MMIO_VERSION => VERSION,
        VIRTIO_MMIO_DEVICE_ID => state.device.device_type(),
        VIRTIO_MMIO_VENDOR_ID => VENDOR,
        VIRTIO_MMIO_DEVICE_FEATURES => state.offered_half(),
        VIRTIO_MMIO_QUEUE_NUM_MAX => state.queue().map_or(0, |queue| queue.max_size().into()),
        VIRTIO_MMIO_QUEUE_READY => state.queue().map_or(0, |queue| queue.ready().into()),
        VIRTIO_MMIO_STATUS => state.status(),
        VIRTIO_MMIO_CONFIG_GENERATION => state.generation(),
        // There is no shared memory: its size is all ones.
        VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
        _ => 0,
    }
}

fn store(state: &mut State, offset: u32, value: u32) {
    match offset {
        VIRTIO_MMIO_DEVICE_FEATURES_SEL => state.device_features_sel = value,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL => state.driver_features_sel = value,
        VIRTIO_MMIO_DRIVER_FEATURES => state.accept_half(value),
        VIRTIO_MMIO_QUEUE_SEL => state.queue_sel = value,
        LGUEST_MMIO_REASONS_LOW => state.reasons_low = value,
        LGUEST_MMIO_REASONS_HIGH => state.tell_reasons_at(value),
        VIRTIO_MMIO_STATUS => state.set_status(value),
        VIRTIO_MMIO_QUEUE_READY => state.set_ready(value == 1),
        _ => state.set_up(|queue| match offset {
            // A value that cannot be leaves the queue as it is.
            VIRTIO_MMIO_QUEUE_NUM => {
                let _ = u16::try_from(value).map(|size| queue.try_set_size(size));
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }),
    }
}

/// A register is loaded and stored as a whole; `None` for anything else.
fn register(offset: u64, size: usize) -> Option<u32> {
    let whole = offset % 4 == 0 && size == 4 && offset < VIRTIO_MMIO_CONFIG.into();
    whole.then_some(offset as u32)
}

#[cfg(test)]
mod tests;
