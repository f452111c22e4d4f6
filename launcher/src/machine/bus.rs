// SPDX-License-Identifier: GPL-2.0
//! All devices of a machine: their windows, their lines, and the loop that serves the queues of one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::devices::mmio::Mmio;
use crate::devices::pci::{Pci, Routes, BAR_SIZE};
use crate::devices::slot::Slot;
use crate::devices::virtio::Virtio;
use crate::devices::{Device, Fault, Interrupt, Kicked, Source, Window};
use crate::machine::module::Vm;
use crate::memory::dma::Dma;
use crate::memory::Memory;
use crate::report::messages::say;
use crate::report::system::setup;
use crate::report::Error;
use crate::xen::events::Events;
use crate::xen::pci;

/// Marks an event of a device's source; without it, the event is a queue's kick.
const OF_SOURCE: u64 = 1 << 32;

/// Offset of the register whose GPA hypercall NOTIFY names.
const NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// A driver on a PCI bus reaches for memory as the platform says. Linux asks for this where the platform is Xen: with
/// CONFIG_XEN_VIRTIO it makes grants of its buffers, and without it names GPAs.
const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;

/// The devices, each at its number.
#[derive(Clone, Default)]
pub struct Devices {
    all: Vec<(Arc<Virtio>, Arc<dyn Window>)>,
    bus: Option<Bus>,
}

/// The PCI bus of a kernel of Xen's.
#[derive(Clone)]
struct Bus {
    /// GPA of the first device's BAR. The next is behind it.
    bars: u64,
    memory: Dma,
    events: Arc<Events>,
    functions: Vec<Arc<Pci>>,
}

impl Devices {
    /// Devices for a kernel of Xen's: functions of a PCI bus, whose BARs are from GPA `bars` on, a multiple of their
    /// size, behind all memory. Their buffers are in `memory`.
    pub fn on_bus(bars: u64, memory: Dma, events: Arc<Events>) -> Self {
        let bus = Bus {
            bars,
            memory,
            events,
            functions: Vec::new(),
        };
        Self {
            all: Vec::new(),
            bus: Some(bus),
        }
    }

    /// The functions of the bus, if there is one.
    pub fn functions(&self) -> Vec<Arc<Pci>> {
        self.bus
            .as_ref()
            .map_or(Vec::new(), |bus| bus.functions.clone())
    }

    /// Adds a device whose buffers are in `memory`, if it is on no bus. `raise` raises the line whose number it gets.
    pub fn add(
        &mut self,
        device: Box<dyn Device>,
        memory: &Memory,
        raise: impl Fn(u32) + Send + Sync + 'static,
    ) -> Result<Arc<Virtio>, Error> {
        let slot = Slot::new(self.all.len())?;
        let Some(bus) = &mut self.bus else {
            let interrupt = Interrupt::new(move |_| raise(slot.line()));
            let device = virtio(device, 0, memory.clone().into(), interrupt)?;
            let window = Arc::new(Mmio::new(device.clone()));
            self.all.push((device.clone(), window));
            return Ok(device);
        };
        let function = bus.add(slot.on_bus()?, device)?;
        let device = function.device().clone();
        self.all.push((device.clone(), function));
        Ok(device)
    }

    /// The devices, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Virtio>> {
        self.all.iter().map(|(device, _)| device)
    }

    /// Tells `vm` where the queues' kicks go.
    pub fn connect(&self, vm: &Vm) -> Result<(), Error> {
        if self.bus.is_some() {
            // A driver on a PCI bus kicks by a store.
            return Ok(());
        }
        for (number, device) in self.iter().enumerate() {
            let register = Slot::new(number)?.window() + NOTIFY;
            for index in 0..device.queue_count() {
                // A kick that the vCPU hears first comes as a hypercall instead.
                let kick = device.kick(index);
                if let Some(kick) = kick.filter(|_| device.kicked(index) == Kicked::Thread) {
                    vm.set_kick(register, index as u32, kick)?;
                }
            }
        }
        Ok(())
    }

    /// Their number.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The device whose window `gpa` is in, and the offset there.
    pub fn at(&self, gpa: u64) -> Option<(&dyn Window, u64)> {
        let (number, offset) = match &self.bus {
            None => Slot::at(gpa)?,
            Some(bus) => {
                let offset = gpa.checked_sub(bus.bars)?;
                (usize::try_from(offset / BAR_SIZE).ok()?, offset % BAR_SIZE)
            }
        };
        let (_, window) = self.all.get(number)?;
        Some((window.as_ref(), offset))
    }

    /// Hypercall NOTIFY came for a queue that has no eventfd, and named the register at `gpa`.
    pub fn notify(&self, gpa: u64, queue: u64) {
        if let Some((number, NOTIFY)) = Slot::at(gpa) {
            if let Some((device, _)) = self.all.get(number) {
                device.notify(queue);
            }
        }
    }

    /// Serves every queue once, so that nothing that the Guest has put there is lost.
    pub fn drain(&self) {
        for device in self.iter() {
            for index in 0..device.queue_count() {
                device.process(index);
            }
        }
    }
}

impl Bus {
    /// Adds device `number`. Its interrupts are the physical ones of Xen's ABI.
    fn add(&mut self, number: u8, device: Box<dyn Device>) -> Result<Arc<Pci>, Error> {
        let line = pci::line(number);
        let routes = Arc::new(Routes::new(device.queue_sizes().len(), line.into()));
        let (ways, events) = (routes.clone(), self.events.clone());
        let interrupt = Interrupt::new(move |cause| {
            if let Some(pirq) = ways.of(cause) {
                events.pirq(pirq);
            }
        });
        let device = virtio(device, ACCESS_PLATFORM, self.memory.clone(), interrupt)?;
        let bar = self.bars + u64::from(number) * BAR_SIZE;
        let function = Arc::new(Pci::new(device, routes, bar, line));
        self.functions.push(function.clone());
        Ok(function)
    }
}

/// Gives `device` its queues, with features of the transport's own.
fn virtio(
    device: Box<dyn Device>,
    transport: u64,
    memory: Dma,
    interrupt: Interrupt,
) -> Result<Arc<Virtio>, Error> {
    let on_fault = |name: &str, fault: &Fault| {
        say(&format!(
            "{name}: stopped until the guest resets it: {fault}"
        ));
    };
    let device = Virtio::new(device, transport, memory, Arc::new(interrupt), on_fault);
    Ok(Arc::new(device.map_err(setup("a device"))?))
}

/// Serves the queues of `device` that have eventfds, for ever: waits for those and for the device's
/// source, and does what is to be done.
pub fn serve(device: &Virtio) -> io::Result<()> {
    let epoll = Epoll::new()?;
    for index in 0..device.queue_count() {
        if let Some(kick) = device.kick(index) {
            // By edge: each kick is an event, and nobody has to take the count back. One visit serves all
            // that is there, and 2^64 kicks do not come.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let event = EpollEvent::new(events, index as u64);
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
            device.process((event.data() & !OF_SOURCE) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use lguest_abi::LGUEST_LINES;

    use super::*;
    use crate::devices::console::Console;
    use crate::report::codes::Code;

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
        let second = devices.iter().nth(1).unwrap();
        second.interrupt().config_changed();
        assert_eq!(*raised.lock().unwrap(), [1]);
    }
}
