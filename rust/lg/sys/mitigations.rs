// SPDX-License-Identifier: GPL-2.0

//! This module knows what this Host does against speculation and what lg does then, and has the
//! module's parameter.
//!
//! A Guest is more than a program to the predictors, for it runs at the Host's own addresses, and
//! less than a Guest of KVM's, for no VM exit lies between. So lg does what the Host does at the
//! entry of programs *and* what it does when a Guest of KVM's exits (arch/x86/entry/calling.h,
//! arch/x86/kvm/svm/vmenter.S, arch/x86/kvm/vmx/vmenter.S). `lg_core::mitigations` decides,
//! `switcher.S` acts.

use super::features::boot_cpu_has;
use crate::lg_core::mitigations::{
    Host,
    Policy,
    Set,
    Wish, //
};
use core::{
    arch::asm,
    sync::atomic::{
        AtomicU32,
        Ordering, //
    },
};
use kernel::{
    bindings,
    ffi::{
        c_char,
        c_int, //
    },
    module_param::KernelParam,
    page::PAGE_SIZE,
    prelude::*, //
};

/// The parameter, as [`Wish::bits`].
static WISH: AtomicU32 = AtomicU32::new(0);

fn wish() -> Wish {
    Wish::from_bits(WISH.load(Ordering::Relaxed))
}

/// What is done here. Always the same while the module is loaded: Linux decides during boot, and the
/// parameter can be set when the module is loaded.
pub(crate) fn policy() -> Policy {
    // SAFETY: Has no preconditions.
    let off = unsafe { bindings::cpu_mitigations_off() };
    let host = Host {
        spectre_v2: boot_cpu_has(X86_BUG_SPECTRE_V2) && !off,
        clears_buffers: boot_cpu_has(bindings::X86_FEATURE_CLEAR_CPU_BUF)
            || boot_cpu_has(bindings::X86_FEATURE_CLEAR_CPU_BUF_VM),
        clears_history: boot_cpu_has(bindings::X86_FEATURE_CLEAR_BHB_LOOP)
            || boot_cpu_has(bindings::X86_FEATURE_CLEAR_BHB_VMEXIT),
        kernel_ibrs: boot_cpu_has(bindings::X86_FEATURE_KERNEL_IBRS),
        untrains: boot_cpu_has(bindings::X86_FEATURE_UNRET)
            || boot_cpu_has(bindings::X86_FEATURE_SRSO_ALIAS),
        ibpb_on_entry: boot_cpu_has(bindings::X86_FEATURE_ENTRY_IBPB)
            || boot_cpu_has(bindings::X86_FEATURE_IBPB_ON_VMEXIT)
            // Instead of that last one, KVM has the CPU reduce speculation while it has Guests. What a Guest
            // of ours leaves is a program's to the CPU, and most that can do so keep that out of the kernel.
            || boot_cpu_has(bindings::X86_FEATURE_SRSO_BP_SPEC_REDUCE)
                && !boot_cpu_has(bindings::X86_FEATURE_SRSO_USER_KERNEL_NO),
        ibpb_before_user: boot_cpu_has(bindings::X86_FEATURE_IBPB_EXIT_TO_USER),
    };
    Policy::decide(&host, wish())
}

/// X86_BUG(16): the words of bugs follow those of features.
const X86_BUG_SPECTRE_V2: u32 = 32 * bindings::NCAPINTS + 16;

/// Says in the log what is not as the Host would have it. `EINVAL` when the parameter asks for what
/// the CPU cannot do.
pub(crate) fn probe() -> Result {
    if wish().wants_ibpb() && !boot_cpu_has(bindings::X86_FEATURE_IBPB) {
        pr_err!("mitigations=ibpb: the CPU has no IBPB\n");
        return Err(EINVAL);
    }
    for (no, name) in policy().words() {
        if !no.is_empty() {
            pr_warn!("mitigations: no {}, as the parameter says\n", name);
        }
    }
    Ok(())
}

/// The switcher's part of the policy, in its state page: a word that is not 0 means yes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Actions {
    pub(crate) clear_buffers: u32,
    pub(crate) fill_rsb: u32,
    pub(crate) clear_history: u32,
    pub(crate) ibrs: u32,
    pub(crate) ibpb: u32,
}

impl Actions {
    pub(crate) fn of(policy: &Policy) -> Self {
        Self {
            clear_buffers: policy.does(Set::BUFFERS).into(),
            fill_rsb: policy.does(Set::RSB).into(),
            clear_history: policy.does(Set::BHB).into(),
            ibrs: policy.does(Set::IBRS).into(),
            ibpb: policy.does(Set::IBPB).into(),
        }
    }
}

/// What to write to MSR_IA32_SPEC_CTRL when the Host comes back. IRQs off, or it may be another
/// CPU's.
pub(crate) fn host_spec_ctrl() -> u64 {
    // SAFETY: Reads a per-CPU variable.
    unsafe { bindings::spec_ctrl_current() }
}

/// Untrains the returns of the Host's kernel, of which this module's are some. To be called before
/// the first of them behind the switcher.
#[inline(always)]
pub(crate) fn untrain_returns() {
    // CALL_UNTRAIN_RET of asm/nospec-branch.h. Both have to be the target of a direct call.
    if boot_cpu_has(bindings::X86_FEATURE_SRSO_ALIAS) {
        // SAFETY: It takes nothing, returns, and changes at most RAX and the flags; the stack is
        // aligned as for any call.
        unsafe { asm!("call {}", sym bindings::srso_alias_untrain_ret, clobber_abi("C")) };
        return;
    }
    #[cfg(any(CONFIG_MITIGATION_UNRET_ENTRY, CONFIG_MITIGATION_SRSO))]
    if boot_cpu_has(bindings::X86_FEATURE_UNRET) {
        // SAFETY: As above.
        unsafe { asm!("call {}", sym bindings::entry_untrain_ret, clobber_abi("C")) };
    }
}

/// A Guest ran on this CPU: Linux makes an IBPB before it next goes to user mode here
/// (arch_exit_to_user_mode_prepare()), as after a Guest of KVM's. IRQs off.
pub(crate) fn barrier_before_user() {
    // SAFETY: A per-CPU variable that is one byte, so GS reaches it; storing 1 asks for no more than
    // the barrier.
    unsafe {
        asm!("mov byte ptr gs:[rip + {}], 1", sym bindings::x86_ibpb_exit_to_user,
             options(nostack, preserves_flags))
    };
}

/// `mitigations=`, while the module is being loaded.
///
/// # Safety
///
/// `value` is a C string.
unsafe extern "C" fn set(value: *const c_char, _: *const bindings::kernel_param) -> c_int {
    if value.is_null() {
        return EINVAL.to_errno();
    }
    // SAFETY: As the caller promises.
    let text = unsafe { CStr::from_char_ptr(value) }.to_bytes();
    match Wish::parse(text.trim_ascii()) {
        Some(wish) => {
            WISH.store(wish.bits(), Ordering::Relaxed);
            0
        }
        None => {
            pr_err!("mitigations= takes auto, off, or a list of no_NAME and ibpb\n");
            EINVAL.to_errno()
        }
    }
}

/// /sys/module/lg/parameters/mitigations: what is done, rather than what was asked for, as KVM's
/// parameters of this kind answer.
///
/// # Safety
///
/// `buffer` has a page.
unsafe extern "C" fn get(buffer: *mut c_char, _: *const bindings::kernel_param) -> c_int {
    // SAFETY: As the caller promises; sysfs has zeroed it.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), PAGE_SIZE) };
    let mut at = 0;
    for (no, name) in policy().words() {
        let comma = if at == 0 { "" } else { "," };
        for byte in [comma, no, name].into_iter().flat_map(str::bytes) {
            if let Some(to) = buffer.get_mut(at) {
                *to = byte;
                at += 1;
            }
        }
    }
    if let Some(to) = buffer.get_mut(at) {
        *to = b'\n';
        at += 1;
    }
    at as c_int
}

static OPS: bindings::kernel_param_ops = bindings::kernel_param_ops {
    flags: 0,
    set: Some(set),
    get: Some(get),
    free: None,
};

/// The parameter as `module!` would make it, if that had words and files in sysfs.
#[link_section = "__param"]
#[used(compiler)]
static PARAMETER: KernelParam = KernelParam::new(bindings::kernel_param {
    name: kernel::str::as_char_ptr_in_const_context(c"mitigations"),
    mod_: (&raw const bindings::__this_module).cast_mut(),
    ops: &raw const OPS,
    perm: 0o444,
    level: -1,
    flags: 0,
    __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
        arg: core::ptr::null_mut(),
    },
});

/// For modinfo(8).
#[link_section = ".modinfo"]
#[used(compiler)]
static TYPE: [u8; 27] = *b"parmtype=mitigations:charp\0";

#[link_section = ".modinfo"]
#[used(compiler)]
static DESCRIPTION: [u8; 94] =
    *b"parm=mitigations:Against speculation: auto, off, or a list of no_NAME (what to omit) and ibpb\0";
