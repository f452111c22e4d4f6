// SPDX-License-Identifier: GPL-2.0

//! The Rust side of `switcher.S`: how to call it, and what to make of what it leaves behind.
//!
//! `layout` is what both sides agree on; `slot` maps the regions, `region` fills one; `shared_page` is the
//! Guest's part of it.

mod last;
mod layout;
mod region;
mod shared_page;
mod slot;

pub(crate) use last::Left;
pub(crate) use layout::Regs;
pub(crate) use shared_page::SharedPage;
pub(crate) use slot::{
    Slot,
    SHARED_LEAF, //
};

use super::{
    cpu::{
        self,
        DescPtr,
        IrqsOff, //
    },
    features,
    host::{
        self,
        HostTables, //
    },
    mitigations::{
        self,
        Actions, //
    },
    nospec,
    section::{
        Section,
        Setup, //
    },
    tags, //
};
use crate::{
    abi::{
        LGUEST_HOST_CLEARS_BUFFERS,
        LGUEST_SHARED_VA,
        LHCALL_ERET, //
    },
    lg_core::{
        addr::{
            Gva,
            Hpa, //
        },
        eret,
        event::{
            self,
            Event, //
        },
        exit::{
            Exit,
            Raw, //
        },
        flags,
        foresight::Note,
        mitigations::{
            Policy,
            Set, //
        },
        monitor,
        segment,
        tags::{
            Generations,
            Now,
            Tags, //
        }, //
    }, //
};
use kernel::prelude::*;
use last::Last;
use layout::*;

/// DR6: 0 after a bus lock.
const DR6_NO_BUS_LOCK: u64 = 1 << 11;

/// Entries; and the system calls, returns from them, the Guest's page faults, and spurious ones that the switcher dealt
/// with alone; and how often a CPU forgot what it knew of the Guest.
pub(crate) struct Alone {
    pub(crate) entries: u64,
    pub(crate) syscalls: u64,
    pub(crate) erets: u64,
    pub(crate) faults: u64,
    pub(crate) spurious: u64,
    pub(crate) flushes: u64,
}

impl Alone {
    /// The number of the hypercall that each of `erets` was.
    pub(crate) const ERET: usize = LHCALL_ERET as usize;
}

/// Drives one vCPU's region.
///
/// # Invariants
///
/// The pointers are those of a live [`Region`] in a filled [`Slot`], and no other object has them:
/// this one alone decides when the switcher runs in it.
pub(crate) struct Switcher {
    base: u64,
    state: *mut State,
    /// The Guest's view of it.
    pub(crate) page: SharedPage,
    gdt: *mut [u64; GDT_ENTRIES],
    /// Where the root's tables are, for kernel mode and for user mode.
    roots: [Hpa; 2],
    /// Its tags, on the CPU where it was entered last; if it has such.
    tags: Tags,
    tagged: bool,
    flushes: u64,
    tsc_aux: u64,
    policy: Policy,
    /// TF is set behind the Guest's back, and every SYSCALL comes to us.
    stepping: bool,
    /// Every SYSCALL comes to us.
    all_calls: bool,
    /// Last time, it was the Guest's own as well.
    guest_stepping: bool,
    /// A machine check came while the Guest ran.
    guest_mce: bool,
    /// In the next section, split locks do not fault.
    split_locks: bool,
    /// How often the Guest was entered.
    entries: u64,
    last: Last,
    int80_is_a_device: bool,
}

// SAFETY: The pages behind the pointers have no tie to a thread.
unsafe impl Send for Switcher {}

impl Switcher {
    /// The switcher that drives vCPU `id` of a slot. The caller keeps the slot alive at least as
    /// long.
    pub(crate) fn new(slot: &Slot, id: usize) -> Result<Self> {
        let region = slot.region(id).ok_or(EINVAL)?;
        let policy = mitigations::policy();
        let mut this = Self {
            base: region.base,
            state: region.state.as_ptr(),
            page: SharedPage::new(&region.shared),
            gdt: region.gdt.as_ptr(),
            roots: [Hpa::new(0); 2],
            tags: Tags::default(),
            tagged: false,
            flushes: 0,
            tsc_aux: id as u64,
            policy,
            stepping: false,
            all_calls: false,
            guest_stepping: false,
            guest_mce: false,
            split_locks: false,
            entries: 0,
            last: Last::new()?,
            int80_is_a_device: !host::int80_is_system_call(),
        };
        let base = this.base;
        let state = this.state();
        state.gdtr = DescPtr {
            limit: (GDT_ENTRIES * 8 - 1) as u16,
            base: base + GDT,
        };
        state.idtr = DescPtr {
            limit: 4095,
            base: base + IDT,
        };
        state.verw = HOST_DS;
        state.actions = Actions::of(&policy);
        state.shared_gva = LGUEST_SHARED_VA as u64 + id as u64 * 4096;
        Ok(this)
    }

    /// Takes the Guest to the state in which a vCPU begins: Guest kernel mode, all registers 0, no descriptors of its
    /// own. Entry points and roots stay.
    pub(crate) fn restart(&mut self) {
        let id = self.tsc_aux as u32;
        for index in 12..15 {
            self.set_descriptor(index, 0);
        }
        self.set_descriptor(15, segment::cpunode_descriptor(id));
        self.page.set_irq_enabled(0);
        self.page.set_event(0);
        let state = self.state();
        state.regs = Regs::default();
        state.regs.rflags = flags::AT_EVENT_ENTRY;
        state.mode = 0;
        (state.fs_base, state.gs_base, state.kernel_gs_base) = (0, 0, 0);
        (state.ds, state.es, state.fs, state.gs) = (0, 0, 0, 0);
        state.invlpg = 0;
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: By the type invariant the page is there and, since the switcher only runs inside
        // `enter`, which takes `&mut self`, nobody else uses it. All its fields are integers.
        unsafe { &mut *self.state }
    }

    /// `LGUEST_HOST_*`: what the switcher does for the Guest.
    pub(crate) fn features(&mut self) -> u64 {
        match self.state().actions.clear_buffers {
            0 => 0,
            _ => LGUEST_HOST_CLEARS_BUFFERS.into(),
        }
    }

    /// The Guest's registers.
    pub(crate) fn regs(&mut self) -> &mut Regs {
        &mut self.state().regs
    }

    /// Is (or was) the Guest in user mode?
    pub(crate) fn user_mode(&mut self) -> bool {
        self.state().mode != 0
    }

    /// Changes the mode as the CPU would: GS base is the new mode's, and the user's goes to or
    /// comes from `user_gs_base` of the shared page.
    pub(crate) fn set_user_mode(&mut self, user: bool) {
        if user == self.user_mode() {
            return;
        }
        let user_gs_base = self.page.user_gs_base();
        let state = self.state();
        state.mode = user.into();
        if user {
            state.kernel_gs_base = state.gs_base;
            // WRGSBASE faults over a non-canonical address.
            state.gs_base = Gva::new(user_gs_base).canonicalize().get();
        } else {
            let user_gs_base = state.gs_base;
            state.gs_base = state.kernel_gs_base;
            self.page.set_user_gs_base(user_gs_base);
        }
    }

    pub(crate) fn dr6(&mut self) -> u64 {
        self.state().dr6
    }

    /// Was a bus lock a reason of the last #DB?
    pub(crate) fn bus_lock(&mut self) -> bool {
        features::detects_bus_locks() && self.state().dr6 & DR6_NO_BUS_LOCK == 0
    }

    /// Makes it none; is there another reason?
    pub(crate) fn forget_bus_lock(&mut self) -> bool {
        /// Four breakpoints; debug registers, a step, a task switch.
        const DR6_REASONS: u64 = 0xf | 7 << 13;
        let state = self.state();
        state.dr6 |= DR6_NO_BUS_LOCK;
        state.dr6 & DR6_REASONS != 0
    }

    /// From the next section on: makes the Guest leave after each instruction.
    pub(crate) fn set_stepping(&mut self, stepping: bool) {
        self.stepping = stepping;
        *self.note() = Note::default();
    }

    /// From the next section on: makes the Guest leave at each SYSCALL.
    pub(crate) fn set_all_calls(&mut self, all_calls: bool) {
        self.all_calls = all_calls;
    }

    pub(crate) fn stepping(&self) -> bool {
        self.stepping
    }

    /// Was the last #DB due to us alone?
    pub(crate) fn stepped(&mut self) -> bool {
        const DR6_SINGLE_STEP: u64 = 1 << 14;
        self.stepping && !self.guest_stepping && self.dr6() & DR6_SINGLE_STEP != 0
    }

    /// The address at which a system call begins. It is canonical.
    pub(crate) fn syscall_entry(&mut self) -> u64 {
        self.state().syscall_entry
    }

    pub(crate) fn bases(&mut self) -> (u64, u64) {
        let state = self.state();
        (state.fs_base, state.gs_base)
    }

    /// Sets FS or GS base of the mode the Guest is in. The address must be canonical.
    pub(crate) fn set_bases(&mut self, fs: u64, gs: u64) {
        let state = self.state();
        state.fs_base = fs;
        state.gs_base = gs;
    }

    pub(crate) fn set_syscall_entry(&mut self, gva: Gva) {
        self.state().syscall_entry = gva.canonicalize().get();
    }

    /// The address at which the monitor gets the SYSCALLs of the kernel. It is canonical; 0 if there is none.
    pub(crate) fn monitor_entry(&mut self) -> u64 {
        self.state().monitor_entry
    }

    pub(crate) fn set_monitor_entry(&mut self, gva: Gva) {
        self.state().monitor_entry = gva.canonicalize().get();
    }

    /// Where events of user mode arrive. It is canonical.
    pub(crate) fn set_event_entry(&mut self, gva: Gva) {
        self.state().event_entry = gva.canonicalize().get();
    }

    /// The shared page as the Guest finds it.
    pub(crate) fn shared_gva(&mut self) -> u64 {
        self.state().shared_gva
    }

    /// The page faults that go to the Guest without us. Whoever makes one of these sees to it that each is the
    /// Guest's under the current root, and that it has an entry point for events.
    pub(crate) fn note(&mut self) -> &mut Note {
        &mut self.state().note
    }

    pub(crate) fn set_roots(&mut self, kernel: Hpa, user: Hpa) {
        self.roots = [kernel, user];
        self.load_roots();
    }

    /// The roots without tags: what is loaded into CR3 flushes.
    fn load_roots(&mut self) {
        let [kernel, user] = self.roots.map(Hpa::get);
        let state = self.state();
        (state.kernel_cr3, state.user_cr3) = (kernel, user);
    }

    /// Drop what the CPU knows of this page on the way in.
    pub(crate) fn invalidate(&mut self, gva: u64) {
        self.state().invlpg = gva;
    }

    pub(crate) fn set_irq_waiting(&mut self, waiting: bool) {
        self.state().irq_waiting = waiting.into();
    }

    /// The exit `back` exits before the last. `None` if it is not kept.
    pub(crate) fn exit(&self, back: u32) -> Option<&Left> {
        self.last.get(self.entries, back.into())
    }

    /// The counts of what the switcher dealt with alone.
    pub(crate) fn alone(&mut self) -> Alone {
        let (entries, tagged, flushes) = (self.entries, self.tagged, self.flushes);
        let state = self.state();
        let mut alone = Alone {
            entries,
            syscalls: state.direct_syscalls,
            erets: state.direct_erets,
            faults: state.direct_faults,
            spurious: state.spurious_count,
            flushes,
        };
        if !tagged {
            // Each of them loads CR3, but for a return to kernel mode: an upper bound.
            alone.flushes += entries + alone.syscalls + alone.erets + alone.faults;
        }
        alone
    }

    /// Sets one entry of the Guest's GDT. `descriptor` comes from `segment::tls_descriptor` or
    /// `cpunode_descriptor`.
    pub(crate) fn set_descriptor(&mut self, index: usize, descriptor: u64) {
        // SAFETY: By the type invariant the page is there, and the Guest is out, so no CPU uses it.
        let gdt = unsafe { &mut *self.gdt };
        if let 12..=15 = index {
            if let Some(entry) = nospec::get_mut(gdt, index) {
                *entry = descriptor;
            }
        }
    }

    /// Forces the data selectors to what may be loaded at CPL0 without a fault: the Guest may have
    /// loaded one and then taken the descriptor away. Its base goes with it, as when Linux loads
    /// such a selector.
    fn check_selectors(&mut self) {
        // SAFETY: By the type invariant the page is there.
        let tls = unsafe { [(*self.gdt)[12], (*self.gdt)[13], (*self.gdt)[14]] };
        let bad = |selector| !segment::data_selector_ok(selector, &tls);
        let user_mode = self.user_mode();
        let state = self.state();
        // As 64-bit code has it nearly always.
        if state.ds | state.es | state.fs | state.gs == 0 {
            return;
        }
        for selector in [&mut state.ds, &mut state.es] {
            if bad(*selector) {
                *selector = 0;
            }
        }
        if bad(state.fs) {
            (state.fs, state.fs_base) = (0, 0);
        }
        if bad(state.gs) {
            state.gs = 0;
            // The base of user mode, which is not loaded while Guest kernel mode runs.
            if user_mode {
                state.gs_base = 0;
            } else {
                self.page.set_user_gs_base(0);
            }
        }
    }

    /// Says how the next section is to set up the CPU for this Guest, and writes down what the switcher returns to of
    /// the Host's, which stays as it is meanwhile: IRQs are off, and stay so until the section ends.
    pub(crate) fn setup(&mut self, _: &IrqsOff) -> Setup {
        let lstar = self.base
            + offset(if self.stepping || self.all_calls {
                &raw const lg_switcher_syscall_stepped
            } else if self.monitor_entry() != 0 {
                &raw const lg_switcher_syscall_monitored
            } else {
                &raw const lg_switcher_syscall
            });
        let cstar = self.base + offset(&raw const lg_switcher_syscall32);
        let split_locks = core::mem::take(&mut self.split_locks);
        let barrier = self.policy.does(Set::VMSCAPE);
        let nmi_count = host::nmi_count();
        let host = HostTables::read();
        let pcids = cpu::pcids_are_on();
        self.tagged = tags::are_on(pcids);
        self.load_roots();
        let state = self.state();
        if state.actions.ibrs != 0 {
            state.spec_ctrl = mitigations::host_spec_ctrl();
        }
        state.host_cr3 = cpu::cr3_to_return_to(pcids);
        state.host_gdtr = host.gdtr;
        state.host_gdtr_rw = host.gdtr_rw;
        state.host_idtr = host.idtr;
        state.host_selectors = cpu::loadable_selectors();
        state.host_tss_type = host.gdtr_rw.base + 8 * TSS_INDEX as u64 + 5;
        state.nmi_count_ptr = nmi_count as u64;
        // SAFETY: It is this CPU's counter, and IRQs are off.
        state.nmi_count = unsafe { nmi_count.read_volatile() };
        // SAFETY: These are the entry points of a region.
        unsafe { Setup::new(lstar, cstar, self.tsc_aux, split_locks, barrier) }
    }

    /// Runs the Guest until it leaves, and says why it did. The Host's NMIs and machine checks that came
    /// meanwhile wait for [`replay_exceptions`](Self::replay_exceptions).
    pub(crate) fn enter(&mut self, _: &Section<'_>) -> Exit {
        let guest_tf = self.prepare();
        self.entries = self.entries.wrapping_add(1);
        let enter = self.base + offset(&raw const lg_switcher_enter);
        let untrain = self.policy.does(Set::UNTRAIN);
        // SAFETY: The region is mapped at `base` in this address space (`Vcpu::run` checks that it
        // is the slot's), the state page is filled in, IRQs are off and the MSRs are the Guest's:
        // that is what being in a section means. It comes back as a function does.
        unsafe { core::mem::transmute::<u64, extern "C" fn()>(enter)() };
        // Before anything here returns.
        if untrain {
            mitigations::untrain_returns();
        }
        self.take_stock(guest_tf)
    }

    /// Are there tags in this section? Then each entry comes after a [`clean_tags`](Self::clean_tags).
    pub(crate) fn is_tagged(&self) -> bool {
        self.tagged
    }

    /// Says what of the shadow is to be loaded into CR3 in each mode, in such a way that the CPU forgets nothing but
    /// what is gone, and that now. `now` is of the context of its roots, of the VM's `generations`, and was looked up since the vCPU is in
    /// (`lg_core::presence`).
    pub(crate) fn clean_tags<const N: usize>(
        &mut self,
        section: &Section<'_>,
        generations: &Generations<N>,
        now: &Now,
    ) {
        let [kernel, user] = self.roots.map(Hpa::get);
        let irqs = section.irqs();
        let tags = tags::clean(irqs, generations, now, &mut self.tags, &mut self.flushes);
        let state = self.state();
        state.kernel_cr3 = tags.cr3(kernel, false);
        state.user_cr3 = tags.cr3(user, true);
        if state.invlpg != 0 {
            // To the Guest, its two modes have one TLB, and a page fault empties that of the page.
            tags::forget_page(irqs, tags, state.mode == 0, state.invlpg);
        }
    }

    /// Fills in what `lg_switcher_enter` loads of the Guest. Returns the Guest's own TF.
    fn prepare(&mut self) -> u64 {
        self.check_selectors();
        let stepping = self.stepping;
        let state = self.state();
        state.cr3 = if state.mode == 0 {
            state.kernel_cr3
        } else {
            state.user_cr3
        };
        state.spurious = 0;
        // The only selectors there are for a Guest, whatever it was interrupted with.
        state.regs.cs = if state.regs.cs == eret::CS_USER32 {
            eret::CS_USER32
        } else {
            eret::CS_USER64
        };
        state.regs.ss = eret::SS_USER;
        state.regs.rflags = if state.mode == 0 {
            flags::sanitize_kernel(state.regs.rflags)
        } else {
            flags::sanitize_user(state.regs.rflags)
        };
        let guest_tf = state.regs.rflags & flags::TF;
        if stepping {
            state.regs.rflags |= flags::TF;
        }
        guest_tf
    }

    /// Decodes why the Guest left, and takes from the CPU what came with that.
    fn take_stock(&mut self, guest_tf: u64) -> Exit {
        let (stepping, int80_is_a_device) = (self.stepping, self.int80_is_a_device);
        let state = self.state();
        let exit = Exit::decode(&Raw {
            vector: state.regs.vector,
            error: state.regs.error,
            cr2: state.cr2,
            user_mode: state.mode != 0,
            monitored: state.monitor_entry != 0 && !monitor::is_hypercall(state.regs.rip),
            int80_is_a_device,
        });
        if !matches!(exit, Exit::Interrupted) {
            state.invlpg = 0;
        }
        if stepping {
            // The Guest may have cleared it, and that stays; what is set is ours.
            state.regs.rflags &= !flags::TF | guest_tf;
        }
        let dropped = core::mem::take(&mut state.db_dropped) != 0;
        match exit {
            Exit::Exception(Event {
                vector: event::DB, ..
            }) => state.dr6 = cpu::take_dr6(),
            // The Host expects to find it as after a reset.
            _ if dropped => _ = cpu::take_dr6(),
            _ => {}
        }
        match exit {
            Exit::Nmi => state.nmi = 1,
            Exit::Exception(Event {
                vector: event::NM, ..
            }) => host::clear_xfd_err(),
            Exit::MachineCheck => self.guest_mce = true,
            _ => {}
        }
        self.guest_stepping = guest_tf != 0;
        let state = self.state();
        let left = Left {
            exit,
            user_mode: state.mode != 0,
            rip: state.regs.rip,
            rax: state.regs.rax,
        };
        self.last.note(self.entries, left);
        exit
    }

    /// Error code, RIP and CR2 of an exception in the switcher itself.
    pub(crate) fn own_fault(&mut self) -> (u64, u64, u64) {
        let state = self.state();
        (state.regs.error, state.fault_rip, state.cr2)
    }

    /// Does an NMI or a machine check of the Host's wait?
    pub(crate) fn has_exceptions(&mut self) -> bool {
        let state = self.state();
        state.nmi | state.mce != 0 || self.guest_mce
    }

    /// Delivers them. IRQs off, outside of the run section: the Host's handlers find the CPU as the
    /// Host set it up, and what they do to it (perf's turns the debug store on) stays. `false` when
    /// the machine check was for memory that the Guest used: the Host has lost it.
    pub(crate) fn replay_exceptions(&mut self, irqs: &IrqsOff) -> bool {
        let state = self.state();
        let (nmi, mce) = (
            core::mem::take(&mut state.nmi),
            core::mem::take(&mut state.mce),
        );
        let rip = state.regs.rip;
        if nmi != 0 {
            host::send_nmi_to_self(irqs);
            // If the one that came interrupted the Guest, no other is taken before an IRET.
            self.replay(2);
        }
        if mce != 0 {
            self.replay(18);
        }
        !(core::mem::take(&mut self.guest_mce) && host::machine_check_in_user_mode(irqs, rip))
    }

    /// Lets the Guest do split locks for a section, on a Host that makes them fault.
    pub(crate) fn allow_split_locks(&mut self) {
        self.split_locks = true;
    }

    /// Delivers to the Host an interrupt that arrived while the Guest ran. IRQs off.
    pub(crate) fn replay(&mut self, vector: u8) {
        let stub = self.base + REPLAY + u64::from(vector) * 16;
        // SAFETY: The stub raises the interrupt whose handler the Host's IDT names, from CPL0, as
        // if it had come here.
        unsafe { core::mem::transmute::<u64, extern "C" fn()>(stub)() };
        cpu::irqs_are_off();
    }
}
