// SPDX-License-Identifier: GPL-2.0

//! The CPU's registers, and its interrupt flag.

use crate::lg_core::{
    flags,
    segment, //
};
use core::arch::asm;

pub(crate) const MSR_LSTAR: u32 = 0xc000_0082;
pub(crate) const MSR_CSTAR: u32 = 0xc000_0083;
pub(crate) const MSR_TSC_AUX: u32 = 0xc000_0103;
pub(crate) const MSR_SYSENTER_CS: u32 = 0x174;
pub(crate) const MSR_U_CET: u32 = 0x6a0;
pub(crate) const MSR_PEBS_ENABLE: u32 = 0x3f1;
pub(crate) const MSR_DEBUGCTL: u32 = 0x1d9;
pub(crate) const MSR_TEST_CTRL: u32 = 0x33;
pub(crate) const MSR_XFD_ERR: u32 = 0x1c5;

pub(crate) const CR4_LA57: u64 = 1 << 12;
pub(crate) const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_PCIDE: u64 = 1 << 17;
pub(crate) const CR4_PKE: u64 = 1 << 22;
pub(crate) const CR4_CET: u64 = 1 << 23;
pub(crate) const CR4_LASS: u64 = 1 << 27;
pub(crate) const CR4_FRED: u64 = 1 << 32;
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

/// Are PCIDs on?
pub(crate) fn pcids_are_on() -> bool {
    read_cr4() & CR4_PCIDE != 0
}

/// The value of CR3 that leads back to where we are now, and keeps the TLB where that is possible: with
/// PCIDs, if they are on. IRQs off.
pub(crate) fn cr3_to_return_to(pcids: bool) -> u64 {
    let cr3: u64;
    // SAFETY: Reading CR3 has no side effects.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    if pcids {
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

/// Reads DR6 after a #DB of the Guest's, and resets it for the Host.
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

/// 4 or 5.
pub(crate) fn paging_levels() -> u8 {
    if read_cr4() & CR4_LA57 != 0 {
        5
    } else {
        4
    }
}

/// Operand of LGDT and LIDT.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Default)]
pub(crate) struct DescPtr {
    pub(crate) limit: u16,
    pub(crate) base: u64,
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
