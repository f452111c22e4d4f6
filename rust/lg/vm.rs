// SPDX-License-Identifier: GPL-2.0

//! One virtual machine: what belongs to all its vCPUs.
//!
//! Lock order: `vcpu`, `memory`, `notify`.

use crate::{
    abi::*,
    blame::Stop,
    irq::Interrupts,
    lg_core::addr::Gpa,
    mmu::Mmu,
    sys::{
        cpu,
        eventfd::EventFd,
        page::Wait,
        ram::GuestRam,
        slots::Lease,
        timer::Timer, //
    },
    vcpu::Vcpu,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        lock::mutex::MutexGuard,
        Arc,
        Mutex, //
    },
};

/// A VM's memory, before and after its first vCPU was made.
pub(crate) enum Memory {
    /// Regions are being added.
    Setup(GuestRam),
    Ready(Mmu),
}

impl Memory {
    /// `ENXIO` before there is a vCPU.
    pub(crate) fn mmu(&mut self) -> Result<&mut Mmu> {
        match self {
            Self::Setup(_) => Err(ENXIO),
            Self::Ready(mmu) => Ok(mmu),
        }
    }
}

/// With less, one instruction might need more tables than there may be, and never get anywhere.
const MIN_SHADOW_PAGES: u32 = 256;

struct Notify {
    gpa: u64,
    queue: u32,
    event: EventFd,
}

fn lock<T>(mutex: &Mutex<T>, wait: Wait) -> Result<MutexGuard<'_, T>, Stop> {
    match wait {
        Wait::Allowed => Ok(mutex.lock()),
        Wait::Forbidden => mutex.try_lock().ok_or(Stop::Later),
    }
}

#[pin_data]
pub(crate) struct Vm {
    /// Held while it runs.
    #[pin]
    vcpu: Mutex<Option<Vcpu>>,
    #[pin]
    memory: Mutex<Memory>,
    #[pin]
    notify: Mutex<KVec<Notify>>,
    interrupts: Arc<Timer<Interrupts>>,
}

impl Vm {
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let interrupts = Arc::pin_init(Interrupts::with_timer(), GFP_KERNEL_ACCOUNT)?;
        Ok(pin_init!(Self {
            vcpu <- new_mutex!(None, "lg::vcpu"),
            memory <- new_mutex!(Memory::Setup(GuestRam::new()), "lg::memory"),
            notify <- new_mutex!(KVec::new(), "lg::notify"),
            interrupts,
        }))
    }

    pub(crate) fn info() -> lguest_info {
        lguest_info {
            abi_version: LGUEST_ABI_VERSION,
            max_vcpus: LGUEST_MAX_VCPUS,
            paging_levels: cpu::paging_levels().into(),
            tsc_khz: cpu::tsc_khz(),
        }
    }

    /// `EBUSY` once there is a vCPU. It may be running, and wait for memory of its Launcher's with
    /// the lock held.
    pub(crate) fn add_memory(&self, region: lguest_memory) -> Result {
        match &mut *self.memory.try_lock().ok_or(EBUSY)? {
            Memory::Setup(ram) => ram.add(region),
            Memory::Ready(_) => Err(EBUSY),
        }
    }

    /// `EEXIST` if it exists, `EINVAL` for one that can't, `EBUSY` if the caller's address space
    /// runs another VM.
    pub(crate) fn create_vcpu(&self, init: &lguest_vcpu) -> Result {
        if init.id >= LGUEST_MAX_VCPUS || init.pad != 0 {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        if vcpu.is_some() {
            return Err(EEXIST);
        }
        let mut memory = self.memory.lock();
        let ram = match &mut *memory {
            Memory::Setup(ram) if Vcpu::accepts(init, ram) => ram,
            _ => return Err(EINVAL),
        };
        let slot = Arc::new(Lease::new(LGUEST_MAX_VCPUS)?, GFP_KERNEL_ACCOUNT)?;
        let max_pages = crate::module_parameters::max_shadow_pages
            .value()
            .max(MIN_SHADOW_PAGES) as usize;
        let five_levels = cpu::paging_levels() == 5;
        let root = Gpa::new(init.cr3);
        let (mmu, roots) = Mmu::new(root, slot.clone(), five_levels, max_pages)?;
        let new = Vcpu::new(init, slot, &roots, self.interrupts.clone())?;
        // Nothing can fail any more, so the RAM may go.
        let ram = core::mem::replace(ram, GuestRam::new());
        *memory = Memory::Ready(mmu.with_ram(ram));
        *vcpu = Some(new);
        Ok(())
    }

    /// `EBUSY` if another thread runs it, `ENXIO` if there is none or it is over.
    pub(crate) fn run(&self, run: &mut lguest_run) -> Result {
        if run.vcpu >= LGUEST_MAX_VCPUS {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        (*vcpu).as_mut().ok_or(ENXIO)?.run(self, run)
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none or it is over.
    pub(crate) fn set_debug(&self, debug: &lguest_debug) -> Result {
        if debug.vcpu >= LGUEST_MAX_VCPUS || debug.reserved != [0; 2] {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        (*vcpu).as_mut().ok_or(ENXIO)?.set_debug(debug.flags)
    }

    pub(crate) fn raise_line(&self, line: usize) -> Result {
        if line >= LGUEST_LINES as usize {
            return Err(EINVAL);
        }
        self.interrupts
            .owner()
            .raise((LGUEST_VECTOR_LINE0 as usize + line) as u8);
        Ok(())
    }

    /// Replaces the eventfd if the queue has one already.
    pub(crate) fn set_notifyfd(&self, new: lguest_notifyfd) -> Result {
        let event = EventFd::from_fd(new.fd)?;
        let mut list = self.notify.lock();
        if let Some(entry) = list
            .iter_mut()
            .find(|n| (n.gpa, n.queue) == (new.gpa, new.queue))
        {
            entry.event = event;
            return Ok(());
        }
        if list.len() >= LGUEST_MAX_NOTIFYFDS as usize {
            return Err(ENOSPC);
        }
        list.push(
            Notify {
                gpa: new.gpa,
                queue: new.queue,
                event,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(())
    }

    /// The memory, locked.
    pub(crate) fn memory(&self, wait: Wait) -> Result<MutexGuard<'_, Memory>, Stop> {
        lock(&self.memory, wait)
    }

    /// Frees some of what the shadow has dropped; says whether there is more. May sleep.
    pub(crate) fn free_dropped(&self) -> Result<bool> {
        Ok(self.memory.lock().mmu()?.free_dropped())
    }

    /// Signals the eventfd of a queue; `false` if it has none.
    pub(crate) fn notify(&self, gpa: u64, queue: u64, wait: Wait) -> Result<bool, Stop> {
        let list = lock(&self.notify, wait)?;
        let entry = list
            .iter()
            .find(|n| (n.gpa, u64::from(n.queue)) == (gpa, queue));
        if let Some(entry) = entry {
            entry.event.signal();
        }
        Ok(entry.is_some())
    }

    /// `EBUSY` while the vCPU runs.
    pub(crate) fn stats(&self) -> Result<lguest_stats> {
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        let mut stats = (*vcpu).as_mut().ok_or(ENXIO)?.stats();
        self.memory.lock().mmu()?.add_stats(&mut stats);
        Ok(stats)
    }
}
