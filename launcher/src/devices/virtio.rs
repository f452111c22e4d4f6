// SPDX-License-Identifier: GPL-2.0
//! A device with its status, features and queues: all that its driver sets up, whatever the transport.
//!
//! The transports have the same registers, in other places: [`super::mmio`].

use std::io;
use std::sync::atomic::{fence, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use super::{Device, Fault, Interrupt, Kicked, Served, Source};
use crate::memory::dma::Dma;

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// The queues' iterators walk indirect tables as they do the ring's own.
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// Told when a driver has stopped its device, with the device's name.
type OnFault = Box<dyn Fn(&str, &Fault) + Send>;

/// A way to serve a queue of a device.
type Serve = fn(&mut (dyn Device + 'static), usize, &mut Queue, &Dma) -> Result<Served, Fault>;

/// A device and its queues.
pub struct Virtio {
    /// Apart from the state: a driver asks why it was interrupted while the device is at work.
    interrupt: Arc<Interrupt>,
    kicks: Vec<Option<Arc<EventFd>>>,
    kicked: Vec<Kicked>,
    state: Mutex<State>,
}

/// The part that one thread uses at a time.
pub(super) struct State {
    pub(super) device: Box<dyn Device>,
    transport: u64,
    memory: Dma,
    interrupt: Arc<Interrupt>,
    kicks: Vec<Option<Arc<EventFd>>>,
    on_fault: OnFault,
    queues: Vec<Queue>,
    status: u32,
    /// The half of the device's features that the driver looks at.
    pub(super) device_features_sel: u32,
    /// The half of its own that it sets.
    pub(super) driver_features_sel: u32,
    driver_features: u64,
    /// The queue that it sets up.
    pub(super) queue_sel: u32,
    /// The lower half of the address that the reasons of interrupts are to go to.
    pub(super) reasons_low: u32,
}

impl Virtio {
    /// Gives `device` its queues. `transport` are the features of its transport's own. Its buffers
    /// are in `memory`, and `interrupt` is its interrupt. `on_fault` is told when a driver has stopped the device, with the device's name.
    pub fn new(
        device: Box<dyn Device>,
        transport: u64,
        memory: Dma,
        interrupt: Arc<Interrupt>,
        on_fault: impl Fn(&str, &Fault) + Send + 'static,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues = sizes
            .iter()
            .map(|&size| Queue::new(size).map_err(io::Error::other));
        let kicked: Vec<_> = (0..sizes.len()).map(|n| device.kicked(n)).collect();
        let kick = |kicked: &_| match kicked {
            Kicked::Vcpu => Ok(None),
            _ => EventFd::new(EFD_NONBLOCK).map(Arc::new).map(Some),
        };
        let kicks: Vec<_> = kicked.iter().map(kick).collect::<io::Result<_>>()?;
        Ok(Self {
            interrupt: interrupt.clone(),
            kicks: kicks.clone(),
            kicked,
            state: Mutex::new(State {
                queues: queues.collect::<io::Result<_>>()?,
                kicks,
                device,
                transport,
                memory,
                interrupt,
                on_fault: Box::new(on_fault),
                status: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                reasons_low: 0,
            }),
        })
    }

    /// The eventfd that says "there is something to do for this queue" to the thread that serves
    /// it. None for a queue which the driver's own kick serves.
    pub fn kick(&self, index: usize) -> Option<&Arc<EventFd>> {
        self.kicks[index].as_ref()
    }

    /// Who serves queue `index` when the driver kicks it.
    pub fn kicked(&self, index: usize) -> Kicked {
        self.kicked[index]
    }

    /// The number of queues.
    pub fn queue_count(&self) -> usize {
        self.kicks.len()
    }

    /// The device type.
    pub(super) fn device_type(&self) -> u32 {
        self.state().device.device_type()
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// The event by which the device hears from our side.
    pub fn source(&self) -> Option<Source> {
        self.state().device.source()
    }

    /// The driver kicks a queue. One that is not there is the driver's problem.
    pub fn notify(&self, index: u64) {
        let Some(index) = usize::try_from(index).ok() else {
            return;
        };
        match (self.kicked.get(index), self.kicks.get(index)) {
            (Some(Kicked::VcpuFirst), Some(Some(kick))) => match self.state.try_lock() {
                Ok(mut state) => state.process_first(index),
                // The device's thread is at work, and will see to this as well.
                Err(_) => ring(kick),
            },
            (_, Some(Some(kick))) => ring(kick),
            (_, Some(None)) => self.process(index),
            (_, None) => {}
        }
    }

    /// There may be something to do for queue `index`.
    pub fn process(&self, index: usize) {
        self.state().process(index);
    }

    /// The state, which stays sound whatever a thread that panicked did: the Guest's rings are not
    /// trusted anyway.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signals a kick. It can only fail when 2^64 kicks are waiting.
fn ring(kick: &EventFd) {
    let _ = kick.write(1);
}

impl State {
    /// The half of the offered features that is selected.
    pub(super) fn offered_half(&self) -> u32 {
        half_of(self.features(), self.device_features_sel)
    }

    /// The half of the driver's features that is selected.
    pub(super) fn accepted_half(&self) -> u32 {
        half_of(self.driver_features, self.driver_features_sel)
    }

    /// The driver wants these of the half that is selected.
    pub(super) fn accept_half(&mut self, value: u32) {
        let shift = match self.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.status & FEATURES_OK == 0 {
            let other_half = self.driver_features & !(u64::from(u32::MAX) << shift);
            self.driver_features = other_half | (u64::from(value) << shift);
        }
    }

    /// The status bits.
    pub(super) fn status(&self) -> u32 {
        self.status
    }

    /// The number of changes of the configuration space.
    pub(super) fn generation(&self) -> u32 {
        self.interrupt.generation.load(Ordering::SeqCst)
    }

    /// The reasons of interrupts go to the GPA with this upper half; see [`Interrupt::tell_at`].
    pub(super) fn tell_reasons_at(&self, high: u32) {
        let gpa = (u64::from(high) << 32) | u64::from(self.reasons_low);
        self.interrupt.tell_at(self.memory.memory(), gpa);
    }

    /// The queue that is selected.
    pub(super) fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The driver sets up the queue that is selected: after the features are agreed on, and before
    /// the device is used.
    fn queue_to_set_up(&mut self) -> Option<&mut Queue> {
        let setting_up = self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        let queue = self.queues.get_mut(self.queue_sel as usize);
        queue.filter(|_| setting_up)
    }

    /// The queue that is selected is whole, or no longer.
    pub(super) fn set_ready(&mut self, ready: bool) {
        if let Some(queue) = self.queue_to_set_up() {
            queue.set_ready(ready);
        }
    }

    /// Changes the queue that is selected, unless it is ready.
    pub(super) fn set_up(&mut self, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.queue_to_set_up().filter(|queue| !queue.ready()) {
            change(queue);
        }
    }

    /// The driver stores a status: 0 is a reset.
    pub(super) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // A driver only adds bits; the device's own bit is not the driver's to set.
        let mut new = value & !self.status & !NEEDS_RESET;
        if new & FEATURES_OK != 0 && !self.accepts(self.driver_features) {
            new &= !FEATURES_OK;
        }
        let agreed = (self.status | new) & FEATURES_OK != 0;
        if new & DRIVER_OK != 0 && !agreed {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        if new & DRIVER_OK != 0 {
            self.start();
        }
    }

    /// The driver is ready.
    fn start(&mut self) {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        self.device
            .start(self.driver_features & self.device.features());
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            queue.set_event_idx(event_idx);
            if queue.ready() && !queue.is_valid(&self.memory) {
                return self.fail(Fault::BadQueue(index));
            }
            // Our side may have waited for this.
            self.notify_queue(index);
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(QueueT::reset);
        self.interrupt.reset();
        self.reasons_low = 0;
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
    }

    fn process(&mut self, index: usize) {
        let mut queues = 1u64 << index;
        while queues != 0 {
            let index = queues.trailing_zeros() as usize;
            queues &= !(1 << index);
            queues |= self.serve(index, Device::serve);
        }
    }

    /// Serves queue `index` as far as nothing has to wait. The device's thread hears of what is left.
    fn process_first(&mut self, index: usize) {
        let mut left = self.serve(index, Device::serve_first);
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            left &= !(1 << index);
            self.notify_queue(index);
        }
    }

    /// Serves one queue by `serve`, and returns the set of queues that it is then the turn of.
    fn serve(&mut self, index: usize, serve: Serve) -> u64 {
        if self.status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK || !self.queues[index].ready() {
            return 0;
        }
        let queue = &mut self.queues[index];
        let before = queue.next_used();
        let result = serve(&mut *self.device, index, queue, &self.memory).and_then(|served| {
            let interrupt = served.used && wants_interrupt(queue, &self.memory, before)?;
            Ok((interrupt, served.then))
        });
        if self.device.config_changed() {
            self.interrupt.config_changed();
        }
        match result {
            Ok((interrupt, then)) => {
                if interrupt {
                    self.interrupt.buffers_used(index);
                }
                then
            }
            Err(fault) => {
                self.fail(fault);
                0
            }
        }
    }

    /// The driver broke the rules: tells it, and the user, and stops.
    fn fail(&mut self, fault: Fault) {
        (self.on_fault)(self.device.name(), &fault);
        self.status |= NEEDS_RESET;
        self.interrupt.config_changed();
    }

    fn notify_queue(&mut self, index: usize) {
        match &self.kicks[index] {
            Some(kick) => ring(kick),
            None => self.process(index),
        }
    }

    fn features(&self) -> u64 {
        self.device.features() | self.transport | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    fn accepts(&self, features: u64) -> bool {
        features & !self.features() == 0 && features & VERSION_1 != 0
    }
}

/// Half `half` of `features`; there are two.
fn half_of(features: u64, half: u32) -> u32 {
    match half {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Does the driver want to hear of the buffers that were used since the used ring's index was
/// `before`? (Sections 2.7.7 and 2.7.10 of the specification. [`QueueT::needs_notification`] knows only
/// of buffers that were used one by one.)
fn wants_interrupt(queue: &Queue, memory: &Dma, before: u16) -> Result<bool, Fault> {
    const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;
    // What the driver reads must be there before what it wants is looked at.
    fence(Ordering::SeqCst);
    let ring = GuestAddress(queue.avail_ring());
    // Behind flags, index and ring.
    let used_event = ring.unchecked_add(4 + 2 * u64::from(queue.size()));
    let place = match queue.event_idx_enabled() {
        true => used_event,
        false => ring,
    };
    let wish: u16 = memory
        .load(place, Ordering::Relaxed)
        .map_err(virtio_queue::Error::GuestMemory)?;
    let count = queue.next_used().wrapping_sub(before);
    Ok(match queue.event_idx_enabled() {
        true => wish.wrapping_sub(before) < count,
        false => wish & NO_INTERRUPT == 0,
    })
}
