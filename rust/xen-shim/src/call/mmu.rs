// SPDX-License-Identifier: GPL-2.0
//! The kernel's page tables. lg's shadow is a TLB, so they may hold whatever the kernel likes: nothing is validated, counted
//! or pinned, and only what a TLB has to forget is told to lg.

use crate::domain::all;
use crate::memory::Result;
use crate::memory::{element, is_ram, read, word, write, PAGE};
use crate::vcpu::Vcpu;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use lguest_call::abi::{LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE};
use lguest_call::hypercall;
use xen_abi::memory::{ext, update, uvmf, MmuExtOp, MmuUpdate, DOMID_SELF};
use xen_abi::number::error::{EACCES, EINVAL, ENOSYS, ESRCH};
use xen_core::page_table::{
    bit, index, preserve_accessed_dirty, still_right, with_writable_tables, Roots, ADDRESS,
};

/// In the count of a list: Xen was interrupted in it and begins again. Nobody interrupts us.
const PREEMPTED: u64 = 1 << 31;

/// Does each of a list, and says in `done` how many. The first that fails ends it.
fn each(count: u64, done: u64, mut one: impl FnMut(u64) -> Result<()>) -> Result {
    let count = u64::from(count as u32) & !PREEMPTED;
    let (mut finished, mut result) = (0, Ok(0));
    while finished < count {
        if let Err(error) = one(finished) {
            result = Err(error);
            break;
        }
        finished += 1;
    }
    if done != 0 {
        write(done, finished as u32)?;
    }
    result
}

/// MMU_UPDATE: stores entries by their machine addresses.
pub(super) fn update(list: u64, count: u64, done: u64, domain: u64) -> Result {
    if domain != DOMID_SELF {
        return Err(ESRCH);
    }
    each(count, done, |i| {
        let MmuUpdate { ptr, val } = read(element::<MmuUpdate>(list, i)?)?;
        let entry = word(ptr & !3);
        match ptr & 3 {
            update::NORMAL | update::NO_TRANSLATE => entry.ok_or(EINVAL)?.store(val, Relaxed),
            update::PRESERVE_AD => {
                let keep = |old| Some(preserve_accessed_dirty(old, val));
                let _ = entry.ok_or(EINVAL)?.fetch_update(SeqCst, SeqCst, keep);
            }
            // Machine and physical frames have the same numbers here, whatever the kernel says.
            _ => {}
        }
        Ok(())
    })
}

/// UPDATE_VA_MAPPING: stores the entry by which the current root maps `gva`.
pub(super) fn update_va_mapping(cpu: &Vcpu, gva: u64, value: u64, flags: u64) -> Result {
    let entry = leaf(cpu.cr3, gva).ok_or(EINVAL)?;
    let old = entry.load(Relaxed);
    let new = with_writable_tables(value);
    entry.store(new, Relaxed);
    if !still_right(old, new) {
        let whose = match flags & !uvmf::FLUSH_TYPE {
            0 => Whose::Own,
            uvmf::ALL => Whose::All,
            set => Whose::Those(set),
        };
        match flags & uvmf::FLUSH_TYPE {
            uvmf::TLB_FLUSH => flush_all(cpu, whose)?,
            uvmf::INVLPG => flush_one(cpu, whose, gva)?,
            _ => {}
        }
    }
    Ok(0)
}

/// The entry that maps the page at `gva`, if there is a table for it.
fn leaf(root: u64, gva: u64) -> Option<&'static AtomicU64> {
    let mut table = root;
    for level in [4, 3, 2] {
        let entry = word(table + index(gva, level) * 8)?.load(Relaxed);
        if entry & bit::PRESENT == 0 || entry & bit::LARGE != 0 {
            return None;
        }
        table = entry & ADDRESS;
    }
    word(table + index(gva, 1) * 8)
}

/// MMUEXT_OP: a list of operations.
pub(super) fn extended(cpu: &mut Vcpu, list: u64, count: u64, done: u64, domain: u64) -> Result {
    if domain != DOMID_SELF {
        return Err(ESRCH);
    }
    each(count, done, |i| {
        let operation: MmuExtOp = read(element::<MmuExtOp>(list, i)?)?;
        match operation.cmd {
            // Tables are ordinary memory. The root of user mode has the lower half of the kernel's, which lg uses itself.
            // No selector of an LDT can be loaded.
            ext::PIN_L1_TABLE..=ext::PIN_L4_TABLE | ext::NEW_USER_BASEPTR | ext::SET_LDT => {}
            ext::UNPIN_TABLE => unpin(cpu, operation.arg1),
            ext::NEW_BASEPTR => return load_root(cpu, operation.arg1),
            ext::TLB_FLUSH_LOCAL => flush_all(cpu, Whose::Own)?,
            ext::TLB_FLUSH_MULTI => flush_all(cpu, Whose::Those(operation.arg2))?,
            ext::TLB_FLUSH_ALL => flush_all(cpu, Whose::All)?,
            ext::INVLPG_LOCAL => flush_one(cpu, Whose::Own, operation.arg1)?,
            ext::INVLPG_MULTI => flush_one(cpu, Whose::Those(operation.arg2), operation.arg1)?,
            ext::INVLPG_ALL => flush_one(cpu, Whose::All, operation.arg1)?,
            ext::FLUSH_CACHE | ext::FLUSH_CACHE_GLOBAL => return Err(EACCES),
            _ => return Err(ENOSYS),
        }
        Ok(())
    })
}

static ROOTS: Roots = Roots::new();

/// The table goes away. If it was a root, lg need not keep what it has cached of it, nor look at that in each flush.
fn unpin(cpu: &Vcpu, frame: u64) {
    if ROOTS.take(frame) && frame * PAGE != cpu.cr3 {
        hypercall::drop_root(frame * PAGE);
    }
}

/// What is cached of the user half goes.
fn load_root(cpu: &mut Vcpu, frame: u64) -> Result<()> {
    if !is_ram(frame) {
        return Err(EINVAL);
    }
    ROOTS.loaded(frame);
    cpu.cr3 = frame * PAGE;
    hypercall::write_cr3(cpu.cr3);
    Ok(())
}

/// Of which vCPUs something is flushed.
enum Whose {
    /// This one's.
    Own,
    All,
    /// Those of the set at a pointer of the kernel's, which has a bit for each that there is.
    Those(u64),
}

/// Linux means the kernel half, or the user half of the current root, or both: it does not say.
fn flush_all(cpu: &Vcpu, whose: Whose) -> Result<()> {
    flush(cpu, whose, LGUEST_FLUSH_ALL, 0)
}

fn flush_one(cpu: &Vcpu, whose: Whose, gva: u64) -> Result<()> {
    flush(cpu, whose, LGUEST_FLUSH_ONE, gva)
}

fn flush(cpu: &Vcpu, whose: Whose, kind: u32, gva: u64) -> Result<()> {
    let own = 1 << cpu.id;
    let set = match whose {
        Whose::Own => own,
        Whose::All => all(),
        Whose::Those(set) => u64::from(read::<u32>(set)?) & all(),
    };
    if set == own {
        hypercall::flush_tlb(kind, gva);
    } else if set != 0 {
        hypercall::flush_vcpus(set, kind, gva, 0);
    }
    Ok(())
}
