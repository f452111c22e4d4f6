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
use crate::xen::store::Store;

/// Devices on the bus.
pub const DEVICES_MAX: usize = 32;
/// The lower ones are taken for those of a PC, which cannot be shared.
pub const FIRST_LINE: u8 = 16;
const FIRST_MESSAGE: u32 = FIRST_LINE as u32 + DEVICES_MAX as u32;

const FRONTEND: &str = "/local/domain/1/device/pci/0";
const BACKEND: &str = "/local/domain/0/backend/pci/1/0";
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

/// The steps by which a frontend and its backend meet (`enum xenbus_state`).
const INITIALISING: &str = "1";
const INIT_WAIT: &str = "2";
const INITIALISED: &str = "3";
const CONNECTED: &str = "4";
const CLOSING: &str = "5";
const CLOSED: &str = "6";

/// The bus.
pub struct Bus {
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
            memory,
            grants,
            functions,
            free,
            kernel: None,
        }
    }

    /// Tells the kernel of the bus.
    pub fn announce(store: &mut Store) {
        for (name, value) in [
            ("backend", BACKEND),
            ("backend-id", "0"),
            ("state", INITIALISING),
        ] {
            store.set(&format!("{FRONTEND}/{name}"), value);
        }
        for (name, value) in [
            ("frontend", FRONTEND),
            ("frontend-id", "1"),
            ("online", "1"),
            ("root_num", "1"),
            ("root-0", "0000:00"),
            ("state", INIT_WAIT),
        ] {
            store.set(&format!("{BACKEND}/{name}"), value);
        }
    }

    /// Looks where the frontend is, and follows. Tells whether something has changed, of which the kernel is to hear.
    pub fn follow(&mut self, store: &mut Store) -> bool {
        let page = format!("{FRONTEND}/pci-op-ref");
        let frontend = store.get(&format!("{FRONTEND}/state")).unwrap_or(CLOSED);
        let backend = store.get(&format!("{BACKEND}/state")).unwrap_or(CLOSED);
        let (end, next) = match (frontend, backend) {
            // Linux takes a frontend for a new one if it reads this state and has meanwhile stored another, which can
            // happen while it connects (xenbus_dev_changed in 7.3). So it is another from the moment on in
            // which it has said where its page is, before it hears of that itself.
            (INITIALISING, INIT_WAIT) if store.get(&page).is_some() => (FRONTEND, INIT_WAIT),
            (INITIALISED, INIT_WAIT | CLOSED) => match self.connect(store) {
                Some(kernel) => {
                    self.kernel = Some(kernel);
                    (BACKEND, CONNECTED)
                }
                None if backend == CLOSED => return false,
                None => (BACKEND, CLOSED),
            },
            // A kernel that powers off waits for this.
            (CLOSING, INIT_WAIT | CONNECTED) => {
                self.disconnect();
                (BACKEND, CLOSING)
            }
            (CLOSED, INIT_WAIT | CONNECTED | CLOSING) => {
                self.disconnect();
                (BACKEND, CLOSED)
            }
            (INITIALISING, CLOSED) => (BACKEND, INIT_WAIT),
            _ => return false,
        };
        // Who asks until nothing changes must come to an end where there is no room.
        store.set(&format!("{end}/state"), next)
    }

    fn connect(&self, store: &Store) -> Option<Kernel> {
        let number = |name| {
            store
                .get(&format!("{FRONTEND}/{name}"))?
                .parse::<u32>()
                .ok()
        };
        if store.get(&format!("{FRONTEND}/magic")) != Some(MAGIC) {
            return None;
        }
        let page = self.grants.page(number("pci-op-ref")?, Use::Write).ok()?;
        Some(Kernel {
            page,
            port: number("event-channel")?,
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
