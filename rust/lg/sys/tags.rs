// SPDX-License-Identifier: GPL-2.0

//! The tags of each CPU: PCIDs under which it keeps what it knows of the shadow. The rule for their use is in
//! `lg_core::tags`.

use super::{
    compat,
    cpu::IrqsOff,
    features::boot_cpu_has,
    host, //
};
use crate::{
    lg_core::tags::{
        Forget,
        Generations,
        Now,
        Slots,
        Tags,
        SLOTS, //
    },
    module_parameters, //
};
use core::{
    arch::asm,
    cell::UnsafeCell,
    sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    }, //
};
use kernel::bindings;

/// Were tags asked for, does INVPCID exist, and are our PCIDs nobody else's? [`probe`] found out.
static ARE_OURS: AtomicBool = AtomicBool::new(false);
/// The number of the next VM. 0 is none's.
static NEXT_VM: AtomicU64 = AtomicU64::new(1);

/// The tags of one CPU.
///
/// # Invariants
///
/// A reference to it is this CPU's own, made with IRQs off, and gone before they are on again.
struct OfCpu(UnsafeCell<Slots<SLOTS>>);

// SAFETY: By the invariant each CPU uses its own only, and one user at a time.
unsafe impl Sync for OfCpu {}

/// A per-CPU variable, as DEFINE_PER_CPU makes them: this is what each CPU's begins as. So a module that is loaded knows
/// of nothing clean, whatever one before it has left.
#[unsafe(link_section = ".data..percpu")]
static OF_CPU: OfCpu = OfCpu(UnsafeCell::new(Slots::new()));

/// Finds out whether there may be tags.
pub(super) fn probe() {
    // Without that bit in its PCIDs, the Host has all of them for address spaces that the CPU's broadcasts reach
    // (MAX_ASID_AVAILABLE, arch/x86/mm/tlb.c).
    let free = cfg!(CONFIG_MITIGATION_PAGE_TABLE_ISOLATION)
        || !boot_cpu_has(bindings::X86_FEATURE_INVLPGB);
    let asked = compat::parameter(module_parameters::pcids.value()) != 0;
    let ours = asked && free && boot_cpu_has(bindings::X86_FEATURE_INVPCID);
    ARE_OURS.store(ours, Ordering::Relaxed);
}

/// A number for a VM, which none has had as long as the module is there.
pub(crate) fn number_of_next_vm() -> u64 {
    NEXT_VM.fetch_add(1, Ordering::Relaxed)
}

/// Are there tags, where CR4 says that PCIDs are on or not? Without them each load of CR3 flushes.
pub(super) fn are_on(pcids: bool) -> bool {
    pcids && ARE_OURS.load(Ordering::Relaxed)
}

/// The tags on this CPU for a context whose generations are `now`, of those in `generations`, clean of what is older; how often
/// it has forgotten all under one, it adds to `flushes`. There are tags ([`are_on`]).
pub(super) fn clean<const N: usize>(
    _: &IrqsOff,
    generations: &Generations<N>,
    now: &Now,
    hint: &mut Tags,
    flushes: &mut u64,
) -> Tags {
    let here = (&raw const OF_CPU).wrapping_byte_add(host::this_cpu_offset());
    // SAFETY: A per-CPU variable of this CPU, on which the thread stays: IRQs are off, by the reference. No NMI's handler
    // comes here, and `forget` below does not, so that nobody else has a reference.
    let slots = unsafe { &mut *(*here).0.get() };
    slots.tags(generations, now, hint, |what| {
        let (kind, pcid, gva) = match what {
            Forget::All(pcid) => {
                *flushes += 1;
                (bindings::INVPCID_TYPE_SINGLE_CTXT, pcid, 0)
            }
            Forget::Page(pcid, gva) => (bindings::INVPCID_TYPE_INDIV_ADDR, pcid, gva),
        };
        // SAFETY: PCIDs are on, INVPCID exists, and the address is canonical.
        unsafe { invpcid(kind, pcid, gva) };
    })
}

/// Forgets the page at `gva` in one of the modes. There are such tags on this CPU ([`clean`]).
pub(super) fn forget_page(_: &IrqsOff, tags: Tags, user: bool, gva: u64) {
    // SAFETY: Where there are tags, PCIDs are on and INVPCID exists. An address that is not canonical faults, and `gva` is
    // one that the CPU has faulted at.
    unsafe { invpcid(bindings::INVPCID_TYPE_INDIV_ADDR, tags.pcid(user), gva) };
}

/// # Safety
///
/// CR4.PCIDE is set, the CPU has INVPCID, and `gva` is canonical. (The PCID is not above 0xfff; what is forgotten too
/// much does no harm.)
unsafe fn invpcid(kind: u32, pcid: u16, gva: u64) {
    let operand = [u64::from(pcid), gva];
    // SAFETY: As the caller promises.
    unsafe {
        asm!("invpcid {}, [{}]", in(reg) u64::from(kind), in(reg) &raw const operand,
             options(nostack, preserves_flags))
    };
}
