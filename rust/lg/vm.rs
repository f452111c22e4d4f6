// SPDX-License-Identifier: GPL-2.0

//! One virtual machine: what an open /dev/lguest is. The locks of a VM are in the order of `shared`.

use crate::{
    abi::*,
    counts,
    crew::Crew,
    lg_core::addr::{
        Gpa,
        Gva, //
    },
    memory::Memory,
    mmu::{
        Generations,
        Mmu, //
    },
    module_parameters,
    notify::Notify,
    shared::Shared,
    sys::{
        compat,
        cpu,
        host,
        nospec,
        notifier::Notifier,
        ram::Regions,
        ring::Ring,
        slots::Lease,
        tags, //
    },
    vcpu::{
        Parts,
        Vcpu, //
    },
};
use core::cmp::Ordering::{
    Equal,
    Greater,
    Less, //
};
use kernel::{
    mm::virt::VmaNew,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        SetOnce,
        UniqueArc, //
    },
};

/// A VM before and after its first vCPU was made.
enum Stage {
    /// Regions are being added.
    Setup(Regions),
    /// They do not change any more.
    Shared(Arc<Shared>),
}

/// With less, one instruction might need more tables than there may be, and never get anywhere. The
/// worst is a gather of 16 elements, each across two pages, which itself lies across two: 34 pages
/// with three tables each, and the roots.
const MIN_SHADOW_PAGES: u32 = 256;

#[pin_data]
pub(crate) struct Vm {
    /// Each is locked while it runs.
    vcpus: [SetOnce<Arc<Mutex<Vcpu>>>; LGUEST_MAX_VCPUS as usize],
    #[pin]
    stage: Mutex<Stage>,
    notify: Arc<Notify>,
    crew: Arc<Crew>,
}

impl Vm {
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let notify = Arc::pin_init(Notify::new(), GFP_KERNEL_ACCOUNT)?;
        let crew = Arc::new(Crew::new()?, GFP_KERNEL_ACCOUNT)?;
        Ok(pin_init!(Self {
            vcpus: [const { SetOnce::new() }; LGUEST_MAX_VCPUS as usize],
            stage <- new_mutex!(Stage::Setup(Regions::new()), "lg::stage"),
            notify,
            crew,
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

    /// `EBUSY` once there is a vCPU, or there would be one if memory for it had not failed, or while another thread makes one.
    pub(crate) fn add_memory(&self, region: lguest_memory) -> Result {
        match &mut *self.stage.try_lock().ok_or(EBUSY)? {
            Stage::Setup(regions) => regions.add(region),
            Stage::Shared(_) => Err(EBUSY),
        }
    }

    /// `EEXIST` if it exists, `EINVAL` for one that can't, `EBUSY` if the caller's address space
    /// runs another VM, or while another thread makes one, `EINTR` on a signal.
    // Not a part of ioctl's frame on the stack, on which LGUEST_RUN has the Host's interrupts, too.
    #[inline(never)]
    pub(crate) fn create_vcpu(&self, init: &lguest_vcpu) -> Result {
        let id = init.id as usize;
        let place = nospec::get(&self.vcpus, id).ok_or(EINVAL)?;
        let mut stage = self.stage.try_lock().ok_or(EBUSY)?;
        match id.cmp(&self.crew.count()) {
            Less => return Err(EEXIST),
            Equal => {}
            Greater => return Err(EINVAL),
        }
        let inbox = self.crew.inbox_of_next(id)?;
        let accepted = match &*stage {
            Stage::Setup(regions) => Vcpu::accepts(init, |gpa| regions.contains(gpa)),
            Stage::Shared(shared) => Vcpu::accepts(init, |gpa| shared.ram().contains(gpa)),
        };
        if !accepted {
            return Err(EINVAL);
        }
        let shared = match &mut *stage {
            Stage::Setup(regions) => {
                let shared = self.share(regions)?;
                *stage = Stage::Shared(shared.clone());
                shared
            }
            Stage::Shared(shared) => shared.clone(),
        };
        let parts = Parts::new(init.id, shared.lease.clone())?;
        let seat = UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?;
        let root = shared.enter(&inbox, Gpa::new(init.cr3));
        let root = root.map_err(|_| ENOMEM)?;
        let vcpu = Vcpu::new(init, parts, root, shared, inbox);
        let Ok(seat) = seat.pin_init_with(new_mutex!(vcpu, "lg::vcpu"));
        // First: whoever waits for those who are in the Guest has to see it before it can be.
        self.crew.enlist();
        place.populate(seat.into());
        Ok(())
    }

    /// What all vCPUs share. The regions go there, if nothing fails.
    fn share(&self, regions: &mut Regions) -> Result<Arc<Shared>> {
        let lease = Arc::new(Lease::new()?, GFP_KERNEL_ACCOUNT)?;
        let max_pages = compat::parameter(module_parameters::max_shadow_pages.value());
        let max_pages = max_pages.max(MIN_SHADOW_PAGES) as usize;
        let five_levels = cpu::paging_levels() == 5;
        let generations = Generations::new(tags::number_of_next_vm());
        let generations = Arc::new(generations, GFP_KERNEL_ACCOUNT)?;
        let shadow = (lease.clone(), generations.clone());
        let shadow = Mmu::new(shadow, five_levels, max_pages)?;
        let memory = Memory::new(self.crew.clone());
        let memory = Notifier::new(lease.mm().into(), memory);
        let memory = Arc::pin_init(memory, GFP_KERNEL_ACCOUNT)?;
        let others = (self.crew.clone(), self.notify.clone());
        let shared = Shared::new((shadow, generations), others, lease, memory);
        let shared = Arc::pin_init(shared, GFP_KERNEL_ACCOUNT)?;
        let regions = core::mem::replace(regions, Regions::new());
        shared.ram().set(regions);
        Ok(shared)
    }

    /// A vCPU, to be locked. `EINVAL` for one that can't be, `ENXIO` if there is none.
    fn vcpu(&self, id: u32) -> Result<&Mutex<Vcpu>> {
        let place = nospec::get(&self.vcpus, id as usize).ok_or(EINVAL)?;
        Ok(place.as_ref().ok_or(ENXIO)?)
    }

    /// `EBUSY` if another thread runs it, `ENXIO` if there is none or it is over.
    pub(crate) fn run(&self, run: &mut lguest_run) -> Result {
        let mut vcpu = self.vcpu(run.vcpu)?.try_lock().ok_or(EBUSY)?;
        vcpu.run(run)
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none or it is over.
    pub(crate) fn set_debug(&self, debug: &lguest_debug) -> Result {
        if debug.reserved != [0; 2] {
            return Err(EINVAL);
        }
        let mut vcpu = self.vcpu(debug.vcpu)?.try_lock().ok_or(EBUSY)?;
        vcpu.set_debug(debug.flags)
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none.
    pub(crate) fn set_trace(&self, trace: &lguest_trace) -> Result {
        let mut vcpu = self.vcpu(trace.vcpu)?.try_lock().ok_or(EBUSY)?;
        vcpu.set_trace(trace)
    }

    /// `EBUSY` while the vCPU runs, whose lock comes before that of an address space. `ENXIO` if there is nothing
    /// to map.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        let id = u32::try_from(Ring::vcpu(vma)).map_err(|_| EINVAL)?;
        let vcpu = self.vcpu(id)?.try_lock().ok_or(EBUSY)?;
        vcpu.map_trace(vma)
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none.
    pub(crate) fn walk(&self, walk: &mut lguest_walk) -> Result {
        if walk.user_mode > 1 {
            return Err(EINVAL);
        }
        let vcpu = self.vcpu(walk.vcpu)?.try_lock().ok_or(EBUSY)?;
        walk.entries = vcpu.way(walk.user_mode != 0, Gva::new(walk.gva));
        Ok(())
    }

    /// `EBUSY` while the vCPU runs, `ENXIO` if there is none, `ENOENT` if that exit is not kept.
    pub(crate) fn exit(&self, exit: &mut lguest_exit) -> Result {
        let vcpu = self.vcpu(exit.vcpu)?.try_lock().ok_or(EBUSY)?;
        exit.record = vcpu.exit(exit.back)?;
        Ok(())
    }

    pub(crate) fn raise_line(&self, line: usize) -> Result {
        if line >= LGUEST_LINES as usize {
            return Err(EINVAL);
        }
        let vector = LGUEST_VECTOR_LINE0 as usize + line;
        self.crew.first().ok_or(EINVAL)?.raise(vector as u8);
        Ok(())
    }

    /// Replaces the eventfd if the queue has one already.
    pub(crate) fn set_notifyfd(&self, new: lguest_notifyfd) -> Result {
        self.notify.set(new)
    }

    /// Of all vCPUs; `EBUSY` while one of them runs.
    pub(crate) fn stats(&self) -> Result<lguest_stats> {
        let mut stats = lguest_stats::default();
        for vcpu in self.vcpus.iter().filter_map(SetOnce::as_ref) {
            counts::add(&mut stats, &vcpu.try_lock().ok_or(EBUSY)?.stats());
        }
        match &*self.stage.lock() {
            Stage::Setup(_) => return Err(ENXIO),
            Stage::Shared(shared) => shared.add_stats(&mut stats),
        }
        Ok(stats)
    }

    /// Of one vCPU. `EBUSY` while it runs.
    pub(crate) fn vcpu_stats(&self, stats: &mut lguest_vcpu_stats) -> Result {
        if stats.pad != 0 {
            return Err(EINVAL);
        }
        stats.stats = self.vcpu(stats.vcpu)?.try_lock().ok_or(EBUSY)?.stats();
        Ok(())
    }
}
