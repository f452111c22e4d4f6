// SPDX-License-Identifier: GPL-2.0
//! What a kernel that runs by Xen's paravirtual ABI finds around it: the console, the xenstore, the PCI bus, disks, and a
//! network.
//!
//! The kernel calls by a port of an event channel, which the shim passes on: hypercall NOTIFY, which has no eventfd
//! here. So it is the vCPU's thread that serves the call, before the hypercall returns: Linux waits for each of
//! these, mostly with interrupts off, and another thread would have to be woken for it. The virtio devices behind
//! the bus have their threads, as any.
//!
//! The kernel is hostile: see [`ring`], [`crate::memory::grants`], [`store`] for what holds it. A ring that it has broken is not
//! served any more, which is told once.

#![forbid(unsafe_code)]

pub mod block;
pub mod console;
pub mod events;
pub mod link;
pub mod net;
pub mod pci;
pub mod ring;
pub mod slots;
pub mod store;
#[cfg(any(test, fuzzing))]
pub mod testing;

use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xen_abi::handover::{CONSOLE_PORT, STORE_PORT};

use crate::boot::xen::Places;
use crate::devices::blk::disk::Disk;
use crate::devices::bytes::{Input, Output};
use crate::devices::net::cable::Cable;
use crate::devices::net::peer::Mac;
use crate::devices::pci::Pci;
use crate::memory::Memory;
use crate::report::messages::say;
use block::Block;
use console::Console;
use events::Events;
use link::Backend;
use net::Interface;
use pci::Bus;
use store::Store;

/// All of it.
pub struct Xen {
    notify: u64,
    events: Arc<Events>,
    state: Mutex<State>,
    beside: Vec<Arc<dyn Backend>>,
}

struct State {
    /// `None` when the kernel has broken it.
    console: Option<Console>,
    /// The same.
    store: Option<Store>,
    bus: Bus,
    beside: Vec<Arc<dyn Backend>>,
}

impl Xen {
    /// For the kernel at `places` of `memory`, with these functions on its PCI bus, and these disks and this network beside it.
    /// What is typed at the console comes from `input`, what is printed goes to `output`.
    ///
    /// # Errors
    ///
    /// There are no descriptors.
    pub fn new(
        memory: &Memory,
        places: &Places,
        functions: Vec<Arc<Pci>>,
        disks: Vec<Disk>,
        network: Option<(Mac, Cable)>,
        (input, output): (Arc<Input>, Output),
        events: Arc<Events>,
    ) -> io::Result<Self> {
        let grants = places.grants(memory);
        let console = Console::new(memory.clone(), places.console, input, output);
        let mut store = Store::new(memory.clone(), places.store);
        for (path, text) in [
            ("/local/domain/1/domid", "1"),
            ("/local/domain/1/name", "lg"),
            ("/local/domain/1/control", ""),
            ("/local/domain/1/device", ""),
        ] {
            store.set(path, text);
        }
        for vcpu in 0..places.vcpus {
            store.set(
                &format!("/local/domain/1/cpu/{vcpu}/availability"),
                "online",
            );
        }
        let ways = || (memory.clone(), grants.clone(), events.clone());
        let mut beside: Vec<Arc<dyn Backend>> = Vec::new();
        for (number, disk) in (0..).zip(disks) {
            let (memory, grants, events) = ways();
            beside.push(Arc::new(Block::new(number, disk, memory, grants, events)));
        }
        if let Some(network) = network {
            let (memory, grants, events) = ways();
            beside.push(Arc::new(Interface::new(network, memory, grants, events)?));
        }
        for backend in &beside {
            backend.announce(&mut store);
        }
        // A kernel that has something beside it has no driver for the bus.
        let has_bus = !functions.is_empty() && beside.is_empty();
        let bus = Bus::new(memory.clone(), grants, functions);
        if has_bus {
            bus.announce(&mut store);
        }
        let state = Mutex::new(State {
            console: Some(console),
            store: Some(store),
            bus,
            beside: beside.clone(),
        });
        Ok(Self {
            notify: places.notify,
            events,
            state,
            beside,
        })
    }

    /// Hypercall NOTIFY named `gpa` and `port`. Anything else than the place for it, and a port that no backend has,
    /// is the kernel's mistake.
    pub fn notify(&self, gpa: u64, port: u64) {
        match u32::try_from(port) {
            Ok(port) if gpa == self.notify => self.serve(port),
            _ => {}
        }
    }

    /// Serves `port`, where the kernel may have something.
    fn serve(&self, port: u32) {
        let mut state = self.state();
        let is_served = match port {
            CONSOLE_PORT => state.serve_console(),
            STORE_PORT => state.serve_store(),
            _ => state.bus.serve(port),
        };
        drop(state);
        self.beside.iter().for_each(|backend| backend.serve(port));
        if is_served {
            self.events.port(port);
        }
    }

    /// The devices that are no functions. Each wants a thread.
    pub fn beside(&self) -> &[Arc<dyn Backend>] {
        &self.beside
    }

    /// Does all that the kernel has asked for, and shows all that it has printed: it ends.
    pub fn finish(&self) {
        self.beside.iter().for_each(|backend| backend.process());
        self.serve(CONSOLE_PORT);
        if let Some(console) = &mut self.state().console {
            console.finish();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Tells whether the kernel is to hear of it.
    fn serve_console(&mut self) -> bool {
        let served = self.console.as_mut().map_or(Ok(false), Console::serve);
        served.unwrap_or_else(|error| {
            self.console = None;
            broken("console", &error)
        })
    }

    /// The same.
    fn serve_store(&mut self) -> bool {
        let Some(store) = &mut self.store else {
            return false;
        };
        let mut is_served = false;
        loop {
            match store.serve() {
                Ok(served) => {
                    is_served |= served.busy;
                    let mut followed = self.bus.follow(store);
                    for backend in &self.beside {
                        followed |= backend.follow(store);
                    }
                    if !followed && !served.changed {
                        return is_served;
                    }
                }
                Err(error) => {
                    self.store = None;
                    return broken("xenstore", &error);
                }
            }
        }
    }
}

fn broken(what: &str, error: &dyn Display) -> bool {
    say(&format!("the {what} is not served any more: {error}"));
    false
}
