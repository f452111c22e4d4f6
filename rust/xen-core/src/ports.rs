// SPDX-License-Identifier: GPL-2.0
//! Event channels of the two-level kind: who has which port, and how one is raised.

use core::sync::atomic::{AtomicU64, AtomicU8, Ordering::SeqCst};
use xen_abi::event_channel::status;
use xen_abi::handover::{CONSOLE_PORT, PORTS, STORE_PORT};
use xen_abi::number::error::{EEXIST, EINVAL, ENOSPC};

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing.
    Free,
    /// For a backend of the Launcher's: sending calls it.
    Backend,
    /// A virtual interrupt.
    Virq(u32),
    /// A physical interrupt, of a device that the Launcher has.
    Pirq(u32),
    /// For calls among vCPUs.
    Ipi,
}

impl Use {
    /// As `STATUS` shows it, with its number.
    pub const fn status(self) -> (u32, u32) {
        match self {
            Self::Free => (status::CLOSED, 0),
            Self::Backend => (status::INTERDOMAIN, 0),
            Self::Virq(virq) => (status::VIRQ, virq),
            Self::Pirq(pirq) => (status::PIRQ, pirq),
            Self::Ipi => (status::IPI, 0),
        }
    }
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// What for.
    pub used: Use,
    /// The vCPU that is interrupted.
    pub vcpu: u32,
}

/// All ports of the domain.
pub struct Ports([Port; PORTS]);

impl Ports {
    /// At the beginning xenstore and console have theirs. Port 0 is nobody's, ever.
    pub const fn new() -> Self {
        let mut ports = [Port {
            used: Use::Free,
            vcpu: 0,
        }; PORTS];
        ports[STORE_PORT as usize].used = Use::Backend;
        ports[CONSOLE_PORT as usize].used = Use::Backend;
        Self(ports)
    }

    /// A port by the number that a kernel gave.
    pub fn get(&self, port: u32) -> Result<Port, i64> {
        self.0
            .get(port as usize)
            .filter(|_| port != 0)
            .copied()
            .ok_or(EINVAL)
    }

    /// Gives out a port. A virtual interrupt of a vCPU and a physical one have one at most.
    pub fn bind(&mut self, used: Use, vcpu: u32) -> Result<u32, i64> {
        let exclusive = matches!(used, Use::Virq(_) | Use::Pirq(_));
        if exclusive && self.find(used, vcpu).is_some() {
            return Err(EEXIST);
        }
        let free = (1..PORTS)
            .find(|&i| self.0[i].used == Use::Free)
            .ok_or(ENOSPC)?;
        self.0[free] = Port { used, vcpu };
        Ok(free as u32)
    }

    /// Which port an interrupt has. A physical one has the same for all vCPUs.
    pub fn find(&self, used: Use, vcpu: u32) -> Option<u32> {
        let any_vcpu = matches!(used, Use::Pirq(_));
        self.0
            .iter()
            .position(|port| port.used == used && (any_vcpu || port.vcpu == vcpu))
            .map(|i| i as u32)
    }

    /// Has another vCPU interrupted.
    pub fn move_to(&mut self, port: u32, vcpu: u32) -> Result<(), i64> {
        if self.get(port)?.used == Use::Free {
            return Err(EINVAL);
        }
        self.0[port as usize].vcpu = vcpu;
        Ok(())
    }

    /// Takes a port back.
    pub fn close(&mut self, port: u32) -> Result<(), i64> {
        if self.get(port)?.used == Use::Free {
            return Err(EINVAL);
        }
        self.0[port as usize] = Port {
            used: Use::Free,
            vcpu: 0,
        };
        Ok(())
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self::new()
    }
}

/// The words by which ports are raised: the first two are the domain's, the last two those of the vCPU that is interrupted.
pub struct Words<'a> {
    /// `SharedInfo::evtchn_pending`.
    pub pending: &'a [AtomicU64; PORTS / 64],
    /// `SharedInfo::evtchn_mask`.
    pub mask: &'a [AtomicU64; PORTS / 64],
    /// `VcpuInfo::evtchn_pending_sel`.
    pub selector: &'a AtomicU64,
    /// `VcpuInfo::evtchn_upcall_pending`.
    pub upcall: &'a AtomicU8,
}

/// Who has to hear that a port was raised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hears {
    /// Those who poll for it: it was not pending before.
    pub pollers: bool,
    /// Its vCPU, which has no other upcall pending. Where it has, whoever was first has told it.
    pub vcpu: bool,
}

impl Words<'_> {
    /// Raises a port. Which is below [`PORTS`].
    pub fn raise(&self, port: u32) -> Hears {
        let (word, bit) = (port as usize / 64, 1 << (port % 64));
        let pollers = self.pending[word].fetch_or(bit, SeqCst) & bit == 0;
        let vcpu = pollers && self.mask[word].load(SeqCst) & bit == 0 && self.select(word);
        Hears { pollers, vcpu }
    }

    /// Unmasks a port, and raises it if it was pending.
    pub fn unmask(&self, port: u32) -> Hears {
        let (word, bit) = (port as usize / 64, 1 << (port % 64));
        self.mask[word].fetch_and(!bit, SeqCst);
        let vcpu = self.pending[word].load(SeqCst) & bit != 0 && self.select(word);
        Hears {
            pollers: false,
            vcpu,
        }
    }

    /// Forgets that a port was raised.
    pub fn clear(&self, port: u32) {
        self.pending[port as usize / 64].fetch_and(!(1 << (port % 64)), SeqCst);
    }

    /// Is a port raised?
    pub fn is_pending(&self, port: u32) -> bool {
        self.pending[port as usize / 64].load(SeqCst) & (1 << (port % 64)) != 0
    }

    /// The vCPU's part after it registered other words: whatever is pending is looked at again.
    pub fn select_all(&self) {
        self.selector.store(!0, SeqCst);
        self.upcall.store(1, SeqCst);
    }

    /// Tells whether no upcall was pending. The kernel takes the upcall first, and then the selector.
    fn select(&self, word: usize) -> bool {
        self.selector.fetch_or(1 << word, SeqCst);
        self.upcall.swap(1, SeqCst) == 0
    }
}
