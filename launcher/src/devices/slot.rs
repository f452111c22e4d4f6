// SPDX-License-Identifier: GPL-2.0
//! The place of a device, by its number: its window, its line, and how Linux hears of both.

#![forbid(unsafe_code)]

use lguest_abi::LGUEST_LINES;
use linux_loader::cmdline::{self, Cmdline};
use vm_memory::GuestAddress;

use crate::memory::{DEVICES, DEVICE_SIZE};
use crate::report::codes::Code;
use crate::report::Explain;

/// Interrupts 0 to 15 of Linux are the PC's own; the Launcher's lines follow.
const LINUX_IRQ_OF_LINE_0: u32 = 16;

/// There are no lines for so many.
#[derive(Debug, thiserror::Error)]
#[error("there are more than {0} devices")]
pub struct TooManyDevices(u32);

impl Explain for TooManyDevices {
    fn code(&self) -> Code {
        Code::TooManyDevices
    }

    fn why(&self) -> String {
        "each has an interrupt of its own, and there are no more".into()
    }

    fn fix(&self) -> String {
        "leave out some of --disk and --share".into()
    }
}

/// The place of a device. A device has the line of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    /// That of device `number`.
    ///
    /// # Errors
    ///
    /// There are no more.
    pub fn new(number: usize) -> Result<Self, TooManyDevices> {
        let line = u32::try_from(number).ok();
        line.filter(|&line| line < LGUEST_LINES)
            .map(Self)
            .ok_or(TooManyDevices(LGUEST_LINES))
    }

    /// The device's number on a PCI bus.
    ///
    /// # Errors
    ///
    /// There is no room for so many on one.
    pub fn on_bus(self) -> Result<u8, TooManyDevices> {
        const BUS_MAX: u32 = 32;
        match self.0 < BUS_MAX {
            true => Ok(self.0 as u8),
            false => Err(TooManyDevices(BUS_MAX)),
        }
    }

    /// The GPA of its registers.
    pub fn window(self) -> u64 {
        DEVICES + u64::from(self.0) * DEVICE_SIZE
    }

    /// The interrupt line.
    pub fn line(self) -> u32 {
        self.0
    }

    /// Linux's number of its interrupt.
    pub fn irq(self) -> u32 {
        LINUX_IRQ_OF_LINE_0 + self.0
    }

    /// The number of the device whose window `gpa` is in, if there are so many, and the offset there.
    pub fn at(gpa: u64) -> Option<(usize, u64)> {
        let offset = gpa.checked_sub(DEVICES)?;
        let number = usize::try_from(offset / DEVICE_SIZE).ok()?;
        Some((number, offset % DEVICE_SIZE))
    }

    /// Tells Linux of the device, on its command line.
    ///
    /// # Errors
    ///
    /// The line has no room for it.
    pub fn announce(self, line: &mut Cmdline) -> cmdline::Result<()> {
        line.add_virtio_mmio_device(DEVICE_SIZE, GuestAddress(self.window()), self.irq(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements() {
        let mut line = Cmdline::new(100).unwrap();
        for number in 0..2 {
            Slot::new(number).unwrap().announce(&mut line).unwrap();
        }
        assert_eq!(
            line.as_cstring().unwrap().as_c_str(),
            c"virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17"
        );
    }
}
