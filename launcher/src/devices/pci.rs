// SPDX-License-Identifier: GPL-2.0
//! The PCI transport (section 4.1 of the specification): a function with its configuration space, and a BAR with the
//! registers.
//!
//! The BAR is 64 bits wide and does not move: the driver may store another address, as it does to learn the BAR's
//! size, and reads that back, but the registers stay where they are. The table of MSI-X is there to be mapped, and
//! nothing in it: the bus says where a message goes ([`Routes::connect`]), as Xen's backend does.

mod config;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::QueueT;

use super::virtio::{State, Virtio};
use super::{Cause, Window};
pub use config::BAR_SIZE;
use config::{Config, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STEP, PART};

/// `VIRTIO_MSI_NO_VECTOR`.
const NO_VECTOR: u16 = 0xffff;

/// The way of a function's interrupts: by a message, or by its line.
pub struct Routes(Mutex<Ways>);

struct Ways {
    /// The number of the line's interrupt.
    line: u32,
    /// The driver has switched messages on.
    by_message: bool,
    /// The number of each message's interrupt, where the bus has given it one.
    messages: Vec<Option<u32>>,
    /// The message for each cause: of each queue, and behind them that of the configuration.
    vectors: Vec<u16>,
}

impl Routes {
    /// Those of a function with so many queues, whose line is interrupt `line`.
    pub fn new(queues: usize, line: u32) -> Self {
        Self(Mutex::new(Ways {
            line,
            by_message: false,
            messages: vec![None; queues + 1],
            vectors: vec![NO_VECTOR; queues + 1],
        }))
    }

    /// The number of the interrupt by which the driver hears of `cause`; `None` if it does not want to.
    pub fn of(&self, cause: Cause) -> Option<u32> {
        let ways = self.ways();
        if !ways.by_message {
            return Some(ways.line);
        }
        let vector = *ways.vectors.get(ways.index(cause))?;
        *ways.messages.get(usize::from(vector))?
    }

    /// The number of messages.
    pub fn count(&self) -> usize {
        self.ways().messages.len()
    }

    /// Message `message`, below [`Routes::count`], is interrupt `number` from now on.
    pub fn connect(&self, message: usize, number: u32) {
        self.ways().messages[message] = Some(number);
    }

    /// No message is an interrupt any more. The numbers that they had come back.
    pub fn disconnect(&self) -> Vec<u32> {
        let numbers = self
            .ways()
            .messages
            .iter_mut()
            .map(Option::take)
            .collect::<Vec<_>>();
        numbers.into_iter().flatten().collect()
    }

    fn use_messages(&self, by_message: bool) {
        self.ways().by_message = by_message;
    }

    fn vector(&self, cause: Cause) -> u16 {
        let ways = self.ways();
        ways.vectors
            .get(ways.index(cause))
            .copied()
            .unwrap_or(NO_VECTOR)
    }

    /// The driver wants to hear of `cause` by a message. One that is not there is none, which it reads back.
    fn set_vector(&self, cause: Cause, vector: u16) {
        let mut ways = self.ways();
        let there = usize::from(vector) < ways.messages.len();
        let index = ways.index(cause);
        if let Some(place) = ways.vectors.get_mut(index) {
            *place = if there { vector } else { NO_VECTOR };
        }
    }

    fn reset(&self) {
        self.ways().vectors.fill(NO_VECTOR);
    }

    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ways {
    fn index(&self, cause: Cause) -> usize {
        match cause {
            Cause::Queue(index) => index,
            Cause::Config => self.vectors.len() - 1,
        }
    }
}

/// A device as a function of a PCI bus.
pub struct Pci {
    device: Arc<Virtio>,
    routes: Arc<Routes>,
    config: Mutex<Config>,
}

impl Pci {
    /// Makes `device`, whose interrupts go by `routes`, a function. Its BAR is at `bar`, a multiple of [`BAR_SIZE`],
    /// and its configuration space says that the line's interrupt is `line`.
    pub fn new(device: Arc<Virtio>, routes: Arc<Routes>, bar: u64, line: u8) -> Self {
        let config = Config::new(device.device_type(), routes.count(), bar, line);
        Self {
            device,
            routes,
            config: Mutex::new(config),
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<Virtio> {
        &self.device
    }

    /// The way of its interrupts.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Reads `size` bytes of the configuration space; `None` if there is nothing of that kind.
    pub fn read_config(&self, offset: u32, size: u32) -> Option<u32> {
        let place = config::place(offset, size)?;
        if let Some(window) = self.config().window(&place) {
            let (offset, size) = window?;
            let mut data = [0; 4];
            self.load(offset, &mut data[..size]);
            return Some(u32::from_le_bytes(data));
        }
        Some(self.config().read(place))
    }

    /// Writes the low `size` bytes of `value` to the configuration space; `None` if there is nothing of that kind.
    pub fn write_config(&self, offset: u32, size: u32, value: u32) -> Option<()> {
        let place = config::place(offset, size)?;
        if let Some(window) = self.config().window(&place) {
            let (offset, size) = window?;
            self.store(offset, &value.to_le_bytes()[..size]);
            return Some(());
        }
        let mut config = self.config();
        config.write(place, value);
        self.routes.use_messages(config.uses_messages());
        Some(())
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads from the common configuration; `None` where there is no register of that size.
    fn load_common(&self, offset: u64, size: usize) -> Option<u32> {
        let state = self.device.state();
        let register = Register::at(offset, size)?;
        let queue =
            |value: &dyn Fn(&virtio_queue::Queue) -> u64| state.queue().map_or(0, value) as u32;
        Some(match register {
            Register::DeviceFeatureSelect => state.device_features_sel,
            Register::DeviceFeature => state.offered_half(),
            Register::DriverFeatureSelect => state.driver_features_sel,
            Register::DriverFeature => state.accepted_half(),
            Register::ConfigVector => self.routes.vector(Cause::Config).into(),
            Register::NumQueues => self.device.queue_count() as u32,
            Register::Status => state.status(),
            Register::Generation => state.generation(),
            Register::QueueSelect => state.queue_sel,
            Register::QueueSize => queue(&|queue| queue.size().into()),
            Register::QueueVector => self.routes.vector(selected(&state)).into(),
            Register::QueueEnable => queue(&|queue| queue.ready().into()),
            Register::QueueNotifyOffset => state.queue().map_or(0, |_| state.queue_sel),
            Register::Descriptors(half) => queue(&|queue| queue.desc_table() >> (32 * half)),
            Register::Available(half) => queue(&|queue| queue.avail_ring() >> (32 * half)),
            Register::Used(half) => queue(&|queue| queue.used_ring() >> (32 * half)),
        })
    }

    fn store_common(&self, offset: u64, size: usize, value: u32) {
        let mut state = self.device.state();
        let Some(register) = Register::at(offset, size) else {
            return;
        };
        match register {
            Register::DeviceFeatureSelect => state.device_features_sel = value,
            Register::DriverFeatureSelect => state.driver_features_sel = value,
            Register::DriverFeature => state.accept_half(value),
            Register::ConfigVector => self.routes.set_vector(Cause::Config, value as u16),
            Register::Status => {
                if value == 0 {
                    self.routes.reset();
                }
                state.set_status(value);
            }
            Register::QueueSelect => state.queue_sel = value,
            Register::QueueVector => self.routes.set_vector(selected(&state), value as u16),
            // A driver that wants its queue no longer resets the device.
            Register::QueueEnable if value == 1 => state.set_ready(true),
            _ => state.set_up(|queue| match register {
                // A value that cannot be leaves the queue as it is.
                Register::QueueSize => {
                    let _ = queue.try_set_size(value as u16);
                }
                Register::Descriptors(0) => queue.set_desc_table_address(Some(value), None),
                Register::Descriptors(_) => queue.set_desc_table_address(None, Some(value)),
                Register::Available(0) => queue.set_avail_ring_address(Some(value), None),
                Register::Available(_) => queue.set_avail_ring_address(None, Some(value)),
                Register::Used(0) => queue.set_used_ring_address(Some(value), None),
                Register::Used(_) => queue.set_used_ring_address(None, Some(value)),
                _ => {}
            }),
        }
    }
}

/// The queue that the driver sets up, as a cause of interrupts.
fn selected(state: &State) -> Cause {
    Cause::Queue(match state.queue() {
        Some(_) => state.queue_sel as usize,
        // No queue is there.
        None => usize::MAX,
    })
}

impl Window for Pci {
    fn load(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset % PART;
        match offset - within {
            COMMON => {
                let value = self.load_common(within, data.len()).unwrap_or(0);
                let size = data.len().min(4);
                data[..size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            // A load acknowledges all that it tells.
            ISR if within == 0 => data[0] = self.device.interrupt().take() as u8,
            DEVICE => self.device.state().device.read_config(within, data),
            _ => {}
        }
    }

    fn store(&self, offset: u64, data: &[u8]) {
        let within = offset % PART;
        match offset - within {
            COMMON => {
                let mut value = [0; 4];
                if let Some(value) = value.get_mut(..data.len()) {
                    value.copy_from_slice(data);
                }
                self.store_common(within, data.len(), u32::from_le_bytes(value));
            }
            // The queue is where the kick goes; that it is in the value, too, is of no use.
            NOTIFY if within % NOTIFY_STEP == 0 => self.device.notify(within / NOTIFY_STEP),
            _ => {}
        }
    }
}

/// A register of the common configuration (section 4.1.4.3). Addresses are stored in halves, 0 and 1.
#[derive(Clone, Copy)]
enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    Descriptors(u32),
    Available(u32),
    Used(u32),
}

impl Register {
    /// The register at `offset`, which is loaded and stored as a whole; `None` for anything else.
    fn at(offset: u64, size: usize) -> Option<Self> {
        Some(match (offset, size) {
            (0x00, 4) => Self::DeviceFeatureSelect,
            (0x04, 4) => Self::DeviceFeature,
            (0x08, 4) => Self::DriverFeatureSelect,
            (0x0c, 4) => Self::DriverFeature,
            (0x10, 2) => Self::ConfigVector,
            (0x12, 2) => Self::NumQueues,
            (0x14, 1) => Self::Status,
            (0x15, 1) => Self::Generation,
            (0x16, 2) => Self::QueueSelect,
            (0x18, 2) => Self::QueueSize,
            (0x1a, 2) => Self::QueueVector,
            (0x1c, 2) => Self::QueueEnable,
            (0x1e, 2) => Self::QueueNotifyOffset,
            (0x20 | 0x24, 4) => Self::Descriptors((offset == 0x24).into()),
            (0x28 | 0x2c, 4) => Self::Available((offset == 0x2c).into()),
            (0x30 | 0x34, 4) => Self::Used((offset == 0x34).into()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
