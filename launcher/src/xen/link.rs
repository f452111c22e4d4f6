// SPDX-License-Identifier: GPL-2.0
//! How a frontend, the kernel's half of a device, and its backend meet: by nodes of the xenstore, in which each stores its
//! state (`enum xenbus_state`, io/xenbus.h of Xen).

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::xen::store::Store;

/// A device that is no function of the bus. A thread of its own serves it.
pub trait Backend: Send + Sync {
    /// Tells the kernel of it.
    fn announce(&self, store: &mut Store);
    /// Looks where the frontend is, and follows. Tells whether something has changed, of which the kernel is to hear.
    fn follow(&self, store: &mut Store) -> bool;
    /// The kernel has called `port`; if that is this device's, wakes who serves it.
    fn serve(&self, port: u32);
    /// Serves the kernel's calls, for ever.
    ///
    /// # Errors
    ///
    /// The system does not let us wait for them.
    fn serve_calls(&self) -> io::Result<()>;
    /// Serves all that is there.
    fn process(&self);
}

const INITIALISING: &str = "1";
const INIT_WAIT: &str = "2";
const INITIALISED: &str = "3";
pub(super) const CONNECTED: &str = "4";
const CLOSING: &str = "5";
pub(super) const CLOSED: &str = "6";

/// The two directories of a device.
pub struct Link {
    frontend: String,
    backend: String,
    /// A node that the frontend stores when it connects, before its state.
    mark: &'static str,
}

/// The backend's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The frontend has begun to connect, which is to be seen.
    Begin,
    /// It has told all that it takes to connect.
    Connect,
    /// It leaves: nothing of it may be used any more. This is the backend's state then.
    Leave(&'static str),
    /// Another frontend is there.
    Reopen,
}

impl Link {
    /// That of device `number` of a `kind`, such as "pci". The frontend stores the node `mark` when it connects.
    pub fn new(kind: &str, number: u32, mark: &'static str) -> Self {
        Self {
            frontend: format!("/local/domain/1/device/{kind}/{number}"),
            backend: format!("/local/domain/0/backend/{kind}/1/{number}"),
            mark,
        }
    }

    /// Tells the kernel of the device, whose frontend and backend have these nodes beside the usual ones.
    pub fn announce(&self, store: &mut Store, frontend: &[(&str, &str)], backend: &[(&str, &str)]) {
        let usual = [
            ("frontend", &self.frontend[..]),
            ("frontend-id", "1"),
            ("online", "1"),
            ("state", INIT_WAIT),
        ];
        for (name, value) in backend.iter().chain(&usual) {
            store.set(&format!("{}/{name}", self.backend), value);
        }
        // The state comes last: who sees it finds all the others.
        let usual = [
            ("backend", &self.backend[..]),
            ("backend-id", "0"),
            ("state", INITIALISING),
        ];
        for (name, value) in frontend.iter().chain(&usual) {
            store.set(&format!("{}/{name}", self.frontend), value);
        }
    }

    /// What the frontend says under `name`.
    pub fn told<'a>(&self, store: &'a Store, name: &str) -> Option<&'a str> {
        store.get(&format!("{}/{name}", self.frontend))
    }

    /// The number that it says under `name`.
    pub fn number(&self, store: &Store, name: &str) -> Option<u32> {
        self.told(store, name)?.parse().ok()
    }

    /// What is to be done now, if anything is.
    pub fn next(&self, store: &Store) -> Option<Next> {
        let frontend = self.told(store, "state").unwrap_or(CLOSED);
        Some(match (frontend, self.state(store)) {
            // Linux takes a frontend for a new one if it reads this state and has meanwhile stored another, which can
            // happen while it connects (xenbus_dev_changed in 7.3). So it is another from the moment on in
            // which it has said where its page is, before it hears of that itself.
            (INITIALISING, INIT_WAIT) if self.told(store, self.mark).is_some() => Next::Begin,
            // xen-netfront leaves out the first of these, and waits for nothing more.
            (INITIALISED | CONNECTED, INIT_WAIT | CLOSED) => Next::Connect,
            // A kernel that powers off waits for this.
            (CLOSING, INIT_WAIT | CONNECTED) => Next::Leave(CLOSING),
            (CLOSED, INIT_WAIT | CONNECTED | CLOSING) => Next::Leave(CLOSED),
            (INITIALISING, CLOSED) => Next::Reopen,
            _ => return None,
        })
    }

    /// The step `next` is done; if it was to connect, with success or not. Tells whether something has changed, of which the
    /// kernel is to hear.
    pub fn done(&self, store: &mut Store, next: Next, connected: bool) -> bool {
        let (end, state) = match next {
            Next::Begin => (&self.frontend, INIT_WAIT),
            Next::Connect if connected => (&self.backend, CONNECTED),
            Next::Connect if self.state(store) == CLOSED => return false,
            Next::Connect => (&self.backend, CLOSED),
            Next::Leave(state) => (&self.backend, state),
            Next::Reopen => (&self.backend, INIT_WAIT),
        };
        // Who asks until nothing changes must come to an end where there is no room.
        store.set(&format!("{end}/state"), state)
    }

    /// The backend's state.
    pub(super) fn state<'a>(&self, store: &'a Store) -> &'a str {
        store
            .get(&format!("{}/state", self.backend))
            .unwrap_or(CLOSED)
    }
}

/// A device that a thread of its own serves: what it has of its own, and the kernel's half.
pub(super) struct Served<D, K> {
    /// Where the two meet.
    pub(super) link: Link,
    work: Mutex<Work<D, K>>,
}

/// The part that one thread uses at a time.
pub(super) struct Work<D, K> {
    /// What serves the kernel.
    pub(super) device: D,
    /// The kernel's half, while it is connected.
    pub(super) kernel: Option<Kernel<K>>,
}

/// The kernel's half of a device.
pub(super) struct Kernel<K> {
    /// What it has granted.
    pub(super) rings: K,
    /// The port by which each calls the other.
    pub(super) port: u32,
}

impl<D, K> Served<D, K> {
    /// A device whose kernel is not connected.
    pub(super) fn new(link: Link, device: D) -> Self {
        let work = Mutex::new(Work {
            device,
            kernel: None,
        });
        Self { link, work }
    }

    /// Waits for whoever is at work.
    pub(super) fn work(&self) -> MutexGuard<'_, Work<D, K>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same as [`Backend::follow`]: `connect` makes of what the kernel has stored its half, and `call` wakes who serves.
    pub(super) fn follow(
        &self,
        store: &mut Store,
        connect: impl FnOnce(&Store) -> Option<Kernel<K>>,
        call: impl FnOnce(),
    ) -> bool {
        let Some(next) = self.link.next(store) else {
            return false;
        };
        let kernel = match next {
            Next::Connect => connect(store),
            _ => None,
        };
        let is_connected = kernel.is_some();
        // Who is at work is waited for: when the kernel hears that it may leave, its pages are its own.
        self.work().kernel = kernel;
        if is_connected {
            call();
        }
        self.link.done(store, next, is_connected)
    }

    /// May a call of `port` be for this device? Whoever is at work looks for more before it ends, but not before it is
    /// told, so then it may.
    pub(super) fn may_hear(&self, port: u32) -> bool {
        let work = match self.work.try_lock() {
            Ok(work) => work,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        (work.kernel.as_ref()).is_some_and(|kernel| kernel.port == port)
    }
}
