// SPDX-License-Identifier: GPL-2.0
//! Memory that the Guest does not use goes back to the Host: a memory balloon (section 5.5 of the specification) that
//! is never blown up. What it is for is that the driver reports free pages, by itself, some seconds after they got free.

mod give_back;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, GuestAddress};

use self::give_back::give_back;
use super::{until_quiet, Device, Fault, Kicked, Served};
use crate::memory::dma::Dma;
use crate::memory::PAGE;

/// The driver reports free pages: `linux:include/uapi/linux/virtio_balloon.h`.
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// The queue of reports. Those before it inflate and deflate the balloon, which nobody asks for.
const REPORTS: usize = 2;

/// The device.
pub struct Balloon;

/// The whole pages in `len` bytes at `start`.
fn pages(start: u64, len: u64) -> Option<(GuestAddress, usize)> {
    let end = start.checked_add(len)? & !(PAGE - 1);
    let start = start.checked_next_multiple_of(PAGE)?;
    let len = usize::try_from(end.checked_sub(start)?).ok()?;
    Some((GuestAddress(start), len))
}

impl Device for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_REPORTING
    }

    /// A report is of 32 ranges at most, says Linux's driver.
    fn queue_sizes(&self) -> &[u16] {
        &[8, 8, 32]
    }

    /// The Host may take its time.
    fn kicked(&self, _: usize) -> Kicked {
        Kicked::Thread
    }

    /// A size of 0, as wished and as it is.
    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn start(&mut self, _: u64) {}

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| {
            let mut used = false;
            while let Some(chain) = queue.iter(memory)?.next() {
                let head = chain.head_index();
                // What the Guest may not want written is not free.
                let reports = chain.writable().filter(|_| index == REPORTS);
                for report in reports {
                    if let Some((start, len)) =
                        pages(report.addr().raw_value(), report.len().into())
                    {
                        give_back(memory, start, len).map_err(Fault::Buffer)?;
                    }
                }
                queue.add_used(memory, head, 0)?;
                used = true;
            }
            Ok((Served { used, then: 0 }, true))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::devices::testing::driver::{Driver, WRITE};

    const AT: u64 = 0x8_0000;

    fn filled() -> Driver {
        let driver = Driver::new(Balloon, 1 << VIRTIO_BALLOON_F_REPORTING);
        let bytes = [7; 4 * PAGE as usize];
        driver.memory.write_slice(&bytes, GuestAddress(AT)).unwrap();
        driver
    }

    /// Which of the four pages have something in them.
    fn left(driver: &Driver) -> [bool; 4] {
        [0, 1, 2, 3].map(|n| {
            let mut bytes = vec![1; PAGE as usize];
            let at = GuestAddress(AT + n * PAGE);
            driver.memory.read_slice(&mut bytes, at).unwrap();
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            bytes[0] != 0
        })
    }

    #[test]
    fn what_is_reported_is_gone() {
        let mut driver = filled();
        driver.descriptor(REPORTS, 0, AT + PAGE, 2 * PAGE as u32, WRITE, 0);
        driver.offer(REPORTS, 0);
        driver.device.process(REPORTS);
        assert_eq!(driver.used(REPORTS), [[0, 0]]);
        assert_eq!(left(&driver), [true, false, false, true]);
    }

    #[test]
    fn parts_of_pages_stay_and_so_does_what_is_not_reported() {
        let mut driver = filled();
        driver.descriptor(REPORTS, 0, AT + 8, 2 * PAGE as u32 - 16, WRITE, 0);
        driver.descriptor(REPORTS, 1, AT + 2 * PAGE, PAGE as u32, 0, 0);
        for head in [0, 1] {
            driver.offer(REPORTS, head);
        }
        // To inflate it, which nobody has asked for.
        driver.descriptor(0, 0, AT + 3 * PAGE, PAGE as u32, WRITE, 0);
        driver.offer(0, 0);
        driver.device.process(REPORTS);
        driver.device.process(0);
        assert_eq!(left(&driver), [true; 4]);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn what_is_no_ram_is_no_report() {
        let mut driver = filled();
        driver.descriptor(REPORTS, 0, 1 << 40, PAGE as u32, WRITE, 0);
        driver.offer(REPORTS, 0);
        driver.device.process(REPORTS);
        assert!(driver.needs_reset());
    }

    proptest! {
        #[test]
        fn whole_pages_only(start: u64, len in 0u64..1 << 33) {
            if let Some((GuestAddress(from), count)) = pages(start, len) {
                prop_assert_eq!((from % PAGE, count as u64 % PAGE), (0, 0));
                prop_assert!(from >= start && from + count as u64 <= start + len);
            }
        }
    }
}
