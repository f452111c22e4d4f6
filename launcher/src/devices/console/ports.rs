// SPDX-License-Identifier: GPL-2.0
//! Named ports: a console device (section 5.3 of the specification) which carries plain bytes for a
//! command's terminal, and for its standard input, output and error where those are no terminal at
//! our end.
//!
//! Over its control queues the device tells the driver of its ports, and the driver says when one
//! is open: before that, what is sent there would be lost.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::devices::bytes::{drain, Input, Outlet, Output};
use crate::devices::{copy_config, until_quiet, Device, Fault, Kicked, Served};
use crate::memory::dma::Dma;

/// The most ports there can be.
const PORTS_MAX: usize = 5;
/// Queues of port 0, the control queues, queues of the other ports; of each two, the first is the
/// one to the driver. What is in the others is on its way when somebody stops reading, so there are
/// few.
const QUEUE_SIZES: [u16; 2 * (PORTS_MAX + 1)] = [64, 4, 64, 64, 64, 4, 64, 4, 64, 4, 64, 4];
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
/// Feature: there are ports and control queues.
const F_MULTIPORT: u32 = 1;
/// Control messages that wait for buffers.
const ANSWERS_MAX: usize = 64;

/// The queue that carries input to `port`.
pub fn receive_queue(port: usize) -> usize {
    if port == 0 {
        0
    } else {
        2 + 2 * port
    }
}

/// The queue that carries output of `port`.
pub fn transmit_queue(port: usize) -> usize {
    receive_queue(port) + 1
}

/// The port of a queue which is not a control queue.
fn port_of(queue: usize) -> usize {
    if queue < 2 {
        0
    } else {
        queue / 2 - 1
    }
}

/// Events of control messages, as in the specification.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// Our end of a port.
#[derive(Default)]
pub struct Stream {
    /// A program in the Guest reads this.
    pub input: Option<Arc<Input>>,
    /// A program in the Guest writes here.
    pub output: To,
}

/// The outlet for what a program in the Guest writes.
#[derive(Default)]
pub enum To {
    /// Nobody takes it.
    #[default]
    Nobody,
    /// Somebody writes it, which may take long.
    Outlet(Arc<Outlet>),
    /// Somebody takes it at once.
    Taker(Output),
}

struct Port {
    name: &'static str,
    stream: Stream,
    open: bool,
    end_sent: bool,
}

/// The device.
pub struct Ports {
    ports: Vec<Port>,
    answers: VecDeque<Vec<u8>>,
}

impl Ports {
    /// Ports with these names; at most 5.
    pub fn new(streams: Vec<(&'static str, Stream)>) -> Self {
        assert!(streams.len() <= PORTS_MAX);
        let port = |(name, stream)| Port {
            name,
            stream,
            open: false,
            end_sent: false,
        };
        Self {
            ports: streams.into_iter().map(port).collect(),
            answers: VecDeque::new(),
        }
    }

    /// Moves what waits for a port into buffers.
    fn receive(&mut self, id: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let Port {
            stream: Stream {
                input: Some(input), ..
            },
            open: true,
            end_sent,
            ..
        } = &mut self.ports[id]
        else {
            return Ok(Served::default());
        };
        let used = input.fill(queue, memory)?;
        if !input.is_at_end() || *end_sent {
            return Ok(Served { used, then: 0 });
        }
        // The driver reads what is in its buffers first, and then sees that our end is closed.
        *end_sent = true;
        self.answer(id as u32, event::PORT_OPEN, 0, &[])?;
        Ok(Served {
            used,
            then: 1 << CONTROL_RECEIVE,
        })
    }

    /// Gives what is in the buffers of a port to its output.
    fn transmit(&mut self, id: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let Port {
            stream,
            open,
            end_sent,
            ..
        } = &mut self.ports[id];
        let used = match &mut stream.output {
            To::Outlet(outlet) => {
                let used = outlet.fill(queue, memory)?;
                if !*open || *end_sent || !outlet.is_closed() {
                    return Ok(Served { used, then: 0 });
                }
                // Who writes there hears of it.
                *end_sent = true;
                self.answer(id as u32, event::PORT_OPEN, 0, &[])?;
                let then = 1 << CONTROL_RECEIVE;
                return Ok(Served { used, then });
            }
            To::Taker(output) => {
                let used = drain(output, queue, memory)?;
                // It may have been told that all others have room now.
                let then = if used { self.outputs() } else { 0 };
                return Ok(Served { used, then });
            }
            To::Nobody => drain(&mut |_| {}, queue, memory)?,
        };
        Ok(Served { used, then: 0 })
    }

    /// The queues of all that is written by somebody, a set.
    fn outputs(&self) -> u64 {
        let written = |(_, port): &(usize, &Port)| matches!(port.stream.output, To::Outlet(_));
        let ports = self.ports.iter().enumerate().filter(written);
        ports.fold(0, |set, (index, _)| set | (1 << transmit_queue(index)))
    }

    /// Sends control messages, as many as there are buffers for.
    fn control_receive(&mut self, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut served = Served::default();
        while let Some(message) = self.answers.front() {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            chain
                .writer(memory)?
                .write_all(message)
                .map_err(Fault::Buffer)?;
            queue.add_used(memory, head, message.len() as u32)?;
            self.answers.pop_front();
            served.used = true;
        }
        Ok(served)
    }

    /// Takes control messages from the driver.
    fn control_transmit(&mut self, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut served = Served {
            used: false,
            then: 1 << CONTROL_RECEIVE,
        };
        while let Some(chain) = queue.iter(memory)?.next() {
            let head = chain.head_index();
            let mut message = [0; 8];
            chain
                .reader(memory)?
                .read_exact(&mut message)
                .map_err(Fault::Buffer)?;
            let [id @ .., event0, event1, value0, value1] = message;
            let event = u16::from_le_bytes([event0, event1]);
            let value = u16::from_le_bytes([value0, value1]);
            served.then |= self.take(u32::from_le_bytes(id), event, value)?;
            queue.add_used(memory, head, 0)?;
            served.used = true;
        }
        Ok(served)
    }

    /// The driver says `event` of port `id`. Returns the queues that it is then the turn of.
    fn take(&mut self, id: u32, event: u16, value: u16) -> Result<u64, Fault> {
        if (event, value) == (event::DEVICE_READY, 1) {
            for id in 0..self.ports.len() {
                self.answer(id as u32, event::PORT_ADD, 1, &[])?;
            }
            return Ok(0);
        }
        let index = id as usize;
        let Some(port) = self.ports.get_mut(index) else {
            return Ok(0);
        };
        match (event, value) {
            (event::PORT_READY, 1) => {
                let name = port.name.as_bytes();
                self.answer(id, event::PORT_NAME, 1, name)?;
                self.answer(id, event::PORT_OPEN, 1, &[])?;
            }
            (event::PORT_OPEN, value) => {
                port.open = value != 0;
                if let (true, Some(input)) = (port.open, &port.stream.input) {
                    input.want();
                }
                return Ok((1 << receive_queue(index)) | (1 << transmit_queue(index)));
            }
            _ => {}
        }
        Ok(0)
    }

    /// Queues a control message, `rest` behind its fixed part.
    fn answer(&mut self, id: u32, event: u16, value: u16, rest: &[u8]) -> Result<(), Fault> {
        if self.answers.len() == ANSWERS_MAX {
            return Err(Fault::Flood(ANSWERS_MAX));
        }
        let (id, event, value) = (id.to_le_bytes(), event.to_le_bytes(), value.to_le_bytes());
        self.answers
            .push_back([&id[..], &event, &value, rest].concat());
        Ok(())
    }

    /// Is there nothing that waits for buffers of queue `index`?
    fn is_idle(&self, index: usize) -> bool {
        match index {
            CONTROL_RECEIVE => self.answers.is_empty(),
            CONTROL_TRANSMIT => false,
            _ => {
                let Port { stream, open, .. } = &self.ports[port_of(index)];
                match (index % 2, stream) {
                    (
                        0,
                        Stream {
                            input: Some(input), ..
                        },
                    ) => !open || input.is_empty(),
                    (0, _) => true,
                    (
                        _,
                        Stream {
                            output: To::Outlet(outlet),
                            ..
                        },
                    ) => !outlet.has_room(),
                    _ => false,
                }
            }
        }
    }
}

impl Device for Ports {
    fn name(&self) -> &str {
        "ports"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        1 << F_MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..2 * (self.ports.len() + 1)]
    }

    /// Output is only copied, which takes no longer than to wake another thread for it.
    fn kicked(&self, index: usize) -> Kicked {
        match index % 2 {
            1 => Kicked::Vcpu,
            _ => Kicked::Thread,
        }
    }

    /// In `struct virtio_console_config`, the number of ports is behind the terminal's size.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = (self.ports.len() as u64) << 32;
        copy_config(&config.to_le_bytes(), offset, data);
    }

    fn start(&mut self, _: u64) {
        self.answers.clear();
        for port in &mut self.ports {
            (port.open, port.end_sent) = (false, false);
        }
    }

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| {
            let served = match index {
                CONTROL_RECEIVE => self.control_receive(queue, memory)?,
                CONTROL_TRANSMIT => self.control_transmit(queue, memory)?,
                _ if index % 2 == 0 => self.receive(port_of(index), queue, memory)?,
                _ => self.transmit(port_of(index), queue, memory)?,
            };
            Ok((served, !self.is_idle(index)))
        })
    }
}

#[cfg(test)]
mod tests;
