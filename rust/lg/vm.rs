// SPDX-License-Identifier: GPL-2.0

//! One virtual machine: what an open /dev/lguest is. The locks of a VM are in the order of `shared`.

use crate::{
    abi::*,
    inbox::Inbox,
    lg_core::addr::{
        Gpa,
        Gva, //
    },
    mmu::Mmu,
    module_parameters,
    notify::Notify,
    shared::Shared,
    sys::{
        compat,
        cpu,
        host,
        ram::GuestRam,
        slots::Lease, //
    },
    vcpu::{
        Parts,
        Vcpu, //
    },
};
use kernel::{
    mm::virt::VmaNew,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        UniqueArc, //
    },
};

/// A VM's memory, before and after its first vCPU was made.
enum Memory {
    /// Regions are being added.
    Setup(GuestRam),
    /// They do not change any more.
    Shared(Arc<Shared>),
}

/// With less, one instruction might need more tables than there may be, and never get anywhere. The
/// worst is a gather of 16 elements, each across two pages, which itself lies across two: 34 pages
/// with three tables each, and the roots.
const MIN_SHADOW_PAGES: u32 = 256;

#[pin_data]
pub(crate) struct Vm {
    /// Held while it runs.
    #[pin]
    vcpu: Mutex<Option<Vcpu>>,
    #[pin]
    memory: Mutex<Memory>,
    notify: Arc<Notify>,
    inbox: Arc<Inbox>,
}

impl Vm {
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let notify = Arc::pin_init(Notify::new(), GFP_KERNEL_ACCOUNT)?;
        let inbox = Arc::pin_init(Inbox::new(), GFP_KERNEL_ACCOUNT)?;
        Ok(pin_init!(Self {
            vcpu <- new_mutex!(None, "lg::vcpu"),
            memory <- new_mutex!(Memory::Setup(GuestRam::new()), "lg::memory"),
            notify,
            inbox,
        }))
    }

    pub(crate) fn info() -> lguest_info {
        lguest_info {
            abi_version: LGUEST_ABI_VERSION,
            max_vcpus: LGUEST_MAX_VCPUS,
            paging_levels: cpu::paging_levels().into(),
            tsc_khz: host::tsc_khz(),
        }
    }

    /// `EBUSY` once there is a vCPU, or while another thread makes one.
    pub(crate) fn add_memory(&self, region: lguest_memory) -> Result {
        match &mut *self.memory.try_lock().ok_or(EBUSY)? {
            Memory::Setup(ram) => ram.add(region),
            Memory::Shared(_) => Err(EBUSY),
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
        let parts = Parts::new(init.id, slot.clone())?;
        let max_pages = compat::parameter(module_parameters::max_shadow_pages.value());
        let max_pages = max_pages.max(MIN_SHADOW_PAGES) as usize;
        let five_levels = cpu::paging_levels() == 5;
        let (mmu, root) = Mmu::new(Gpa::new(init.cr3), slot, five_levels, max_pages)?;
        let room = UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?;
        // Nothing can fail any more, so the RAM may go.
        let ram = core::mem::replace(ram, GuestRam::new());
        let Ok(shared) = room.pin_init_with(Shared::new(mmu, self.notify.clone(), ram));
        let shared: Arc<Shared> = shared.into();
        let new = Vcpu::new(init, parts, root, shared.clone(), self.inbox.clone());
        *memory = Memory::Shared(shared);
        *vcpu = Some(new);
        Ok(())
    }

    /// `EBUSY` if another thread runs it, `ENXIO` if there is none or it is over.
    pub(crate) fn run(&self, run: &mut lguest_run) -> Result {
        if run.vcpu >= LGUEST_MAX_VCPUS {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        (*vcpu).as_mut().ok_or(ENXIO)?.run(run)
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none or it is over.
    pub(crate) fn set_debug(&self, debug: &lguest_debug) -> Result {
        if debug.vcpu >= LGUEST_MAX_VCPUS || debug.reserved != [0; 2] {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        (*vcpu).as_mut().ok_or(ENXIO)?.set_debug(debug.flags)
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none.
    pub(crate) fn set_trace(&self, trace: &lguest_trace) -> Result {
        if trace.vcpu >= LGUEST_MAX_VCPUS {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        (*vcpu).as_mut().ok_or(ENXIO)?.set_trace(trace)
    }

    /// `EBUSY` while the vCPU runs, whose lock comes before that of an address space. `ENXIO` if there is nothing
    /// to map.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        let vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        (*vcpu).as_ref().ok_or(ENXIO)?.map_trace(vma)
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none.
    pub(crate) fn walk(&self, walk: &mut lguest_walk) -> Result {
        if walk.vcpu >= LGUEST_MAX_VCPUS || walk.user_mode > 1 {
            return Err(EINVAL);
        }
        let vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        let user = walk.user_mode != 0;
        walk.entries = (*vcpu).as_ref().ok_or(ENXIO)?.way(user, Gva::new(walk.gva));
        Ok(())
    }

    pub(crate) fn raise_line(&self, line: usize) -> Result {
        if line >= LGUEST_LINES as usize {
            return Err(EINVAL);
        }
        self.inbox
            .raise((LGUEST_VECTOR_LINE0 as usize + line) as u8);
        Ok(())
    }

    /// Replaces the eventfd if the queue has one already.
    pub(crate) fn set_notifyfd(&self, new: lguest_notifyfd) -> Result {
        self.notify.set(new)
    }

    /// `EBUSY` while the vCPU runs.
    pub(crate) fn stats(&self) -> Result<lguest_stats> {
        let mut vcpu = self.vcpu.try_lock().ok_or(EBUSY)?;
        let mut stats = (*vcpu).as_mut().ok_or(ENXIO)?.stats();
        match &*self.memory.lock() {
            Memory::Setup(_) => return Err(ENXIO),
            Memory::Shared(shared) => shared.add_stats(&mut stats),
        }
        Ok(stats)
    }
}
