// SPDX-License-Identifier: GPL-2.0

//! The Host's kernel: its clock, its per-CPU tables and counters, and what it does for us on a CPU.

use super::{
    cpu::*,
    features::boot_cpu_has, //
};
use crate::lg_core::flags;
use core::arch::asm;
use kernel::{
    bindings,
    cpu::CpuId,
    ffi, //
};

/// The frequency of the TSC in kHz, as the Host measured it.
pub(crate) fn tsc_khz() -> u32 {
    // SAFETY: Written during boot, and by a late calibration which stores a whole word.
    unsafe { (&raw const bindings::tsc_khz).read_volatile() }
}

/// Does the Host take its time from the TSC, which then is the same on all CPUs?
pub(crate) fn tsc_is_stable() -> bool {
    // SAFETY: Has no preconditions.
    unsafe { bindings::check_tsc_unstable() == 0 }
}

/// Unix time in nanoseconds.
pub(crate) fn wall_ns() -> u64 {
    // SAFETY: Has no preconditions.
    unsafe { bindings::ktime_get_real() as u64 }
}

/// Where this CPU counts the NMIs that the Host's handler has begun to handle (irq_stat,
/// arch/x86/kernel/nmi.c). IRQs off, or another CPU's may be meant by the time it is read.
pub(crate) fn nmi_count() -> *const u32 {
    const NMI: usize = bindings::irq_stat_counts_IRQ_COUNT_NMI as usize;
    let here = (&raw const bindings::irq_stat).wrapping_byte_add(this_cpu_offset());
    // SAFETY: A per-CPU variable; only its address is taken.
    unsafe { (&raw const (*here).counts[NMI]).cast() }
}

unsafe extern "C" {
    /// `apic->send_IPI_mask` (arch/x86/kernel/apic/init.c), by which Linux's own self-test sends a CPU
    /// an NMI of its own (arch/x86/kernel/nmi_selftest.c).
    fn __SCT__apic_call_send_IPI_mask(mask: *const bindings::cpumask, vector: ffi::c_int);
}

/// Makes the local APIC of this CPU raise an NMI, which comes at once or, while another one blocks it,
/// after the next IRET.
///
/// Whoever sent the first one need not be known: every handler of Linux's asks its device.
pub(crate) fn send_nmi_to_self(_: &IrqsOff) {
    const NMI_VECTOR: ffi::c_int = 2;
    let cpu = CpuId::current().as_u32() as usize;
    const BITS: usize = ffi::c_ulong::BITS as usize;
    // As `get_cpu_mask` does: row 1 + n has bit n set in its first word, and is preceded by zeroes.
    let row = (&raw const bindings::cpu_bit_bitmap).cast::<[ffi::c_ulong; ROW]>();
    const ROW: usize = bindings::NR_CPUS as usize / BITS;
    let mask = row
        .wrapping_add(1 + cpu % BITS)
        .cast::<ffi::c_ulong>()
        .wrapping_sub(cpu / BITS);
    // SAFETY: The mask has this CPU's bit and no other, and a CPU with IRQs off stays online.
    unsafe { __SCT__apic_call_send_IPI_mask(mask.cast(), NMI_VECTOR) };
}

/// Handles a machine check that interrupted the Guest at `rip`, the way Linux handles one in user mode:
/// an uncorrected error in memory that the thread used is recovered by taking the page away, and the
/// signal goes to the thread on its way back to user mode. (KVM does the same, `kvm_machine_check`.) Says
/// if it was one. IRQs off, in the thread that ran the Guest.
pub(crate) fn machine_check_in_user_mode(_: &IrqsOff, rip: u64) -> bool {
    #[cfg(CONFIG_X86_MCE)]
    {
        unsafe extern "C" {
            // arch/x86/include/asm/mce.h
            fn do_machine_check(regs: *mut bindings::pt_regs);
        }
        let mut regs = bindings::pt_regs {
            ip: rip as usize,
            flags: flags::IF as usize,
            ..Default::default()
        };
        regs.__bindgen_anon_1.cs = 0x33;
        // SAFETY: The registers are a frame from user mode as the function looks at it, and it may be
        // called with IRQs off in process context.
        unsafe { do_machine_check(&raw mut regs) };
        // SAFETY: A field of the current task's, which the call above counts up.
        unsafe { (*bindings::get_current()).mce_count != 0 }
    }
    #[cfg(not(CONFIG_X86_MCE))]
    {
        let _ = rip;
        false
    }
}

/// After a #NM: forgets which state component it was about, if it was about one that XFD disables. The
/// Host's handler takes what it finds there for its own thread's.
pub(crate) fn clear_xfd_err() {
    if boot_cpu_has(bindings::X86_FEATURE_XFD) {
        // SAFETY: The MSR exists and takes 0; the Host keeps nothing in it.
        unsafe { wrmsr(MSR_XFD_ERR, 0) };
    }
}

/// From the address of a per-CPU variable to this CPU's. IRQs off, or it is another CPU's soon.
pub(super) fn this_cpu_offset() -> usize {
    let offset: usize;
    // SAFETY: `this_cpu_off` is a per-CPU variable, so GS reaches it.
    unsafe {
        asm!("mov {}, gs:[rip + {}]", out(reg) offset, sym bindings::this_cpu_off,
             options(nostack, preserves_flags))
    };
    offset
}

unsafe extern "C" {
    /// The writable alias of each CPU's GDT (arch/x86/kernel/cpu/common.c); the address is that of
    /// the per-CPU template.
    static gdt_page: u8;
}

/// The tables this CPU runs with. Read anew whenever the thread may have changed CPUs.
#[derive(Clone, Copy, Default)]
pub(crate) struct HostTables {
    /// As `LGDT` left it: the read-only alias.
    pub(crate) gdtr: DescPtr,
    /// The same GDT through its writable alias.
    pub(crate) gdtr_rw: DescPtr,
    pub(crate) idtr: DescPtr,
}

impl HostTables {
    /// Of the CPU we are on. IRQs off.
    pub(crate) fn read() -> Self {
        let mut tables = Self::default();
        // SAFETY: Both store to memory that we own.
        unsafe {
            asm!("sgdt [{}]", in(reg) &raw mut tables.gdtr, options(nostack, preserves_flags));
            asm!("sidt [{}]", in(reg) &raw mut tables.idtr, options(nostack, preserves_flags));
        }
        tables.gdtr_rw = DescPtr {
            limit: tables.gdtr.limit,
            base: ((&raw const gdt_page) as usize).wrapping_add(this_cpu_offset()) as u64,
        };
        tables
    }
}

/// Drops every translation this CPU has cached, global ones too, for all PCIDs.
extern "C" fn flush_tlb(_: *mut core::ffi::c_void) {
    const CR4_PGE: u64 = 1 << 7;
    let cr4 = read_cr4();
    // SAFETY: Changing CR4.PGE flushes everything (SDM 3A 4.10.4.1). The function runs with IRQs
    // off, and the old value is back at once.
    unsafe {
        write_cr4(cr4 ^ CR4_PGE);
        write_cr4(cr4);
    }
}

/// As above on every CPU; waits for all. IRQs on.
pub(crate) fn flush_tlb_everywhere() {
    on_every_cpu(flush_tlb);
}

/// Calls `f`, which gets along with interrupt context, on every CPU, and waits for all. IRQs on.
fn on_every_cpu(f: extern "C" fn(*mut core::ffi::c_void)) {
    // SAFETY: `f` may be called in interrupt context; the mask of online CPUs is stable inside.
    unsafe {
        bindings::on_each_cpu_cond_mask(
            None,
            Some(f),
            core::ptr::null_mut(),
            true,
            &raw const bindings::__cpu_online_mask,
        )
    };
}

/// Is `int 0x80` a system call of the Host's? Where 32-bit emulation is off, the vector may be a
/// device's.
pub(crate) fn int80_is_system_call() -> bool {
    const DPL: u64 = 3 << 45;
    let idtr = HostTables::read().idtr;
    let gate = (idtr.base + 0x80 * 16) as *const u64;
    // SAFETY: The Host's IDT has 256 gates, and Linux maps it for ever.
    unsafe { gate.read_volatile() & DPL == DPL }
}
