// SPDX-License-Identifier: GPL-2.0

//! The features of this CPU, as far as the Host's kernel uses them.

use super::compat::cpuid;
use core::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use kernel::bindings;

/// What [`probe`](super::probe::probe) found, once: CPUID is an exit where the Host is a virtual machine. (And the Host's own
/// list lacks what its command line takes out of it, which is still there for Guests.)
static HAS_RDTSCP: AtomicBool = AtomicBool::new(false);
static HAS_SYSENTER: AtomicBool = AtomicBool::new(false);

pub(super) fn find_msrs() {
    // Every 64-bit CPU has both leaves.
    let (basic, extended) = (cpuid(1, 0), cpuid(0x8000_0001, 0));
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
