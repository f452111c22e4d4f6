// SPDX-License-Identifier: GPL-2.0

//! The Rust side of `switcher.S`: its memory, and how to call it.

use super::{
    cpu::{
        self,
        DescPtr,
        HostTables,
        IrqsOff, //
    },
    hole,
    mitigations::{
        self,
        Actions, //
    },
    page::{
        module_page_to_hpa,
        random_below,
        HostPage,
        Wait, //
    },
    section::{
        GuestFpu,
        Section, //
    },
    table::TableBox,
};
use crate::{
    abi::{
        lguest_shared,
        LGUEST_HOST_CLEARS_BUFFERS, //
    },
    lg_core::{
        addr::{
            Gva,
            Hpa, //
        },
        flags,
        mitigations::{
            Policy,
            Set, //
        },
        segment, //
    }, //
};
use core::{
    arch::global_asm,
    mem::offset_of, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// What [`Regs::vector`] says when the guest left by other means than an exception or an interrupt
/// (0 to 255).
pub(crate) const EXIT_HYPERCALL: u64 = 0x100;
/// SYSCALL from 32-bit code.
pub(crate) const EXIT_SYSCALL32: u64 = 0x101;
/// The guest did nothing: something of the Host's came first. It may be entered again as it is.
pub(crate) const EXIT_INTERRUPTED: u64 = 0x102;
/// Or'ed with the vector of an exception at CPL0 in the switcher itself.
pub(crate) const EXIT_SWITCHER_FAULT: u64 = 0x200;

/// The pages of a vCPU's region.
const STATE: u64 = 0x3000;
const SHARED: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const STACKS: u64 = 0x7000;
/// From one vCPU's region to the next.
const REGION: u64 = 0x10000;
/// Where the replay stubs are in the text.
const REPLAY: u64 = 0x1000;

const TEXT_PAGES: usize = 3;

/// GDT index and selector of the TSS, the same as Linux's, so that LTR needs no other selector in
/// either world.
const TSS_INDEX: usize = 8;
const TSS_SELECTOR: u16 = 8 * TSS_INDEX as u16;
/// Where the TSS is in the GDT's page.
const TSS_OFFSET: u64 = 0x100;
const TSS_LIMIT: u32 = 103;
const GDT_ENTRIES: usize = 16;

/// The guest's registers. The CPU and the stubs push them in this order, from the end.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Regs {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    /// Why the guest left: an exception or interrupt, or `EXIT_*`.
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// The state page: what the switcher reads and writes.
#[repr(C)]
pub(crate) struct State {
    /// Room for the frame of an exception in the switcher itself, below `regs` where RSP is.
    stack: [u64; 64],
    pub(crate) regs: Regs,

    host_rsp: u64,
    host_cr3: u64,
    host_fs_base: u64,
    host_gs_base: u64,
    /// DS, ES, FS, GS, as they can be loaded again.
    host_selectors: [u16; 4],
    /// Address of the type byte of the Host's TSS descriptor, in the writable alias of its GDT.
    host_tss_type: u64,
    host_gdtr: DescPtr,
    host_gdtr_rw: DescPtr,
    host_idtr: DescPtr,
    host_ldt: u16,
    /// Operand of VERW: a selector that may be read, __KERNEL_DS.
    verw: u16,
    actions: Actions,
    /// MSR_IA32_SPEC_CTRL of the Host's kernel, where that is to be written.
    spec_ctrl: u64,

    gdtr: DescPtr,
    idtr: DescPtr,
    /// To load on the way in: `kernel_cr3` or `user_cr3`, by `mode`.
    cr3: u64,
    kernel_cr3: u64,
    user_cr3: u64,
    /// 0: guest kernel mode, 1: guest user mode.
    mode: u32,
    /// Not 0: an interrupt waits, so ERET is to come to the Host.
    irq_waiting: u32,
    fs_base: u64,
    gs_base: u64,
    /// The GS base that is not in use: the kernel's while user mode runs.
    kernel_gs_base: u64,
    ds: u16,
    es: u16,
    fs: u16,
    gs: u16,
    syscall_entry: u64,
    cr2: u64,
    /// GVA whose translation to drop on the way in, or 0.
    invlpg: u64,
    /// GVA of the last fault that was taken for spurious; 0 after an exit.
    spurious: u64,
    /// Not 0: an NMI came, and the Host is still to hear of it. The switcher looks at this word and
    /// the next as one.
    nmi: u32,
    /// Not 0: a machine check hit the switcher.
    mce: u32,
    /// Not 0: a #DB hit the switcher.
    db_dropped: u32,
    /// How many NMIs the Host's handlers had seen on this CPU when the section began, and where they
    /// count.
    nmi_count: u32,
    nmi_count_ptr: u64,
    fault_rip: u64,
    /// DR6 of the guest's last #DB.
    dr6: u64,
    direct_syscalls: u64,
    direct_erets: u64,
    spurious_count: u64,
}

const _: () = {
    assert!(core::mem::size_of::<State>() <= 4096);
    // The CPU aligns RSP to 16 before it pushes a frame: the end of `regs` must be aligned already.
    assert!((offset_of!(State, regs) + core::mem::size_of::<Regs>()) % 16 == 0);
    assert!(offset_of!(State, nmi) % 8 == 0);
    assert!(offset_of!(State, mce) == offset_of!(State, nmi) + 4);
};

global_asm!(
    include_str!("switcher.S"),
    STATE = const STATE,
    SHARED = const SHARED,
    GDT = const GDT,
    TSS_SELECTOR = const TSS_SELECTOR,
    TSS_TYPE = const 8 * TSS_INDEX + 5,
    EXIT_HYPERCALL = const EXIT_HYPERCALL,
    EXIT_SYSCALL32 = const EXIT_SYSCALL32,
    EXIT_INTERRUPTED = const EXIT_INTERRUPTED,
    EXIT_SWITCHER_FAULT = const EXIT_SWITCHER_FAULT,
    USER_RFLAGS = const flags::sanitize_user(!0),
    KERNEL_RFLAGS = const flags::sanitize_kernel(!0),
    // Of the frame at `trap`: vector, error code, rip, cs, ...
    F_ERROR = const 8,
    F_RIP = const 16,
    F_CS = const 24,
    R_VECTOR = const offset_of!(Regs, vector),
    R_ERROR = const offset_of!(Regs, error),
    R_RIP = const offset_of!(Regs, rip),
    R_CS = const offset_of!(Regs, cs),
    R_RFLAGS = const offset_of!(Regs, rflags),
    R_RSP = const offset_of!(Regs, rsp),
    R_SS = const offset_of!(Regs, ss),
    ST_REGS = const offset_of!(State, regs),
    ST_HOST_RSP = const offset_of!(State, host_rsp),
    ST_HOST_CR3 = const offset_of!(State, host_cr3),
    ST_HOST_FS_BASE = const offset_of!(State, host_fs_base),
    ST_HOST_GS_BASE = const offset_of!(State, host_gs_base),
    ST_HOST_DS = const offset_of!(State, host_selectors),
    ST_HOST_ES = const offset_of!(State, host_selectors) + 2,
    ST_HOST_FS = const offset_of!(State, host_selectors) + 4,
    ST_HOST_GS = const offset_of!(State, host_selectors) + 6,
    ST_HOST_TSS_TYPE = const offset_of!(State, host_tss_type),
    ST_HOST_GDTR = const offset_of!(State, host_gdtr),
    ST_HOST_GDTR_RW = const offset_of!(State, host_gdtr_rw),
    ST_HOST_IDTR = const offset_of!(State, host_idtr),
    ST_HOST_LDT = const offset_of!(State, host_ldt),
    ST_VERW = const offset_of!(State, verw),
    ST_CLEAR_BUFFERS = const offset_of!(State, actions.clear_buffers),
    ST_FILL_RSB = const offset_of!(State, actions.fill_rsb),
    ST_CLEAR_HISTORY = const offset_of!(State, actions.clear_history),
    ST_IBRS = const offset_of!(State, actions.ibrs),
    ST_IBPB = const offset_of!(State, actions.ibpb),
    ST_SPEC_CTRL = const offset_of!(State, spec_ctrl),
    MSR_SPEC_CTRL = const bindings::MSR_IA32_SPEC_CTRL,
    MSR_PRED_CMD = const bindings::MSR_IA32_PRED_CMD,
    ST_GDTR = const offset_of!(State, gdtr),
    ST_IDTR = const offset_of!(State, idtr),
    ST_CR3 = const offset_of!(State, cr3),
    ST_KERNEL_CR3 = const offset_of!(State, kernel_cr3),
    ST_USER_CR3 = const offset_of!(State, user_cr3),
    ST_MODE = const offset_of!(State, mode),
    ST_IRQ_WAITING = const offset_of!(State, irq_waiting),
    ST_FS_BASE = const offset_of!(State, fs_base),
    ST_GS_BASE = const offset_of!(State, gs_base),
    ST_KERNEL_GS_BASE = const offset_of!(State, kernel_gs_base),
    ST_DS = const offset_of!(State, ds),
    ST_ES = const offset_of!(State, es),
    ST_FS = const offset_of!(State, fs),
    ST_GS = const offset_of!(State, gs),
    ST_SYSCALL_ENTRY = const offset_of!(State, syscall_entry),
    ST_CR2 = const offset_of!(State, cr2),
    ST_INVLPG = const offset_of!(State, invlpg),
    ST_SPURIOUS = const offset_of!(State, spurious),
    ST_SPURIOUS_COUNT = const offset_of!(State, spurious_count),
    ST_NMI = const offset_of!(State, nmi),
    ST_MCE = const offset_of!(State, mce),
    ST_DB_DROPPED = const offset_of!(State, db_dropped),
    ST_NMI_COUNT = const offset_of!(State, nmi_count),
    ST_NMI_COUNT_PTR = const offset_of!(State, nmi_count_ptr),
    ST_FAULT_RIP = const offset_of!(State, fault_rip),
    ST_DIRECT_SYSCALLS = const offset_of!(State, direct_syscalls),
    ST_DIRECT_ERETS = const offset_of!(State, direct_erets),
    SH_IRQ_ENABLED = const offset_of!(lguest_shared, irq_enabled),
    SH_RIP = const offset_of!(lguest_shared, rip),
    SH_CS = const offset_of!(lguest_shared, cs),
    SH_RFLAGS = const offset_of!(lguest_shared, rflags),
    SH_RSP = const offset_of!(lguest_shared, rsp),
    SH_RAX = const offset_of!(lguest_shared, rax),
    SH_RCX = const offset_of!(lguest_shared, rcx),
    SH_R11 = const offset_of!(lguest_shared, r11),
    SH_USER_GS_BASE = const offset_of!(lguest_shared, user_gs_base),
    options(att_syntax)
);

unsafe extern "C" {
    static lg_switcher_start: u8;
    static lg_switcher_end: u8;
    static lg_switcher_enter: u8;
    static lg_switcher_syscall: u8;
    static lg_switcher_syscall_stepped: u8;
    static lg_switcher_syscall32: u8;
}

/// Where a label of the switcher is in its text.
fn offset(label: *const u8) -> u64 {
    (label as u64).wrapping_sub((&raw const lg_switcher_start) as u64)
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const NX: u64 = 1 << 63;

/// An intermediate entry of the slot's tables.
const TABLE: u64 = P | W | A;
const TEXT: u64 = P | A;
const RODATA: u64 = P | A | NX;
const DATA: u64 = P | W | A | D | NX;

/// The shared page as the guest's kernel mode sees it.
pub(crate) const SHARED_LEAF: u64 = P | W | U | A | D | NX;
/// How a shadow root links to the slot.
const SLOT_LINK: u64 = P | W | A;

/// The switcher's slot of one address space: its tables, and a region for each vCPU.
///
/// # Invariants
///
/// The tables map what `regions` own and the text, which lies in the module's own read-only pages, and
/// nothing else; and that never changes.
pub(crate) struct Slot {
    // Dropped in this order: the tables, the pages.
    /// For the Host's world.
    host: TableBox,
    /// For the guest's, where the shared page is as well: no Host code uses it at these addresses.
    guest: TableBox,
    regions: KVec<Region>,
}

/// Pages of one vCPU.
struct Region {
    base: u64,
    state: HostPage,
    shared: HostPage,
    _gdt: HostPage,
    _idt: HostPage,
    _stacks: HostPage,
}

/// Maps one page in the slot.
fn map(tables: &mut TableBox, va: u64, hpa: Hpa, flags: u64) -> Result {
    let mut table = &mut **tables;
    let top = cpu::paging_levels() - 1;
    for level in (2..=top).rev() {
        table = table.make_child(
            (va >> (12 + 9 * (u32::from(level) - 1))) as usize,
            TABLE,
            Wait::Allowed,
            &mut 0,
        )?;
    }
    table.set((va >> 12) as usize, hpa.get() | flags);
    Ok(())
}

impl Slot {
    /// Makes the regions of `vcpus` vCPUs. May sleep.
    pub(crate) fn new(vcpus: u32) -> Result<Self> {
        let start = &raw const lg_switcher_start;
        let size = offset(&raw const lg_switcher_end) as usize;
        if size != TEXT_PAGES * 4096 || start as usize % 4096 != 0 {
            pr_err!(
                "the switcher does not lie in {} pages of its own\n",
                TEXT_PAGES
            );
            return Err(EINVAL);
        }
        let (mut host, mut guest) = (TableBox::new(Wait::Allowed)?, TableBox::new(Wait::Allowed)?);
        let mut regions = KVec::new();
        // What the guest writes into its registers lies in there: not at an address that it knows beforehand.
        let first =
            hole::base() + REGION * random_below(hole::MIN_SIZE / REGION - u64::from(vcpus));
        for id in 0..vcpus {
            let region = Region::new(first + u64::from(id) * REGION)?;
            for tables in [&mut host, &mut guest] {
                for offset in (0..TEXT_PAGES as u64).map(|page| page * 4096) {
                    // SAFETY: This is a page of the switcher, which is in the module.
                    let hpa = unsafe { module_page_to_hpa(start.add(offset as usize)) };
                    map(tables, region.base + offset, hpa, TEXT)?;
                }
                map(tables, region.base + STATE, region.state.hpa(), DATA)?;
                map(tables, region.base + GDT, region._gdt.hpa(), DATA)?;
                map(tables, region.base + IDT, region._idt.hpa(), RODATA)?;
                map(tables, region.base + STACKS, region._stacks.hpa(), DATA)?;
            }
            map(&mut guest, region.base + SHARED, region.shared.hpa(), DATA)?;
            regions.push(region, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            host,
            guest,
            regions,
        })
    }

    /// The tables for the Host's world, at index [`hole::SLOT`].
    pub(crate) fn hpa(&self) -> Hpa {
        self.host.hpa()
    }

    /// The entry by which a shadow root maps the slot, at index [`hole::SLOT`].
    pub(crate) fn link(&self) -> u64 {
        self.guest.hpa().get() | SLOT_LINK
    }

    /// The physical address of vCPU `id`'s shared page.
    pub(crate) fn shared_hpa(&self, id: usize) -> Option<Hpa> {
        Some(self.regions.get(id)?.shared.hpa())
    }

    /// Makes all regions as new.
    ///
    /// # Safety
    ///
    /// Nobody has a [`Switcher`] of the slot.
    pub(crate) unsafe fn reset(&self) {
        for region in &self.regions {
            // SAFETY: As the caller promises.
            unsafe { region.reset() };
        }
    }

    /// What vCPU `id` is driven by. The caller keeps `self` alive at least as long.
    pub(crate) fn vcpu(&self, id: usize) -> Result<Switcher> {
        let region = self.regions.get(id).ok_or(EINVAL)?;
        Switcher::new(region, id)
    }
}

impl Region {
    fn new(base: u64) -> Result<Self> {
        let this = Self {
            base,
            state: HostPage::new(Wait::Allowed)?,
            shared: HostPage::new(Wait::Allowed)?,
            _gdt: HostPage::new(Wait::Allowed)?,
            _idt: HostPage::new(Wait::Allowed)?,
            _stacks: HostPage::new(Wait::Allowed)?,
        };
        this.fill_gdt();
        this.fill_tss();
        this.fill_idt();
        Ok(this)
    }

    /// Empties what a guest or its switcher writes: registers, roots, the shared page, descriptors, stacks.
    ///
    /// # Safety
    ///
    /// Nobody has a [`Switcher`] of the region.
    unsafe fn reset(&self) {
        for page in [&self.state, &self.shared, &self._gdt, &self._stacks] {
            // SAFETY: The pages are ours, and nobody uses them.
            unsafe { page.as_ptr::<u8>().write_bytes(0, 4096) };
        }
        self.fill_gdt();
        self.fill_tss();
    }

    /// The guest's GDT has Linux's indices, so that STAR stays the Host's.
    fn fill_gdt(&self) {
        let gdt = self._gdt.as_ptr::<[u64; GDT_ENTRIES]>();
        let tss = segment::tss_descriptor(self.base + GDT + TSS_OFFSET, TSS_LIMIT);
        let mut entries = [0; GDT_ENTRIES];
        entries[2] = segment::KERNEL_CODE;
        entries[3] = segment::KERNEL_DATA;
        entries[4] = segment::USER_CODE32;
        entries[5] = segment::USER_DATA;
        entries[6] = segment::USER_CODE64;
        entries[TSS_INDEX] = tss[0];
        entries[TSS_INDEX + 1] = tss[1];
        entries[CPUNODE_INDEX] = segment::cpunode_descriptor(0);
        // SAFETY: The page is ours, and not in use yet.
        unsafe { gdt.write(entries) };
    }

    /// RSP0 is the end of `State::regs`; the IST entries have Linux's numbers, since the Host's TSS
    /// is loaded for a moment while our IDT is. No I/O bitmap: its offset lies beyond the limit.
    fn fill_tss(&self) {
        let rsp0 =
            self.base + STATE + (offset_of!(State, regs) + core::mem::size_of::<Regs>()) as u64;
        // SAFETY: The TSS lies in our page behind the GDT, and is not in use yet. Its fields are
        // not aligned.
        unsafe {
            let tss = self._gdt.as_ptr::<u8>().add(TSS_OFFSET as usize);
            tss.add(4).cast::<u64>().write_unaligned(rsp0);
            for ist in 1..=4 {
                let top = self.base + STACKS + ist as u64 * 1024;
                tss.add(36 + 8 * (ist - 1))
                    .cast::<u64>()
                    .write_unaligned(top);
            }
            tss.add(102)
                .cast::<u16>()
                .write_unaligned(TSS_LIMIT as u16 + 1);
        }
    }

    fn fill_idt(&self) {
        let idt = self._idt.as_ptr::<[[u64; 2]; 256]>();
        for vector in 0..256u64 {
            // Linux's numbers: IST_INDEX_DF, _NMI, _DB, _MCE, plus one.
            let ist = match vector {
                8 => 1,
                2 => 2,
                1 => 3,
                18 => 4,
                _ => 0,
            };
            // INT3, INTO and INT 0x80 are for everybody; any other INT n is #GP, as under Linux.
            // Nor is INT 0x80 where a device of the Host's may have the vector.
            let open = matches!(vector, 3 | 4) || vector == 0x80 && cpu::int80_is_system_call();
            let dpl = if open { 3 } else { 0 };
            let gate = segment::interrupt_gate(0x10, self.base + vector * 16, ist, dpl);
            // SAFETY: The page is ours, holds 256 gates, and is not in use yet.
            unsafe { (*idt)[vector as usize] = gate };
        }
    }
}

const CPUNODE_INDEX: usize = 15;
/// DR6: 0 after a bus lock.
const DR6_NO_BUS_LOCK: u64 = 1 << 11;

/// Being inside of [`with_section`].
pub(crate) struct InSection(());

/// Calls `f` in a run section for the switcher of `owner`: this CPU's MSRs and FPU registers are
/// the guest's, so that it may be entered any number of times. IRQs are off; nothing in `f` may
/// sleep. Also returns how many MSRs were written.
pub(crate) fn with_section<V, R>(
    irqs: &IrqsOff,
    owner: &mut V,
    switcher: fn(&mut V) -> &mut Switcher,
    f: impl FnOnce(&mut V, &InSection) -> R,
) -> (R, u64) {
    let this = switcher(owner);
    let lstar = this.base
        + offset(if this.stepping {
            &raw const lg_switcher_syscall_stepped
        } else {
            &raw const lg_switcher_syscall
        });
    let cstar = this.base + offset(&raw const lg_switcher_syscall32);
    let split_locks = core::mem::take(&mut this.split_locks);
    let nmi_count = cpu::nmi_count();
    let state = this.state();
    state.nmi_count_ptr = nmi_count as u64;
    // SAFETY: It is this CPU's counter, and IRQs are off.
    state.nmi_count = unsafe { nmi_count.read_volatile() };
    // SAFETY: These are the entry points of a region.
    let section =
        unsafe { Section::begin(irqs, &this.fpu, lstar, cstar, this.tsc_aux, split_locks) };
    let result = f(owner, &InSection(()));
    let msr_writes = section.msr_writes();
    let this = switcher(owner);
    section.end(&mut this.fpu);
    if this.policy.does(Set::VMSCAPE) {
        mitigations::barrier_before_user();
    }
    (result, msr_writes)
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
    shared: *mut u64,
    gdt: *mut [u64; GDT_ENTRIES],
    fpu: GuestFpu,
    tsc_aux: u64,
    policy: Policy,
    /// TF is set behind the guest's back, and every SYSCALL comes to us.
    stepping: bool,
    /// Last time, it was the guest's own as well.
    guest_stepping: bool,
    /// A machine check came while the guest ran.
    guest_mce: bool,
    /// In the next section, split locks do not fault.
    split_locks: bool,
    int80_is_a_device: bool,
}

// SAFETY: The pages behind the pointers have no tie to a thread.
unsafe impl Send for Switcher {}

impl Switcher {
    fn new(region: &Region, id: usize) -> Result<Self> {
        let policy = mitigations::policy();
        let mut this = Self {
            base: region.base,
            state: region.state.as_ptr(),
            shared: region.shared.as_ptr(),
            gdt: region._gdt.as_ptr(),
            fpu: GuestFpu::new()?,
            tsc_aux: id as u64,
            policy,
            stepping: false,
            guest_stepping: false,
            guest_mce: false,
            split_locks: false,
            int80_is_a_device: !cpu::int80_is_system_call(),
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
        state.verw = 0x18;
        state.actions = Actions::of(&policy);
        Ok(this)
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: By the type invariant the page is there and, since the switcher only runs inside
        // `enter`, which takes `&mut self`, nobody else uses it. All its fields are integers.
        unsafe { &mut *self.state }
    }

    /// `LGUEST_HOST_*`: what the switcher does for the guest.
    pub(crate) fn features(&mut self) -> u64 {
        match self.state().actions.clear_buffers {
            0 => 0,
            _ => LGUEST_HOST_CLEARS_BUFFERS.into(),
        }
    }

    /// XSETBV of the guest's, from the next section on. `false` where the CPU would fault.
    pub(crate) fn set_xcr0(&mut self, value: u64) -> bool {
        self.fpu.set_xcr0(value)
    }

    /// The guest's registers.
    pub(crate) fn regs(&mut self) -> &mut Regs {
        &mut self.state().regs
    }

    /// Is (or was) the guest in user mode?
    pub(crate) fn user_mode(&mut self) -> bool {
        self.state().mode != 0
    }

    /// Changes the mode as the CPU would: GS base is the new mode's, and the user's goes to or
    /// comes from `user_gs_base` of the shared page.
    pub(crate) fn set_user_mode(&mut self, user: bool) {
        if user == self.user_mode() {
            return;
        }
        let user_gs_base = self.shared(offset_of!(lguest_shared, user_gs_base));
        let state = self.state();
        state.mode = user.into();
        if user {
            state.kernel_gs_base = state.gs_base;
            // WRGSBASE faults over a non-canonical address.
            state.gs_base = Gva::new(user_gs_base).canonicalize().get();
        } else {
            let user_gs_base = state.gs_base;
            state.gs_base = state.kernel_gs_base;
            self.set_shared(offset_of!(lguest_shared, user_gs_base), user_gs_base);
        }
    }

    pub(crate) fn cr2(&mut self) -> u64 {
        self.state().cr2
    }

    pub(crate) fn dr6(&mut self) -> u64 {
        self.state().dr6
    }

    /// Was a bus lock a reason of the last #DB?
    pub(crate) fn bus_lock(&mut self) -> bool {
        cpu::detects_bus_locks() && self.state().dr6 & DR6_NO_BUS_LOCK == 0
    }

    /// Makes it none; is there another reason?
    pub(crate) fn forget_bus_lock(&mut self) -> bool {
        /// Four breakpoints; debug registers, a step, a task switch.
        const DR6_REASONS: u64 = 0xf | 7 << 13;
        let state = self.state();
        state.dr6 |= DR6_NO_BUS_LOCK;
        state.dr6 & DR6_REASONS != 0
    }

    /// May vector 0x80 come from a device of the Host's?
    pub(crate) fn int80_is_a_device(&self) -> bool {
        self.int80_is_a_device
    }

    /// From the next section on: makes the guest leave after each instruction.
    pub(crate) fn set_stepping(&mut self, stepping: bool) {
        self.stepping = stepping;
    }

    pub(crate) fn stepping(&self) -> bool {
        self.stepping
    }

    /// Was the last #DB due to us alone?
    pub(crate) fn stepped(&mut self) -> bool {
        const DR6_SINGLE_STEP: u64 = 1 << 14;
        self.stepping && !self.guest_stepping && self.dr6() & DR6_SINGLE_STEP != 0
    }

    /// What SYSCALL in user mode does, for the Host: kernel mode begins at the guest's entry point,
    /// with the stack of user mode.
    pub(crate) fn do_syscall(&mut self) {
        let (rip, rflags) = (self.regs().rip, self.regs().rflags);
        self.set_shared(offset_of!(lguest_shared, rip), rip);
        self.set_shared(offset_of!(lguest_shared, rflags), rflags);
        self.set_shared(offset_of!(lguest_shared, irq_enabled), 0);
        self.set_user_mode(false);
        let state = self.state();
        state.regs.rip = state.syscall_entry;
        state.regs.rflags = flags::AT_EVENT_ENTRY;
        (state.regs.rcx, state.regs.r11) = (state.regs.rip, state.regs.rflags);
    }

    pub(crate) fn fault_rip(&mut self) -> u64 {
        self.state().fault_rip
    }

    pub(crate) fn bases(&mut self) -> (u64, u64) {
        let state = self.state();
        (state.fs_base, state.gs_base)
    }

    /// Sets FS or GS base of the mode the guest is in. The address must be canonical.
    pub(crate) fn set_bases(&mut self, fs: u64, gs: u64) {
        let state = self.state();
        state.fs_base = fs;
        state.gs_base = gs;
    }

    pub(crate) fn set_syscall_entry(&mut self, gva: Gva) {
        self.state().syscall_entry = gva.canonicalize().get();
    }

    pub(crate) fn set_roots(&mut self, kernel: Hpa, user: Hpa) {
        let state = self.state();
        state.kernel_cr3 = kernel.get();
        state.user_cr3 = user.get();
    }

    /// Drop what the CPU knows of this page on the way in.
    pub(crate) fn invalidate(&mut self, gva: u64) {
        self.state().invlpg = gva;
    }

    pub(crate) fn set_irq_waiting(&mut self, waiting: bool) {
        self.state().irq_waiting = waiting.into();
    }

    /// System calls, returns from them, and spurious faults that the switcher dealt with alone.
    pub(crate) fn counters(&mut self) -> (u64, u64, u64) {
        let state = self.state();
        (
            state.direct_syscalls,
            state.direct_erets,
            state.spurious_count,
        )
    }

    /// One word of the shared page, at an `offset_of!(lguest_shared, ...)`. The guest may have
    /// written anything there.
    pub(crate) fn shared(&self, offset: usize) -> u64 {
        // SAFETY: By the type invariant the page is there, and a word at a multiple of 8 below 4096
        // lies in it.
        unsafe { self.shared.add(offset / 8 % 512).read_volatile() }
    }

    /// Writes one word of the shared page.
    pub(crate) fn set_shared(&mut self, offset: usize, value: u64) {
        // SAFETY: As above.
        unsafe { self.shared.add(offset / 8 % 512).write_volatile(value) };
    }

    /// Sets one entry of the guest's GDT. `descriptor` comes from `segment::tls_descriptor` or
    /// `cpunode_descriptor`.
    pub(crate) fn set_descriptor(&mut self, index: usize, descriptor: u64) {
        if let 12..=15 = index {
            // SAFETY: By the type invariant the page is there, and the guest is out, so no CPU uses
            // it.
            unsafe { (*self.gdt)[index] = descriptor };
        }
    }

    /// Forces the data selectors to what may be loaded at CPL0 without a fault: the guest may have
    /// loaded one and then taken the descriptor away. Its base goes with it, as when Linux loads
    /// such a selector.
    fn check_selectors(&mut self) {
        // SAFETY: By the type invariant the page is there.
        let tls = unsafe { [(*self.gdt)[12], (*self.gdt)[13], (*self.gdt)[14]] };
        let bad = |selector| !segment::data_selector_ok(selector, &tls);
        let user_mode = self.user_mode();
        let state = self.state();
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
            // The base of user mode, which is not loaded while guest kernel mode runs.
            if user_mode {
                state.gs_base = 0;
            } else {
                self.set_shared(offset_of!(lguest_shared, user_gs_base), 0);
            }
        }
    }

    /// Runs the guest until it leaves. `regs().vector` says why it did. The Host's NMIs and machine
    /// checks that came meanwhile wait for [`replay_exceptions`](Self::replay_exceptions).
    pub(crate) fn enter(&mut self, _section: &InSection) {
        self.check_selectors();
        let host = HostTables::read();
        let (base, stepping) = (self.base, self.stepping);
        let untrain = self.policy.does(Set::UNTRAIN);
        let state = self.state();
        if state.actions.ibrs != 0 {
            state.spec_ctrl = mitigations::host_spec_ctrl();
        }
        state.host_cr3 = cpu::cr3_to_return_to();
        state.host_gdtr = host.gdtr;
        state.host_gdtr_rw = host.gdtr_rw;
        state.host_idtr = host.idtr;
        state.host_selectors = cpu::loadable_selectors();
        state.host_tss_type = host.gdtr_rw.base + 8 * TSS_INDEX as u64 + 5;
        state.cr3 = if state.mode == 0 {
            state.kernel_cr3
        } else {
            state.user_cr3
        };
        state.spurious = 0;
        // The only selectors there are for a guest, whatever it was interrupted with.
        state.regs.cs = if state.regs.cs == 0x23 { 0x23 } else { 0x33 };
        state.regs.ss = 0x2b;
        state.regs.rflags = if state.mode == 0 {
            flags::sanitize_kernel(state.regs.rflags)
        } else {
            flags::sanitize_user(state.regs.rflags)
        };
        let guest_tf = state.regs.rflags & flags::TF;
        if stepping {
            state.regs.rflags |= flags::TF;
        }
        let enter = base + offset(&raw const lg_switcher_enter);
        // SAFETY: The region is mapped at `base` in this address space (`Vcpu::run` checks that it
        // is the slot's), the state page is filled in, IRQs are off and the MSRs are the guest's:
        // that is what being in a section means. It comes back as a function does.
        unsafe { core::mem::transmute::<u64, extern "C" fn()>(enter)() };
        // Before anything here returns.
        if untrain {
            mitigations::untrain_returns();
        }

        let state = self.state();
        if state.regs.vector != EXIT_INTERRUPTED {
            state.invlpg = 0;
        }
        if stepping {
            // The guest may have cleared it, and that stays; what is set is ours.
            state.regs.rflags &= !flags::TF | guest_tf;
        }
        let dropped = core::mem::take(&mut state.db_dropped) != 0;
        match state.regs.vector {
            1 => state.dr6 = cpu::take_dr6(),
            // The Host expects to find it as after a reset.
            _ if dropped => _ = cpu::take_dr6(),
            2 => state.nmi = 1,
            7 => cpu::clear_xfd_err(),
            18 => self.guest_mce = true,
            _ => {}
        }
        self.guest_stepping = guest_tf != 0;
    }

    /// Does an NMI or a machine check of the Host's wait?
    pub(crate) fn has_exceptions(&mut self) -> bool {
        let state = self.state();
        state.nmi | state.mce != 0 || self.guest_mce
    }

    /// Delivers them. IRQs off, outside of the run section: the Host's handlers find the CPU as the
    /// Host set it up, and what they do to it (perf's turns the debug store on) stays. `false` when
    /// the machine check was for memory that the guest used: the Host has lost it.
    pub(crate) fn replay_exceptions(&mut self, irqs: &IrqsOff) -> bool {
        let state = self.state();
        let (nmi, mce) = (
            core::mem::take(&mut state.nmi),
            core::mem::take(&mut state.mce),
        );
        let rip = state.regs.rip;
        if nmi != 0 {
            cpu::send_nmi_to_self(irqs);
            // If the one that came interrupted the guest, no other is taken before an IRET.
            self.replay(2);
        }
        if mce != 0 {
            self.replay(18);
        }
        !(core::mem::take(&mut self.guest_mce) && cpu::machine_check_in_user_mode(irqs, rip))
    }

    /// Lets the guest do split locks for a section, on a Host that makes them fault.
    pub(crate) fn allow_split_locks(&mut self) {
        self.split_locks = true;
    }

    /// Delivers to the Host an interrupt that arrived while the guest ran. IRQs off.
    pub(crate) fn replay(&mut self, vector: u8) {
        let stub = self.base + REPLAY + u64::from(vector) * 16;
        // SAFETY: The stub raises the interrupt whose handler the Host's IDT names, from CPL0, as
        // if it had come here.
        unsafe { core::mem::transmute::<u64, extern "C" fn()>(stub)() };
        cpu::irqs_are_off();
    }
}
