// SPDX-License-Identifier: GPL-2.0
//! Events for the kernel: bits that the shim turns into event channels, and the line by which it looks.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemory, VolatileMemory};
use xen_abi::handover::{PIRQS, PORTS};

use crate::memory::Memory;

/// The way of all events.
pub struct Events {
    memory: Memory,
    /// [`xen_abi::handover::Raised`].
    raised: GuestAddress,
    pull: Box<dyn Fn() + Send + Sync>,
}

/// The bits of the physical interrupts are behind those of the ports.
const PIRQS_AT: u64 = PORTS as u64 / 8;

impl Events {
    /// Events by the page at GPA `raised` of `memory`; `pull` pulls the shim's line.
    pub fn new(memory: Memory, raised: u64, pull: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            memory,
            raised: GuestAddress(raised),
            pull: Box::new(pull),
        }
    }

    /// Raises a port. One that does not exist is the kernel's mistake.
    pub fn port(&self, port: u32) {
        if (port as usize) < PORTS {
            self.set(0, port);
        }
    }

    /// Raises a physical interrupt.
    pub fn pirq(&self, pirq: u32) {
        if (pirq as usize) < PIRQS {
            self.set(PIRQS_AT, pirq);
        }
    }

    /// Sets bit `bit` of those at `offset`. A bit that is set already has not been seen, and whoever takes it
    /// sees all that came before this call.
    fn set(&self, offset: u64, bit: u32) {
        let place = self.raised.0 + offset + u64::from(bit / 64) * 8;
        let slice = self.memory.get_slice(GuestAddress(place), 8);
        let word = slice
            .as_ref()
            .map(|slice| slice.get_atomic_ref::<AtomicU64>(0));
        // The page is the Launcher's to choose, in memory that it has made.
        if let Ok(Ok(word)) = word {
            word.fetch_or(1 << (bit % 64), Ordering::SeqCst);
            (self.pull)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::Arc;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn bits_and_the_line() {
        let memory = crate::memory::create(1 << 20).unwrap();
        let pulls = Arc::new(AtomicU32::new(0));
        let pulled = pulls.clone();
        let events = Events::new(memory.clone(), 0x3000, move || {
            pulled.fetch_add(1, Ordering::SeqCst);
        });
        let word = |index: u64| {
            memory
                .read_obj::<u64>(GuestAddress(0x3000 + 8 * index))
                .unwrap()
        };
        events.port(1);
        events.port(65);
        events.port(4095);
        events.pirq(0);
        events.pirq(255);
        assert_eq!([word(0), word(1), word(63)], [2, 2, 1 << 63]);
        assert_eq!([word(64), word(67)], [1, 1 << 63]);
        assert_eq!(pulls.load(Ordering::SeqCst), 5);
        for port in [4096, u32::MAX] {
            events.port(port);
        }
        for pirq in [256, u32::MAX] {
            events.pirq(pirq);
        }
        assert_eq!(pulls.load(Ordering::SeqCst), 5, "nothing is there");
    }
}
