// SPDX-License-Identifier: GPL-2.0

//! This module has what `switcher.S` and Rust agree on: the pages of a vCPU's region, and what is
//! where in them.

use super::super::{
    cpu::DescPtr,
    mitigations::Actions, //
};
use crate::{
    abi::{
        lguest_regs,
        lguest_shared,
        LGUEST_CS_KERNEL,
        LGUEST_CS_USER32,
        LGUEST_CS_USER64,
        LGUEST_EVENT_VALID,
        LGUEST_SS_USER, //
    },
    lg_core::{
        addr,
        event,
        exit,
        flags,
        foresight::{
            self,
            Note, //
        },
        monitor,
        paging, //
    },
};
use core::{
    arch::global_asm,
    mem::offset_of, //
};
use kernel::bindings;

/// The pages of a vCPU's region.
pub(super) const STATE: u64 = 0x3000;
pub(super) const SHARED: u64 = 0x4000;
pub(super) const GDT: u64 = 0x5000;
pub(super) const IDT: u64 = 0x6000;
pub(super) const STACKS: u64 = 0x7000;
/// From one vCPU's region to the next.
pub(super) const REGION: u64 = 0x10000;
/// The offset of the replay stubs in the text.
pub(super) const REPLAY: u64 = 0x1000;

pub(super) const TEXT_PAGES: usize = 3;

/// The Host's code and data selectors for its kernel; in the Guest's world these descriptors are the same.
pub(super) const HOST_CS: u16 = 0x10;
pub(super) const HOST_DS: u16 = 0x18;
/// GDT index and selector of the TSS, the same as Linux's, so that LTR needs no other selector in
/// either world.
pub(super) const TSS_INDEX: usize = 8;
pub(super) const TSS_SELECTOR: u16 = 8 * TSS_INDEX as u16;
/// The offset of the TSS in the GDT's page.
pub(super) const TSS_OFFSET: u64 = 0x100;
pub(super) const TSS_LIMIT: u32 = 103;
pub(super) const GDT_ENTRIES: usize = 16;

/// The Guest's registers. The CPU and the stubs push them in this order, from the end.
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
    /// The reason why the Guest left: see [`exit`].
    pub(super) vector: u64,
    pub(super) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// Copies the registers that [`Regs`] and `lguest_regs` have in common.
macro_rules! copy_registers {
    ($from:expr => $to:expr) => {
        copy_registers!($from => $to,
            r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi rip rflags rsp)
    };
    ($from:expr => $to:expr, $($register:ident)*) => {
        $($to.$register = $from.$register;)*
    };
}

impl Regs {
    /// Takes what the Launcher may set. Whoever enters the Guest checks the rest.
    pub(crate) fn load(&mut self, from: &lguest_regs) {
        copy_registers!(from => self);
    }

    /// The same, for the Launcher to see.
    pub(crate) fn store(&self, to: &mut lguest_regs) {
        copy_registers!(self => to);
    }
}

/// The state page: what the switcher reads and writes.
#[repr(C)]
pub(super) struct State {
    /// Room for the frame of an exception in the switcher itself, below `regs` where RSP is.
    stack: [u64; 64],
    pub(super) regs: Regs,

    pub(super) host_rsp: u64,
    pub(super) host_cr3: u64,
    pub(super) host_fs_base: u64,
    pub(super) host_gs_base: u64,
    /// DS, ES, FS, GS, as they can be loaded again.
    pub(super) host_selectors: [u16; 4],
    /// Address of the type byte of the Host's TSS descriptor, in the writable alias of its GDT.
    pub(super) host_tss_type: u64,
    pub(super) host_gdtr: DescPtr,
    pub(super) host_gdtr_rw: DescPtr,
    pub(super) host_idtr: DescPtr,
    pub(super) host_ldt: u16,
    /// Operand of VERW: a selector that may be read, __KERNEL_DS.
    pub(super) verw: u16,
    pub(super) actions: Actions,
    /// MSR_IA32_SPEC_CTRL of the Host's kernel, where that is to be written.
    pub(super) spec_ctrl: u64,

    pub(super) gdtr: DescPtr,
    pub(super) idtr: DescPtr,
    /// To load on the way in: `kernel_cr3` or `user_cr3`, by `mode`.
    pub(super) cr3: u64,
    pub(super) kernel_cr3: u64,
    pub(super) user_cr3: u64,
    /// 0: Guest kernel mode, 1: Guest user mode.
    pub(super) mode: u32,
    /// Not 0: an interrupt waits, so ERET is to come to the Host.
    pub(super) irq_waiting: u32,
    pub(super) fs_base: u64,
    pub(super) gs_base: u64,
    /// The GS base that is not in use: the kernel's while user mode runs.
    pub(super) kernel_gs_base: u64,
    pub(super) ds: u16,
    pub(super) es: u16,
    pub(super) fs: u16,
    pub(super) gs: u16,
    pub(super) syscall_entry: u64,
    /// Where events of user mode arrive; 0 as long as nothing can be noted.
    pub(super) event_entry: u64,
    /// GVA of the shared page.
    pub(super) shared_gva: u64,
    /// 0: there is no monitor.
    pub(super) monitor_entry: u64,
    /// The page faults that are the Guest's.
    pub(super) note: Note,
    pub(super) cr2: u64,
    /// GVA whose translation to drop on the way in, or 0.
    pub(super) invlpg: u64,
    /// GVA of the last fault that was taken for spurious; 0 after an exit.
    pub(super) spurious: u64,
    /// Not 0: an NMI came, and the Host is still to hear of it. The switcher looks at this word and
    /// the next as one.
    pub(super) nmi: u32,
    /// Not 0: a machine check hit the switcher.
    pub(super) mce: u32,
    /// Not 0: a #DB hit the switcher.
    pub(super) db_dropped: u32,
    /// How many NMIs the Host's handlers had seen on this CPU when the section began, and where they
    /// count.
    pub(super) nmi_count: u32,
    pub(super) nmi_count_ptr: u64,
    pub(super) fault_rip: u64,
    /// DR6 of the Guest's last #DB.
    pub(super) dr6: u64,
    pub(super) direct_syscalls: u64,
    pub(super) direct_erets: u64,
    pub(super) direct_faults: u64,
    pub(super) spurious_count: u64,
}

const _: () = {
    assert!(core::mem::size_of::<State>() <= 4096);
    // The CPU aligns RSP to 16 before it pushes a frame: the end of `regs` must be aligned already.
    assert!((offset_of!(State, regs) + core::mem::size_of::<Regs>()) % 16 == 0);
    assert!(offset_of!(State, nmi) % 8 == 0);
    assert!(offset_of!(State, mce) == offset_of!(State, nmi) + 4);
};

global_asm!(
    include_str!("../switcher.S"),
    STATE = const STATE,
    SHARED = const SHARED,
    GDT = const GDT,
    HOST_CS = const HOST_CS,
    HOST_DS = const HOST_DS,
    GUEST_CS_KERNEL = const LGUEST_CS_KERNEL,
    GUEST_CS_USER64 = const LGUEST_CS_USER64,
    GUEST_CS_USER32 = const LGUEST_CS_USER32,
    GUEST_SS = const LGUEST_SS_USER,
    AT_EVENT_ENTRY = const flags::AT_EVENT_ENTRY,
    EVENT_VALID = const LGUEST_EVENT_VALID,
    EVENT_PAGE_FAULT = const event::PF as u32 | LGUEST_EVENT_VALID,
    IF = const flags::IF,
    NOT_IF = const !(flags::IF as u32),
    SLOT_SHIFT = const monitor::SLOT_SHIFT,
    MONITOR_CODE = const monitor::CODE_PREFIX,
    BLOCK_SHIFT = const foresight::BLOCK_SHIFT,
    BLOCK_PAGES = const foresight::BLOCK_PAGES,
    PAGE_SHIFT = const addr::PAGE_SHIFT,
    READ_ONLY_SHIFT = const foresight::READ_ONLY_SHIFT,
    PF_ABSENT = const foresight::ABSENT,
    PF_READ_ONLY = const foresight::READ_ONLY,
    PF_WRITE = const paging::error::W,
    IRET_FLAGS = const flags::TF | flags::RF,
    TSS_SELECTOR = const TSS_SELECTOR,
    TSS_TYPE = const 8 * TSS_INDEX + 5,
    EXIT_SYSCALL = const exit::SYSCALL,
    EXIT_SYSCALL32 = const exit::SYSCALL32,
    EXIT_INTERRUPTED = const exit::INTERRUPTED,
    EXIT_SWITCHER_FAULT = const exit::SWITCHER_FAULT,
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
    ST_EVENT_ENTRY = const offset_of!(State, event_entry),
    ST_SHARED_GVA = const offset_of!(State, shared_gva),
    ST_NOTE_BLOCK = const offset_of!(State, note.block),
    ST_NOTE_PAGES = const offset_of!(State, note.pages),
    ST_MONITOR_ENTRY = const offset_of!(State, monitor_entry),
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
    ST_DIRECT_FAULTS = const offset_of!(State, direct_faults),
    SH_IRQ_ENABLED = const offset_of!(lguest_shared, irq_enabled),
    SH_CR2 = const offset_of!(lguest_shared, cr2),
    SH_EVENT = const offset_of!(lguest_shared, event),
    SH_ERROR_CODE = const offset_of!(lguest_shared, error_code),
    SH_RIP = const offset_of!(lguest_shared, rip),
    SH_CS = const offset_of!(lguest_shared, cs),
    SH_RFLAGS = const offset_of!(lguest_shared, rflags),
    SH_RSP = const offset_of!(lguest_shared, rsp),
    SH_SS = const offset_of!(lguest_shared, ss),
    SH_RAX = const offset_of!(lguest_shared, rax),
    SH_RCX = const offset_of!(lguest_shared, rcx),
    SH_R11 = const offset_of!(lguest_shared, r11),
    SH_USER_GS_BASE = const offset_of!(lguest_shared, user_gs_base),
    SH_KERNEL_RSP = const offset_of!(lguest_shared, kernel_rsp),
    options(att_syntax)
);

unsafe extern "C" {
    pub(super) static lg_switcher_start: u8;
    pub(super) static lg_switcher_end: u8;
    pub(super) static lg_switcher_enter: u8;
    pub(super) static lg_switcher_syscall: u8;
    pub(super) static lg_switcher_syscall_monitored: u8;
    pub(super) static lg_switcher_syscall_stepped: u8;
    pub(super) static lg_switcher_syscall32: u8;
}

/// The offset of one of the switcher's labels in its text.
pub(super) fn offset(label: *const u8) -> u64 {
    (label as u64).wrapping_sub((&raw const lg_switcher_start) as u64)
}
