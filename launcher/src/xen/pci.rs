// SPDX-License-Identifier: GPL-2.0
//! The backend of xen-pcifront: a bus of virtio's functions.
//!
//! The kernel grants a page, in which it has one request at a time: to read or write a configuration space, to switch
//! messages on or off. It waits for the answer with interrupts off, so the vCPU that calls serves it at once. Device
//! n is function 0 of device n on bus 0; its line is physical interrupt [`FIRST_LINE`] + n, and messages have those
//! above all lines.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemory, VolatileMemory};
use xen_abi::handover::PIRQS;
use xen_abi::rings::{Pci as Page, PciRequest, PCI_ACTIVE, PCI_MESSAGES};

use crate::devices::pci::Pci;
use crate::memory::grants::{Grants, Use};
use crate::memory::Memory;
use crate::xen::link::{Link, Next};
use crate::xen::store::Store;

/// Devices on the bus.
pub const DEVICES_MAX: usize = 32;
/// The lower ones are taken for those of a PC, which cannot be shared.
pub const FIRST_LINE: u8 = 16;
const FIRST_MESSAGE: u32 = FIRST_LINE as u32 + DEVICES_MAX as u32;

/// The version of the protocol.
const MAGIC: &str = "7";

const CONFIG_READ: u32 = 0;
const CONFIG_WRITE: u32 = 1;
const ENABLE_MESSAGES: u32 = 4;
const DISABLE_MESSAGES: u32 = 5;

/// An error, as the kernel gets it.
type Failed = i32;
const NO_DEVICE: Failed = -1;
const BAD_OFFSET: Failed = -2;
const NOT_IMPLEMENTED: Failed = -4;
const OP_FAILED: Failed = -5;

/// The bus.
pub struct Bus {
    link: Link,
    memory: Memory,
    grants: Grants,
    functions: Vec<Arc<Pci>>,
    /// Physical interrupts that no message has.
    free: Vec<u32>,
    kernel: Option<Kernel>,
}

/// The kernel's half of a bus that is connected.
#[derive(Clone, Copy)]
struct Kernel {
    /// GPA of its page.
    page: u64,
    port: u32,
}

/// The physical interrupt that is the line of device `number`, below [`DEVICES_MAX`].
pub fn line(number: u8) -> u8 {
    FIRST_LINE + number
}

/// A request, copied.
struct Request {
    command: u32,
    is_ours: bool,
    device: usize,
    offset: u32,
    size: u32,
    value: u32,
    /// The numbers of its messages, as many as `value` says.
    messages: Vec<u16>,
}

impl Bus {
    /// A bus of these functions, at most [`DEVICES_MAX`], to which nobody is connected.
    pub fn new(memory: Memory, grants: Grants, functions: Vec<Arc<Pci>>) -> Self {
        let free = (FIRST_MESSAGE..PIRQS as u32).rev().collect();
        Self {
            link: Link::new("pci", 0, "pci-op-ref"),
            memory,
            grants,
            functions,
            free,
            kernel: None,
        }
    }

    /// Tells the kernel of the bus.
    pub fn announce(&self, store: &mut Store) {
        let backend = [("root_num", "1"), ("root-0", "0000:00")];
        self.link.announce(store, &[], &backend);
    }

    /// Looks where the frontend is, and follows. Tells whether something has changed, of which the kernel is to hear.
    pub fn follow(&mut self, store: &mut Store) -> bool {
        let Some(next) = self.link.next(store) else {
            return false;
        };
        match next {
            Next::Connect => self.kernel = self.connect(store),
            Next::Leave(_) => self.disconnect(),
            Next::Begin | Next::Reopen => {}
        }
        self.link.done(store, next, self.kernel.is_some())
    }

    fn connect(&self, store: &Store) -> Option<Kernel> {
        if self.link.told(store, "magic") != Some(MAGIC) {
            return None;
        }
        let grant = self.link.number(store, "pci-op-ref")?;
        let page = self.grants.page(grant, Use::Write).ok()?;
        Some(Kernel {
            page,
            port: self.link.number(store, "event-channel")?,
        })
    }

    fn disconnect(&mut self) {
        self.kernel = None;
        for function in &self.functions {
            self.free.extend(function.routes().disconnect());
        }
    }

    /// The kernel has called `port`. If it has a request there, answers it, and tells so.
    pub fn serve(&mut self, port: u32) -> bool {
        let Some(kernel) = self.kernel.filter(|kernel| kernel.port == port) else {
            return false;
        };
        let Some(request) = self.request(kernel.page) else {
            return false;
        };
        let answer = self.answer(&request);
        // The page was looked up when the bus was connected, and is RAM.
        self.tell(kernel.page, answer).is_some()
    }

    /// The request in the page, if there is one that is not answered.
    fn request(&self, page: u64) -> Option<Request> {
        let mut bytes = [0; size_of::<Page>()];
        let flags: u32 = self
            .memory
            .load(GuestAddress(page), Ordering::Acquire)
            .ok()?;
        self.memory
            .read_slice(&mut bytes, GuestAddress(page))
            .ok()?;
        let request = &bytes[offset_of!(Page, request)..];
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("4 bytes"));
        let at = offset_of!(PciRequest, messages);
        let function = word(offset_of!(PciRequest, function));
        let value = word(offset_of!(PciRequest, value));
        let messages = request[at..]
            .chunks_exact(4)
            .take(PCI_MESSAGES.min(value as usize));
        (flags & PCI_ACTIVE != 0).then(|| Request {
            command: word(offset_of!(PciRequest, command)),
            is_ours: word(offset_of!(PciRequest, domain)) == 0
                && word(offset_of!(PciRequest, bus)) == 0
                && function % 8 == 0,
            device: function as usize / 8,
            offset: word(offset_of!(PciRequest, offset)),
            size: word(offset_of!(PciRequest, size)),
            value,
            messages: messages
                .map(|entry| u16::from_le_bytes([entry[2], entry[3]]))
                .collect(),
        })
    }

    /// Does what is asked for: the value, and the interrupts of messages.
    fn answer(&mut self, request: &Request) -> Result<(u32, Vec<u32>), Failed> {
        let function = self
            .functions
            .get(request.device)
            .filter(|_| request.is_ours);
        let function = function.ok_or(NO_DEVICE)?.clone();
        let (offset, size) = (request.offset, request.size);
        let value = match request.command {
            CONFIG_READ => function.read_config(offset, size).ok_or(BAD_OFFSET)?,
            CONFIG_WRITE => {
                function
                    .write_config(offset, size, request.value)
                    .ok_or(BAD_OFFSET)?;
                request.value
            }
            ENABLE_MESSAGES => return Ok((0, self.enable(&function, request)?)),
            DISABLE_MESSAGES => {
                self.free.extend(function.routes().disconnect());
                0
            }
            _ => return Err(NOT_IMPLEMENTED),
        };
        Ok((value, Vec::new()))
    }

    /// Gives a physical interrupt to each of the messages. Those that the function had go back.
    fn enable(&mut self, function: &Pci, request: &Request) -> Result<Vec<u32>, Failed> {
        let routes = function.routes();
        self.free.extend(routes.disconnect());
        let mut wanted = request.messages.clone();
        wanted.sort_unstable();
        wanted.dedup();
        let are_there = wanted
            .last()
            .is_some_and(|&last| usize::from(last) < routes.count());
        let are_all = wanted.len() == request.value as usize && wanted.len() <= self.free.len();
        if !are_there || !are_all {
            return Err(OP_FAILED);
        }
        let given = self.free.split_off(self.free.len() - wanted.len());
        for (&message, &pirq) in request.messages.iter().zip(&given) {
            routes.connect(message.into(), pirq);
        }
        Ok(given)
    }

    /// Writes an answer, and says that it is there.
    fn tell(&self, page: u64, answer: Result<(u32, Vec<u32>), Failed>) -> Option<()> {
        let at = |offset: usize| GuestAddress(page + (offset_of!(Page, request) + offset) as u64);
        let error = answer.as_ref().err().copied().unwrap_or(0);
        self.memory
            .write_obj(error, at(offset_of!(PciRequest, error)))
            .ok()?;
        if let Ok((value, pirqs)) = answer {
            self.memory
                .write_obj(value, at(offset_of!(PciRequest, value)))
                .ok()?;
            for (index, pirq) in pirqs.into_iter().enumerate() {
                let place = at(offset_of!(PciRequest, messages) + 4 * index);
                self.memory.write_obj(pirq as u16, place).ok()?;
            }
        }
        let flags = self.memory.get_slice(GuestAddress(page), 4).ok()?;
        let flags = flags.get_atomic_ref::<AtomicU32>(0).ok()?;
        flags.fetch_and(!PCI_ACTIVE, Ordering::SeqCst);
        Some(())
    }
}

#[cfg(test)]
mod tests;
