// SPDX-License-Identifier: GPL-2.0

//! Can lg run on this machine?

use super::{
    cpu::*,
    features::{
        self,
        boot_cpu_has, //
    },
    host::{
        tsc_is_stable,
        tsc_khz, //
    },
    tags, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// Can lg run on this machine? Says in the log why not.
pub(crate) fn probe() -> Result {
    features::find_msrs();
    tags::probe();
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
    if !tsc_is_stable() {
        pr_warn!("the TSC is not reliable here; a guest's clock may jump when it changes CPUs\n");
    }
    Ok(())
}
