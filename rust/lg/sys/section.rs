// SPDX-License-Identifier: GPL-2.0

//! Run sections: the stretch of time, IRQs off, in which this CPU's MSRs and FPU registers are the
//! Guest's.
//!
//! What world switches need not touch each time is swapped here once: the SYSCALL entry points,
//! TSC_AUX, the debug registers, CR4 bits that would get in a CPL3 kernel's way, XCR0, and the FPU
//! state.

use super::{
    compat::cpuid,
    cpu::*,
    features::{
        has_debug_store,
        has_rdtscp,
        has_sysenter,
        leaks_fpu_pointers, //
    },
    mitigations,
    page::{
        HostPage, //
    },
};
use crate::lg_core::xcr0;
use core::arch::asm;
use kernel::{
    bindings,
    prelude::*, //
};

/// CR4 bits that are off while a Guest runs.
const CR4_HIDDEN: u64 = CR4_PKE | CR4_LASS;
/// Offsets in the XSAVE area (SDM 1, 13.4.1).
const MXCSR: usize = 24;
const MXCSR_DEFAULT: u32 = 0x1f80;
/// DEBUGCTL.TR and BTS: the CPU writes records of branches to memory (SDM 3B, 19.4.1).
const DEBUGCTL_BTS: u64 = 1 << 6 | 1 << 7;
/// TEST_CTRL: #AC for split locks.
const TEST_CTRL_SPLIT_LOCK: u64 = 1 << 29;

/// The Guest's XCR0: which components of the CPU's state its programs may use.
///
/// # Invariants
///
/// `value` is one that the CPU takes, with no other components than `offered`.
#[derive(Clone, Copy)]
pub(crate) struct Xcr0 {
    offered: u64,
    value: u64,
}

impl Xcr0 {
    /// As a vCPU begins: all that there is.
    pub(crate) fn restart(&mut self) {
        // INVARIANT: What is left of the Host's XCR0 is a valid one, as in `GuestFpu::new`.
        self.value = self.offered;
    }

    /// XSETBV of the Guest's, from the next section on. `false` where the CPU would fault.
    pub(crate) fn set(&mut self, value: u64) -> bool {
        let accepted = xcr0::accepts(value, self.offered);
        if accepted {
            // INVARIANT: `accepts` has the CPU's rules.
            self.value = value;
        }
        accepted
    }
}

/// A vCPU's FPU, SSE, AVX registers while something else is in the CPU's.
///
/// # Invariants
///
/// The page holds an image that XRSTOR takes for the components in `offered`, and they all fit in
/// it.
pub(crate) struct GuestFpu {
    area: HostPage,
    offered: u64,
}

impl GuestFpu {
    /// The state after reset, and XCR0 with all there is for a Guest. `ENODEV` on a CPU whose state does not
    /// fit in a page.
    pub(crate) fn new() -> Result<(Self, Xcr0)> {
        let offered = xcr0::offered(read_xcr0());
        for component in 2..63u32 {
            if offered & (1 << component) != 0 {
                // A CPU with XSAVE has leaf 0xd. EAX is the component's size, EBX its offset.
                let leaf = cpuid(0xd, component);
                if leaf.ebx.saturating_add(leaf.eax) > 4096 {
                    pr_err!("state component {} does not fit in a page\n", component);
                    return Err(ENODEV);
                }
            }
        }
        let area = HostPage::new()?;
        // INVARIANT: Below.
        let mut this = Self { area, offered };
        this.restart();
        // INVARIANT: What is left of the Host's XCR0 is a valid one: no component needs one that was
        // taken away.
        let xcr0 = Xcr0 {
            offered,
            value: offered,
        };
        Ok((this, xcr0))
    }

    /// The state after reset.
    pub(crate) fn restart(&mut self) {
        let area = self.area.as_ptr::<u8>();
        // INVARIANT: An image of zeroes with a valid MXCSR is the initial state of every component.
        // SAFETY: The area is a page of ours, and the offset inside it is aligned.
        unsafe {
            area.write_bytes(0, 4096);
            area.add(MXCSR).cast::<u32>().write(MXCSR_DEFAULT)
        };
    }

    /// # Safety
    ///
    /// The current task's FPU state has been saved, and XCR0, which is `host_xcr0`, is the Host's.
    unsafe fn restore(&self, host_xcr0: u64) {
        if leaks_fpu_pointers() {
            let zero = 0u32;
            // As the Host does before it restores any state: a load sets the pointers to itself.
            // SAFETY: The caller gave up what was in the registers.
            unsafe { asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) &raw const zero) };
        }
        // What is not in the image is initialized: nothing of the last owner's stays.
        let mask = host_xcr0 & !xcr0::PKRU;
        // SAFETY: By the type invariant the image is good for XRSTOR; the caller gave up what was
        // in the registers.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) self.area.as_ptr::<u8>(), in("eax") mask as u32,
                 in("edx") (mask >> 32) as u32, options(nostack, preserves_flags))
        };
    }

    fn save(&mut self) {
        // INVARIANT: What XSAVE wrote XRSTOR takes.
        // SAFETY: The area is ours, 64-byte aligned, and large enough by the type invariant.
        unsafe {
            asm!("xsave64 [{}]", in(reg) self.area.as_ptr::<u8>(), in("eax") self.offered as u32,
                 in("edx") (self.offered >> 32) as u32, options(nostack, preserves_flags))
        };
    }
}

/// An MSR with the Guest's value in it.
struct SwappedMsr {
    msr: u32,
    host: u64,
}

/// The setting of the CPU for a Guest, which a section makes.
///
/// # Invariants
///
/// `lstar` and `cstar` are the switcher's entry points in the vCPU's region.
pub(crate) struct Setup {
    lstar: u64,
    cstar: u64,
    tsc_aux: u64,
    split_locks: bool,
    barrier: bool,
}

impl Setup {
    /// `lstar` and `cstar` are where SYSCALL of 64-bit and of 32-bit code goes. `split_locks`: they
    /// do not fault, on a CPU on which they could. `barrier`: no prediction of the Guest's reaches the
    /// Launcher.
    ///
    /// # Safety
    ///
    /// `lstar` and `cstar` are the switcher's entry points in the vCPU's region.
    pub(super) unsafe fn new(
        lstar: u64,
        cstar: u64,
        tsc_aux: u64,
        split_locks: bool,
        barrier: bool,
    ) -> Self {
        // INVARIANT: As the caller promises.
        Self {
            lstar,
            cstar,
            tsc_aux,
            split_locks,
            barrier,
        }
    }
}

/// Calls `f` in a run section: this CPU's MSRs and FPU registers are the Guest's, so that it may be entered
/// any number of times. IRQs are off; nothing in `f` may sleep.
pub(crate) fn run<R>(
    irqs: &IrqsOff,
    setup: &Setup,
    fpu: &mut GuestFpu,
    xcr0: Xcr0,
    f: impl FnOnce(&Section<'_>) -> R,
) -> R {
    let section = Section::begin(irqs, setup, fpu, xcr0);
    let result = f(&section);
    section.end(fpu);
    if setup.barrier {
        mitigations::barrier_before_user();
    }
    result
}

/// The CPU is set up for the Guest. IRQs are off all the time.
pub(crate) struct Section<'a> {
    irqs: &'a IrqsOff,
    swapped: [Option<SwappedMsr>; 8],
    cr4: u64,
    dr7: u64,
    /// The Host's, and the Guest's.
    xcr0: [u64; 2],
}

impl<'a> Section<'a> {
    fn begin(irqs: &'a IrqsOff, setup: &Setup, fpu: &GuestFpu, xcr0: Xcr0) -> Self {
        // SAFETY: Process context outside of any other FPU section; `end` comes with IRQs still
        // off.
        unsafe { bindings::kernel_fpu_begin_mask(0) };
        let cr4 = read_cr4();
        let host_xcr0 = read_xcr0();
        let mut this = Self {
            irqs,
            swapped: [const { None }; 8],
            cr4,
            dr7: read_dr7(),
            xcr0: [host_xcr0, xcr0.value],
        };
        if cr4 & CR4_HIDDEN != 0 {
            // LASS would fault every access of a CPL3 kernel to the upper half. PKRU also governs
            // kernel mode, whose pages are all user pages here, but user mode may write it. SAFETY:
            // IRQs are off, `end` restores it.
            unsafe { write_cr4(cr4 & !CR4_HIDDEN) };
        }
        if this.dr7 != DR7_OFF {
            // A breakpoint of the Launcher's debugger could hit in the switcher.
            // SAFETY: As above.
            unsafe { write_dr7(DR7_OFF) };
        }
        this.swap_msrs(setup);
        // SAFETY: The task's state was saved above, XCR0 is still the Host's. Then XCR0 becomes one that
        // the CPU takes by the type invariant, until `end`.
        unsafe {
            fpu.restore(host_xcr0);
            // A Guest's programs are to see, and to use, what its kernel saves. As the Guest cannot
            // reach PKRU any more, with PKE off, that stays the task's. An NMI meets this XCR0, too:
            // its handlers use no FPU, and perf saves a supervisor component (LBR) at most.
            if xcr0.value != host_xcr0 {
                write_xcr0(xcr0.value);
            }
        }
        this
    }

    fn swap_msrs(&mut self, setup: &Setup) {
        // SAFETY: The Guest runs until `end`, with IRQs off and the Host's values restored before
        // they are on. The entry points are what they are by the invariant of `Setup`. SYSENTER_CS 0 makes
        // SYSENTER fault instead of entering the Host.
        unsafe {
            self.swap(0, MSR_LSTAR, setup.lstar);
            self.swap(1, MSR_CSTAR, setup.cstar);
            if has_sysenter() {
                self.swap(2, MSR_SYSENTER_CS, 0);
            }
            if has_rdtscp() {
                self.swap(3, MSR_TSC_AUX, setup.tsc_aux);
            }
            if self.cr4 & CR4_CET != 0 {
                self.swap(4, MSR_U_CET, 0);
            }
            // The CPU would write its records to linear addresses, which are the Guest's now.
            let (pebs, bts) = has_debug_store();
            if pebs {
                self.swap(5, MSR_PEBS_ENABLE, 0);
            }
            if bts {
                // Bus locks go on being detected, as for any other program.
                let debugctl = rdmsr(MSR_DEBUGCTL);
                self.swap(6, MSR_DEBUGCTL, debugctl & !DEBUGCTL_BTS);
            }
            if setup.split_locks {
                let test_ctrl = rdmsr(MSR_TEST_CTRL);
                self.swap(7, MSR_TEST_CTRL, test_ctrl & !TEST_CTRL_SPLIT_LOCK);
            }
        }
    }

    /// # Safety
    ///
    /// As `wrmsr`; slot `i` is free.
    unsafe fn swap(&mut self, i: usize, msr: u32, value: u64) {
        // SAFETY: As the caller promises.
        let host = unsafe { rdmsr(msr) };
        if host != value {
            // SAFETY: As above.
            unsafe { wrmsr(msr, value) };
            self.swapped[i] = Some(SwappedMsr { msr, host });
        }
    }

    pub(super) fn irqs(&self) -> &IrqsOff {
        self.irqs
    }

    /// The number of MSR writes that the section takes, from begin to end.
    pub(crate) fn msr_writes(&self) -> u64 {
        2 * self.swapped.iter().flatten().count() as u64
    }

    /// Gives the CPU back to the Host.
    fn end(self, fpu: &mut GuestFpu) {
        let [host_xcr0, guest_xcr0] = self.xcr0;
        // First, so that what the Guest's kernel has turned off is saved as well: SSE works without.
        if guest_xcr0 != host_xcr0 {
            // SAFETY: It is the value that was in there.
            unsafe { write_xcr0(host_xcr0) };
        }
        fpu.save();
        for swapped in self.swapped.iter().flatten() {
            // SAFETY: It is the value that was in there.
            unsafe { wrmsr(swapped.msr, swapped.host) };
        }
        if self.dr7 != DR7_OFF {
            // SAFETY: The Host's value; IRQs are still off.
            unsafe { write_dr7(self.dr7) };
        }
        if self.cr4 & CR4_HIDDEN != 0 {
            // SAFETY: As above.
            unsafe { write_cr4(self.cr4) };
        }
        // SAFETY: Pairs with `begin`, IRQs off as they were there.
        unsafe { bindings::kernel_fpu_end() };
    }
}
