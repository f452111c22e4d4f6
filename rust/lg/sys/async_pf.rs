// SPDX-License-Identifier: GPL-2.0

//! Asynchronous page faults of the machine's own hypervisor, which stay off while lg is loaded.
//!
//! KVM may report memory that it has swapped out by a #PF of its own, with a token in CR2, to a CPU
//! at CPL3 (Documentation/virt/kvm/x86/msr.rst). The Guest's CPL3 is no process: its #PF comes to lg's
//! IDT, and the reason word that KVM has written waits for the Host's handler, which panics when it
//! finds it at the next page fault in kernel mode (`__kvm_handle_async_pf`). Without them, KVM just makes
//! the CPU wait.

use super::{
    compat::cpuid,
    cpu::{
        rdmsr,
        wrmsr, //
    }, //
};
use core::sync::atomic::{
    AtomicPtr,
    AtomicU64,
    Ordering, //
};
use kernel::{
    bindings,
    cpu::CpuId,
    error::to_result,
    ffi,
    prelude::*, //
};

const MSR_KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;

/// The value that each CPU had in the MSR, by the CPU's number; null while lg is not loaded.
static WAS: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());

/// Is this machine a KVM Guest that may get them?
fn exist() -> bool {
    const HYPERVISOR: u32 = 0x4000_0000;
    // Every 64-bit CPU has leaf 1, and where its hypervisor bit is set, these two.
    cpuid(1, 0).ecx & (1 << 31) != 0
        && cpuid(HYPERVISOR, 0).ebx.to_le_bytes() == *b"KVMK"
        && cpuid(HYPERVISOR + 1, 0).eax & (1 << 4) != 0
}

/// The word of [`WAS`] for this CPU number.
fn was(cpu: ffi::c_uint) -> &'static AtomicU64 {
    // SAFETY: The callbacks below are called between `refuse` and the end of `Off::drop`, which have the
    // array, and it has a word for each number that a CPU can have.
    unsafe { &*WAS.load(Ordering::Acquire).add(cpu as usize) }
}

/// This CPU has come: of the machine's own, when lg is loaded, or later. The kernel's own callback,
/// which turns them on, belongs to a state that was registered during boot, and so runs before this one;
/// no task runs here before this one has.
extern "C" fn come(cpu: ffi::c_uint) -> ffi::c_int {
    if exist() {
        // SAFETY: The MSR exists, and 0 turns them off.
        unsafe {
            was(cpu).store(rdmsr(MSR_KVM_ASYNC_PF_EN), Ordering::Relaxed);
            wrmsr(MSR_KVM_ASYNC_PF_EN, 0);
        }
    }
    0
}

/// This CPU goes, or lg does: no Guest runs here any more. As the kernel had it.
extern "C" fn go(cpu: ffi::c_uint) -> ffi::c_int {
    if exist() {
        // SAFETY: The value is what the kernel had put there.
        unsafe { wrmsr(MSR_KVM_ASYNC_PF_EN, was(cpu).load(Ordering::Relaxed)) };
    }
    0
}

/// The machine resumes, on this CPU; the others come by [`come`]. The kernel's own callback, which turns
/// them on, was registered before and is called before.
extern "C" fn resume(_: *mut ffi::c_void) {
    // Interrupts are off, so it is the one that we are on.
    come(CpuId::current().as_u32());
}

/// `struct syscore_ops` (include/linux/syscore_ops.h).
#[repr(C)]
struct SyscoreOps {
    suspend: Option<unsafe extern "C" fn(*mut ffi::c_void) -> ffi::c_int>,
    resume: Option<unsafe extern "C" fn(*mut ffi::c_void)>,
    shutdown: Option<unsafe extern "C" fn(*mut ffi::c_void)>,
}

/// `struct syscore`, of the same header.
#[repr(C)]
struct Syscore {
    node: bindings::list_head,
    ops: *const SyscoreOps,
    data: *mut ffi::c_void,
}

unsafe extern "C" {
    fn register_syscore(syscore: *mut Syscore);
    fn unregister_syscore(syscore: *mut Syscore);
}

static OPS: SyscoreOps = SyscoreOps {
    suspend: None,
    resume: Some(resume),
    shutdown: None,
};

/// Off on every CPU there is, and on each that comes, until this is dropped; then as they were.
///
/// # Invariants
///
/// `state` and `syscore` are registered. `WAS` points to the words of `_was`.
pub(crate) struct Off {
    state: ffi::c_int,
    syscore: KBox<Syscore>,
    _was: KVec<AtomicU64>,
}

// SAFETY: `syscore` is only looked at by the kernel's own list, under its lock.
unsafe impl Send for Off {}
// SAFETY: There is nothing to be done with a reference.
unsafe impl Sync for Off {}

/// Turns them off. Only one object may exist: the module's. May sleep.
pub(crate) fn refuse() -> Result<Off> {
    // SAFETY: Written during boot.
    let cpus = unsafe { (&raw const bindings::nr_cpu_ids).read() };
    let mut was = KVec::new();
    for _ in 0..cpus {
        was.push(AtomicU64::new(0), GFP_KERNEL)?;
    }
    let mut syscore = KBox::new(
        Syscore {
            node: bindings::list_head::default(),
            ops: &raw const OPS,
            data: core::ptr::null_mut(),
        },
        GFP_KERNEL,
    )?;
    WAS.store(was.as_mut_ptr(), Ordering::Release);
    // SAFETY: The functions may be called on any CPU until the state is removed.
    let state = unsafe {
        bindings::__cpuhp_setup_state(
            bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
            c"lg:online".as_char_ptr(),
            true,
            Some(come),
            Some(go),
            false,
        )
    };
    to_result(state)?;
    // SAFETY: It stays where it is until `Off` is dropped, which unregisters it.
    unsafe { register_syscore(&raw mut *syscore) };
    // INVARIANT: Both were registered just now.
    Ok(Off {
        state,
        syscore,
        _was: was,
    })
}

impl Drop for Off {
    fn drop(&mut self) {
        // SAFETY: By the type invariant both are registered. Neither function is called once these two
        // have returned.
        unsafe {
            unregister_syscore(&raw mut *self.syscore);
            bindings::__cpuhp_remove_state(self.state, true);
        }
    }
}
