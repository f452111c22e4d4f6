// SPDX-License-Identifier: GPL-2.0
//! All devices of a machine: their windows, their lines, and the loop that serves the queues of one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use lguest_abi::LGUEST_LINES;
use linux_loader::cmdline::{self, Cmdline};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::devices::mmio::Mmio;
use crate::devices::{Device, Fault, Interrupt, Source};
use crate::machine::module::Vm;
use crate::memory::{Memory, DEVICES, DEVICE_SIZE};
use crate::report::codes::Code;
use crate::report::system::setup;
use crate::report::{Error, Explain};
use crate::session::terminal::say;

/// Interrupts 0 to 15 of Linux are the PC's own; the Launcher's lines follow.
pub const LINUX_IRQ_OF_LINE_0: u32 = 16;

/// Marks an event of a device's source; without it, the event is a queue's kick.
const OF_SOURCE: u64 = 1 << 32;

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

/// The line of device `number`.
///
/// # Errors
///
/// There are no more.
pub fn line(number: usize) -> Result<u32, TooManyDevices> {
    let line = u32::try_from(number).ok();
    line.filter(|&line| line < LGUEST_LINES)
        .ok_or(TooManyDevices(LGUEST_LINES))
}

/// All that a machine has behind its console, in the order of the devices' numbers.
pub fn in_order<T>(
    shares: impl IntoIterator<Item = T>,
    net: Option<T>,
    vsock: Option<T>,
    disks: impl IntoIterator<Item = T>,
    random: T,
) -> impl Iterator<Item = T> {
    (shares.into_iter().chain(net).chain(vsock))
        .chain(disks)
        .chain([random])
}

/// The devices, each at its number.
#[derive(Clone, Default)]
pub struct Devices(Vec<Arc<Mmio>>);

impl Devices {
    /// Adds a device whose buffers are in `memory`. `raise` raises the line whose number it gets.
    pub fn add(
        &mut self,
        device: Box<dyn Device>,
        memory: &Memory,
        raise: impl Fn(u32) + Send + Sync + 'static,
    ) -> Result<Arc<Mmio>, Error> {
        let line = line(self.0.len())?;
        let interrupt = Arc::new(Interrupt::new(move || raise(line)));
        let on_fault = |name: &str, fault: &Fault| {
            say(&format!(
                "{name}: stopped until the guest resets it: {fault}"
            ));
        };
        let device = Mmio::new(device, memory.clone(), interrupt, on_fault);
        let device = Arc::new(device.map_err(setup("a device"))?);
        self.0.push(device.clone());
        Ok(device)
    }

    /// The devices, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Mmio>> {
        self.0.iter()
    }

    /// Tells `vm` where the queues' kicks go.
    pub fn connect(&self, vm: &Vm) -> Result<(), Error> {
        for (number, device) in self.0.iter().enumerate() {
            let register = Self::window(number) + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
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

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Tells Linux of `count` devices, on its command line.
    pub fn announce(count: usize, line: &mut Cmdline) -> cmdline::Result<()> {
        for number in 0..count {
            let window = GuestAddress(Self::window(number));
            let irq = LINUX_IRQ_OF_LINE_0 + number as u32;
            line.add_virtio_mmio_device(DEVICE_SIZE, window, irq, None)?;
        }
        Ok(())
    }

    /// The device whose window `gpa` is in, and the offset there.
    pub fn at(&self, gpa: u64) -> Option<(&Mmio, u64)> {
        let offset = gpa.checked_sub(DEVICES)?;
        let device = self.0.get(usize::try_from(offset / DEVICE_SIZE).ok()?)?;
        Some((device, offset % DEVICE_SIZE))
    }

    /// Serves every queue once, so that nothing that the Guest has put there is lost.
    pub fn drain(&self) {
        for device in &self.0 {
            for index in 0..device.queue_count() {
                device.process(index);
            }
        }
    }
}

/// Serves the queues of `device` that have eventfds, for ever: waits for those and for the device's
/// source, and does what is to be done.
pub fn serve(device: &Mmio) -> io::Result<()> {
    let epoll = Epoll::new()?;
    for index in 0..device.queue_count() {
        if let Some(kick) = device.kick(index) {
            let event = EpollEvent::new(EventSet::IN, index as u64);
            epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), event)?;
        }
    }
    if let Some(Source { fd, queue }) = device.source() {
        // By edge: what is readable may have to wait until the driver gives buffers.
        let event = EpollEvent::new(
            EventSet::IN | EventSet::EDGE_TRIGGERED,
            OF_SOURCE | queue as u64,
        );
        epoll.ctl(ControlOperation::Add, fd, event)?;
    }
    let mut events = vec![EpollEvent::default(); device.queue_count() + 1];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        for event in &events[..count] {
            let index = (event.data() & !OF_SOURCE) as usize;
            if event.data() & OF_SOURCE == 0 {
                // The count does not matter: one visit serves all that is there.
                let _ = device.kick(index).map(|kick| kick.read());
            }
            device.process(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console::Console;

    fn two() -> Devices {
        let memory = crate::memory::create(4 << 20).unwrap();
        let mut devices = Devices::default();
        for _ in 0..2 {
            let console = Console::new(Arc::default(), None, Box::new(|_| {}));
            devices.add(Box::new(console), &memory, |_| {}).unwrap();
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
    fn announcements() {
        let mut line = Cmdline::new(100).unwrap();
        Devices::announce(two().count(), &mut line).unwrap();
        assert_eq!(
            line.as_cstring().unwrap().as_c_str(),
            c"virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17"
        );
    }

    #[test]
    fn there_are_so_many_lines_and_no_more() {
        let memory = crate::memory::create(4 << 20).unwrap();
        let mut devices = Devices::default();
        let mut add = || {
            let console = Console::new(Arc::default(), None, Box::new(|_| {}));
            devices.add(Box::new(console), &memory, |_| {})
        };
        for _ in 0..LGUEST_LINES {
            add().unwrap();
        }
        let error = add().map(drop).unwrap_err();
        assert_eq!(error.code(), Code::TooManyDevices);
    }

    #[test]
    fn lines_are_numbered() {
        let raised = Arc::new(std::sync::Mutex::new(Vec::new()));
        let memory = crate::memory::create(4 << 20).unwrap();
        let mut devices = Devices::default();
        for _ in 0..2 {
            let console = Console::new(Arc::default(), None, Box::new(|_| {}));
            let raised = raised.clone();
            let raise = move |line| raised.lock().unwrap().push(line);
            devices.add(Box::new(console), &memory, raise).unwrap();
        }
        devices
            .at(0xd000_1000)
            .unwrap()
            .0
            .interrupt()
            .config_changed();
        assert_eq!(*raised.lock().unwrap(), [1]);
    }
}
