// SPDX-License-Identifier: GPL-2.0
//! Random numbers: an entropy device (section 5.4 of the specification), which fills buffers from
//! the Host's getrandom.

use std::io::{self, Write};

use rustix::rand::{getrandom, GetRandomFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{until_quiet, Device, Fault, Kicked, Served};
use crate::memory::dma::Dma;

/// A buffer gets this much at most, whatever its length: a driver that wants more asks again, and
/// has not kept the device busy for seconds with one descriptor.
const AT_ONCE: usize = 4096;

/// The device.
pub struct Rng;

/// Fills `random` by the system call: in the sandbox there is no /dev/urandom to fall back to.
fn fill(random: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < random.len() {
        filled += getrandom(&mut random[filled..], GetRandomFlags::empty())?;
    }
    Ok(())
}

impl Device for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    /// The Host's numbers are there at once.
    fn kicked(&self, _: usize) -> Kicked {
        Kicked::Vcpu
    }

    /// There is no configuration space.
    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn start(&mut self, _: u64) {}

    fn serve(&mut self, _: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| {
            let mut used = false;
            while let Some(chain) = queue.iter(memory)?.next() {
                let head = chain.head_index();
                let mut random = [0; AT_ONCE];
                let mut writer = chain.writer(memory)?;
                let count = writer.available_bytes().min(AT_ONCE);
                fill(&mut random[..count]).map_err(Fault::Host)?;
                writer.write_all(&random[..count]).map_err(Fault::Buffer)?;
                queue.add_used(memory, head, count as u32)?;
                used = true;
            }
            Ok((Served { used, then: 0 }, true))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::testing::driver::{Driver, SIZE, WRITE};

    #[test]
    fn buffers_are_filled_and_differ() {
        for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
            let mut driver = Driver::new(Rng, features);
            driver.give(0);
            driver.give(0);
            driver.device.process(0);
            assert!(driver.interrupted());
            let [first, second] = &driver.filled(0)[..] else {
                panic!("two buffers were given");
            };
            assert_eq!((first.len(), second.len()), (0x100, 0x100));
            assert_ne!(first, second);
            assert_ne!(*first, [0; 0x100]);
        }
    }

    #[test]
    fn a_large_buffer_gets_a_part() {
        let mut driver = Driver::new(Rng, 0);
        driver.descriptor(0, 0, 0x8_0000, 0x4_0000, WRITE, 0);
        driver.offer(0, 0);
        driver.device.process(0);
        assert_eq!(driver.used(0), [[0, AT_ONCE as u32]]);
        let beyond: [u8; 16] = driver
            .memory
            .read_obj(GuestAddress(0x8_0000 + AT_ONCE as u64))
            .unwrap();
        assert_eq!(beyond, [0; 16]);
    }

    #[test]
    fn what_the_driver_may_not_have_written_stays() {
        let mut driver = Driver::new(Rng, 0);
        driver.send(0, b"read only");
        assert_eq!(driver.used(0), [[0, 0]]);
        assert!(!driver.needs_reset());
    }

    proptest! {
        /// Random descriptors: no panic, and an end.
        #[test]
        fn hostile_rings(
            descriptors in prop::collection::vec(
                (any::<u64>(), any::<u32>(), 0u16..8, 0u16..80), 1..64,
            ),
            small in any::<bool>(),
            heads in prop::collection::vec(0u16..80, 1..64),
            available in prop_oneof![0..SIZE, any::<u16>()],
        ) {
            let mut driver = Driver::new(Rng, 0);
            for (slot, &(gpa, length, flags, next)) in descriptors.iter().enumerate() {
                let (gpa, length) = if small {
                    (gpa % (1 << 21), length % 0x3000)
                } else {
                    (gpa, length)
                };
                driver.descriptor(0, slot as u16, gpa, length, flags, next);
            }
            for &head in &heads {
                driver.offer(0, head);
            }
            let at = driver.rings[0].available() + 2;
            driver.memory.write_obj(available, GuestAddress(at)).unwrap();
            driver.device.process(0);
        }
    }
}
