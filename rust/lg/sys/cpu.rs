// SPDX-License-Identifier: GPL-2.0

//! The CPU's registers, and the Host kernel's per-CPU tables.

use crate::lg_core::{
    flags,
    segment, //
};
use core::{
    arch::{
        asm,
        x86_64::__cpuid_count, //
    },
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
};
use kernel::{
    bindings,
    cpu::CpuId,
    ffi,
    prelude::*, //
};

pub(crate) const MSR_LSTAR: u32 = 0xc000_0082;
pub(crate) const MSR_CSTAR: u32 = 0xc000_0083;
pub(crate) const MSR_TSC_AUX: u32 = 0xc000_0103;
pub(crate) const MSR_SYSENTER_CS: u32 = 0x174;
pub(crate) const MSR_U_CET: u32 = 0x6a0;
pub(crate) const MSR_PEBS_ENABLE: u32 = 0x3f1;
pub(crate) const MSR_DEBUGCTL: u32 = 0x1d9;
pub(crate) const MSR_TEST_CTRL: u32 = 0x33;
const MSR_XFD_ERR: u32 = 0x1c5;

pub(crate) const CR4_LA57: u64 = 1 << 12;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_PCIDE: u64 = 1 << 17;
pub(crate) const CR4_PKE: u64 = 1 << 22;
pub(crate) const CR4_CET: u64 = 1 << 23;
pub(crate) const CR4_LASS: u64 = 1 << 27;
const CR4_FRED: u64 = 1 << 32;
/// CR3 bit 63 on a load with PCIDs: keep what is cached for this PCID.
const CR3_NOFLUSH: u64 = 1 << 63;
/// DR7 with every breakpoint off.
pub(crate) const DR7_OFF: u64 = 0x400;

/// # Safety
///
/// The MSR exists.
pub(crate) unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: The caller says that it exists; reading has no side effects for those used here.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
///
/// The MSR takes that value, and nothing of the Host runs on this CPU that minds it before the old
/// one is back.
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: As the caller promises.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags))
    };
}

pub(crate) fn read_cr4() -> u64 {
    let value;
    // SAFETY: Reading CR4 has no side effects.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// # Safety
///
/// IRQs are off, and the Host's value is back before they are on.
pub(crate) unsafe fn write_cr4(value: u64) {
    // SAFETY: As the caller promises.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// What to load into CR3 to come back to where we are now, keeping the TLB where that is possible.
/// IRQs off.
pub(crate) fn cr3_to_return_to() -> u64 {
    let cr3: u64;
    // SAFETY: Reading CR3 has no side effects.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    if read_cr4() & CR4_PCIDE != 0 {
        cr3 | CR3_NOFLUSH
    } else {
        cr3
    }
}

pub(crate) fn read_dr7() -> u64 {
    let value;
    // SAFETY: Reading DR7 has no side effects.
    unsafe { asm!("mov {}, dr7", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// # Safety
///
/// IRQs are off, and the Host's value is back before they are on.
pub(crate) unsafe fn write_dr7(value: u64) {
    // SAFETY: As the caller promises.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads DR6 after a #DB of the guest's, and resets it for the Host.
pub(crate) fn take_dr6() -> u64 {
    const DR6_RESET: u64 = 0xffff_0ff0;
    let value;
    // SAFETY: DR6 only reports; Linux expects to find it reset.
    unsafe {
        asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) DR6_RESET, options(nomem, nostack, preserves_flags));
    }
    value
}

pub(crate) fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: `probe` saw that the Host has OSXSAVE set.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
///
/// The CPU takes that value; IRQs are off, and the Host's is back before its FPU is used again.
pub(crate) unsafe fn write_xcr0(value: u64) {
    // SAFETY: As the caller promises. `probe` saw that the Host has OSXSAVE set.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags))
    };
}

pub(crate) fn rdtsc() -> u64 {
    // SAFETY: Every 64-bit CPU has it, and CPL0 may always use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// How many kHz the TSC has, as the Host measured it.
pub(crate) fn tsc_khz() -> u32 {
    // SAFETY: Written during boot, and by a late calibration which stores a whole word.
    unsafe { (&raw const bindings::tsc_khz).read_volatile() }
}

/// Unix time in nanoseconds.
pub(crate) fn wall_ns() -> u64 {
    // SAFETY: Has no preconditions.
    unsafe { bindings::ktime_get_real() as u64 }
}

/// 4 or 5.
pub(crate) fn paging_levels() -> u8 {
    if read_cr4() & CR4_LA57 != 0 {
        5
    } else {
        4
    }
}

/// What [`probe`] found, once: CPUID is an exit where the Host is a virtual machine. (And the Host's own
/// list lacks what its command line takes out of it, which is still there for guests.)
static HAS_RDTSCP: AtomicBool = AtomicBool::new(false);
static HAS_SYSENTER: AtomicBool = AtomicBool::new(false);

fn find_msrs() {
    // SAFETY: Every 64-bit CPU has both leaves.
    let (basic, extended) = unsafe { (__cpuid_count(1, 0), __cpuid_count(0x8000_0001, 0)) };
    HAS_SYSENTER.store(basic.edx & (1 << 11) != 0, Ordering::Relaxed);
    HAS_RDTSCP.store(extended.edx & (1 << 27) != 0, Ordering::Relaxed);
}

/// Has the CPU MSR_TSC_AUX?
pub(crate) fn has_rdtscp() -> bool {
    HAS_RDTSCP.load(Ordering::Relaxed)
}

/// Has the CPU the SYSENTER MSRs?
pub(crate) fn has_sysenter() -> bool {
    HAS_SYSENTER.load(Ordering::Relaxed)
}

/// Turns interrupts off until it is dropped. Holds the flags from before.
///
/// A kernel that checks its own locking (`CONFIG_TRACE_IRQFLAGS`) is told, as by its own
/// `local_irq_save`. (The guard of the kernel crate, `LocalInterruptDisabled`, counts instead, and would
/// make the Host's handlers believe that interrupts are off while they are replayed.)
pub(crate) struct IrqsOff(u64);

#[cfg(CONFIG_TRACE_IRQFLAGS)]
unsafe extern "C" {
    // kernel/trace/trace_preemptirq.c
    fn trace_hardirqs_on();
    fn trace_hardirqs_off();
}

/// Tells a kernel which keeps account that interrupts are off, whatever its own handlers left.
pub(crate) fn irqs_are_off() {
    #[cfg(CONFIG_TRACE_IRQFLAGS)]
    // SAFETY: Interrupts are off.
    unsafe {
        trace_hardirqs_off()
    };
}

impl IrqsOff {
    pub(crate) fn new() -> Self {
        let flags: u64;
        // SAFETY: Dropping turns them on again if they were.
        unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
        irqs_are_off();
        Self(flags)
    }
}

impl Drop for IrqsOff {
    fn drop(&mut self) {
        if self.0 & flags::IF != 0 {
            #[cfg(CONFIG_TRACE_IRQFLAGS)]
            // SAFETY: They will be with the next instruction, as this function wants to hear it.
            unsafe {
                trace_hardirqs_on()
            };
            // SAFETY: They were on when `new` was called.
            unsafe { asm!("sti", options(nostack)) };
        }
    }
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

/// Handles a machine check that interrupted the guest at `rip`, the way Linux handles one in user mode:
/// an uncorrected error in memory that the thread used is recovered by taking the page away, and the
/// signal goes to the thread on its way back to user mode. (KVM does the same, `kvm_machine_check`.) Says
/// if it was one. IRQs off, in the thread that ran the guest.
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

/// Operand of LGDT and LIDT.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Default)]
pub(crate) struct DescPtr {
    pub(crate) limit: u16,
    pub(crate) base: u64,
}

/// From the address of a per-CPU variable to this CPU's. IRQs off, or it is another CPU's soon.
fn this_cpu_offset() -> usize {
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

/// DS, ES, FS and GS, with 0 for those that cannot be loaded again.
///
/// A thread can take away the descriptor of what it has loaded, in its LDT or among its TLS entries;
/// from then on loading the selector faults. Linux loads 0 then, when it next switches threads. IRQs
/// off: the tables stay as they are.
pub(crate) fn loadable_selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u32, u32, u32, u32);
    // SAFETY: Reads registers.
    unsafe {
        asm!("mov {:e}, ds", "mov {:e}, es", "mov {:e}, fs", "mov {:e}, gs",
             out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
             options(nomem, nostack, preserves_flags))
    };
    [ds, es, fs, gs].map(|selector| {
        if is_loadable(selector) {
            selector as u16
        } else {
            0
        }
    })
}

/// Does loading this data segment register fault? As the CPU checks it (SDM 2, MOV).
fn is_loadable(selector: u32) -> bool {
    const NULL: u32 = !3;
    if selector & NULL == 0 {
        return true;
    }
    let (rights, valid): (u32, u8);
    // SAFETY: LAR reads a descriptor and sets flags.
    unsafe {
        asm!("lar {:e}, {:e}", "setz {}", out(reg) rights, in(reg) selector, out(reg_byte) valid,
             options(nomem, nostack))
    };
    // LAR checks the privilege, and leaves the rest to us.
    valid != 0 && segment::loads_as_data(rights)
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

/// Has the Host's kernel this feature, or bug, of the CPU, or has it given itself one of the words that
/// it keeps beside them?
pub(crate) fn boot_cpu_has(feature: u32) -> bool {
    // SAFETY: Written during boot.
    let words =
        unsafe { (&raw const bindings::boot_cpu_data.__bindgen_anon_3.x86_capability).read() };
    words
        .get(feature as usize / 32)
        .is_some_and(|word| word & 1 << (feature % 32) != 0)
}

/// May the Host let the CPU write records of its performance counters to memory, at linear
/// addresses? (PEBS, BTS)
pub(crate) fn has_debug_store() -> (bool, bool) {
    (
        boot_cpu_has(bindings::X86_FEATURE_PEBS),
        boot_cpu_has(bindings::X86_FEATURE_BTS),
    )
}

/// Does the Host make split locks fault?
pub(crate) fn detects_split_locks() -> bool {
    boot_cpu_has(bindings::X86_FEATURE_SPLIT_LOCK_DETECT)
}

/// May the Host have #DB raised for a bus lock (DEBUGCTL.BUS_LOCK_DETECT)?
pub(crate) fn detects_bus_locks() -> bool {
    boot_cpu_has(bindings::X86_FEATURE_BUS_LOCK_DETECT)
}

/// Do XRSTOR and FXRSTOR leave FIP, FDP and FOP alone unless there is an exception in the image (AMD
/// before Zen)?
pub(crate) fn leaks_fpu_pointers() -> bool {
    // X86_BUG_FXSAVE_LEAK (asm/cpufeatures.h): bugs are counted behind the features.
    boot_cpu_has(bindings::NCAPINTS * 32 + 6)
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

/// Can lg run on this machine? Says in the log why not.
pub(crate) fn probe() -> Result {
    find_msrs();
    let cr4 = read_cr4();
    // SAFETY: Written during boot.
    let xen = unsafe { (&raw const bindings::xen_domain_type).read() }
        == bindings::xen_domain_type_XEN_PV_DOMAIN;
    // SAFETY: Has no preconditions.
    let confidential = unsafe {
        bindings::cc_platform_has(bindings::cc_attr_CC_ATTR_GUEST_STATE_ENCRYPT)
            || bindings::cc_platform_has(bindings::cc_attr_CC_ATTR_MEM_ENCRYPT)
    };
    let checks: [(bool, &str); 9] = [
        (
            !cfg!(CONFIG_PREEMPT_RT),
            "this is a PREEMPT_RT kernel, which may not take its locks with interrupts off",
        ),
        (
            tsc_khz() != 0,
            "the kernel does not know how fast the TSC counts, which is the guest's clock",
        ),
        (
            !xen,
            "this kernel is itself a Xen PV guest, and not at CPL0",
        ),
        (
            !confidential,
            "memory is encrypted: a confidential VM (SEV, TDX), or SME (boot with mem_encrypt=off)",
        ),
        (
            cr4 & CR4_FRED == 0,
            "FRED event delivery is on; boot the host with fred=off",
        ),
        (
            cr4 & CR4_FSGSBASE != 0,
            "the CPU has no FSGSBASE, or the host was booted with nofsgsbase",
        ),
        (
            boot_cpu_has(bindings::X86_FEATURE_NX),
            "the CPU has no NX, or it is switched off in the firmware",
        ),
        (
            boot_cpu_has(bindings::X86_FEATURE_XSAVE),
            "the CPU has no XSAVE",
        ),
        (
            boot_cpu_has(bindings::X86_FEATURE_APIC),
            "the local APIC is off, which lg passes NMIs on with",
        ),
    ];
    for (fits, why) in checks {
        if !fits {
            pr_err!("cannot run here: {}\n", why);
            return Err(ENODEV);
        }
    }
    // SAFETY: Has no preconditions.
    if unsafe { bindings::check_tsc_unstable() } != 0 {
        pr_warn!("the TSC is not reliable here; a guest's clock may jump when it changes CPUs\n");
    }
    Ok(())
}
