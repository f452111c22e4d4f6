// SPDX-License-Identifier: GPL-2.0
//! All devices of a machine: their windows, their lines, and the thread that serves their queues.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::error::Error;
use crate::memory::{DEVICES, DEVICE_SIZE};
use crate::virtio::mmio::Mmio;
use crate::vm::Vm;

/// Interrupts 0 to 15 of Linux are the PC's own; the Launcher's lines follow.
const LINUX_IRQ_OF_LINE_0: u64 = 16;

/// The devices, each at its number.
#[derive(Clone, Default)]
pub struct Devices(Vec<Arc<Mutex<Mmio>>>);

impl Devices {
    /// The number of the console.
    pub const CONSOLE: usize = 0;
    /// The number of the ports for standard streams, which are there when there are any.
    pub const PORTS: usize = 1;

    /// Adds a device. Its interrupt must go to the line of its number, which is the count of the
    /// devices before it.
    pub fn add(&mut self, device: Mmio) {
        self.0.push(Arc::new(Mutex::new(device)));
    }

    /// Tells `vm` where the queues' kicks go.
    pub fn connect(&self, vm: &Vm) -> Result<(), Error> {
        for (number, device) in self.0.iter().enumerate() {
            let register = Self::window(number) + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
            let device = device.lock().unwrap();
            for index in 0..device.queue_count() {
                if let Some(kick) = device.kick(index) {
                    vm.set_kick(register, index as u32, kick)?;
                }
            }
        }
        Ok(())
    }

    /// The GPA of the window of device `number`.
    pub fn window(number: usize) -> u64 {
        DEVICES + number as u64 * DEVICE_SIZE
    }

    /// How Linux is told of device `number`: an argument for its command line.
    pub fn announcement(number: usize) -> String {
        let irq = LINUX_IRQ_OF_LINE_0 + number as u64;
        format!("virtio_mmio.device=4K@{:#x}:{irq}", Self::window(number))
    }

    /// The device whose window `gpa` is in, and the offset there.
    pub fn at(&self, gpa: u64) -> Option<(&Mutex<Mmio>, u64)> {
        let offset = gpa.checked_sub(DEVICES)?;
        let device = self.0.get(usize::try_from(offset / DEVICE_SIZE).ok()?)?;
        Some((device, offset % DEVICE_SIZE))
    }

    /// Serves the queues that have eventfds, for ever: waits for those, and does what is to be
    /// done.
    pub fn serve(&self) -> io::Result<()> {
        let epoll = Epoll::new()?;
        let mut queues = Vec::new();
        for device in &self.0 {
            let guard = device.lock().unwrap();
            for index in 0..guard.queue_count() {
                if let Some(kick) = guard.kick(index) {
                    let event = EpollEvent::new(EventSet::IN, queues.len() as u64);
                    epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), event)?;
                    queues.push((device, index, kick.clone()));
                }
            }
        }
        let mut events = vec![EpollEvent::default(); queues.len()];
        loop {
            let count = match epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                result => result?,
            };
            for event in &events[..count] {
                let (device, index, kick) = &queues[event.data() as usize];
                // The count does not matter: one visit serves all that is there.
                let _ = kick.read();
                device.lock().unwrap().process(*index);
            }
        }
    }

    /// Serves every queue once, so that nothing that the Guest has put there is lost.
    pub fn drain(&self) {
        for device in &self.0 {
            let mut device = device.lock().unwrap();
            for index in 0..device.queue_count() {
                device.process(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::console::Console;
    use crate::virtio::Interrupt;

    fn two() -> Devices {
        let memory = crate::memory::create(4 << 20).unwrap();
        let mut devices = Devices::default();
        for _ in 0..2 {
            let console = Console::new(Arc::default(), None, Box::new(|_| {}));
            let interrupt = Arc::new(Interrupt::new(|| {}));
            devices
                .add(Mmio::new(Box::new(console), memory.clone(), interrupt, |_, _| {}).unwrap());
        }
        devices
    }

    #[test]
    fn windows() {
        let devices = two();
        let offset = |gpa| devices.at(gpa).map(|(_, offset)| offset);
        assert_eq!(offset(0xd000_0000), Some(0));
        assert_eq!(offset(0xd000_1ffc), Some(0xffc));
        assert_eq!(offset(0xd000_2000), None);
        assert_eq!(offset(0xcfff_ffff), None);
        assert_eq!(offset(u64::MAX), None);
    }

    #[test]
    fn announcement() {
        assert_eq!(
            Devices::announcement(1),
            "virtio_mmio.device=4K@0xd0001000:17"
        );
    }
}
