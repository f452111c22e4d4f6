// SPDX-License-Identifier: GPL-2.0
//! Segments: of the kernel's GDT lg takes over what matters.

use crate::cpu;
use crate::memory::Result;
use crate::memory::{is_ram, read, word, PAGE};
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::Relaxed;
use lguest_call::{hypercall, shared_write};
use xen_abi::number::error::EINVAL;
use xen_abi::number::segment;
use xen_core::descriptor::{effect, Effect, ENTRIES};
use xen_core::page_table::is_canonical;

/// SET_GDT: the frame of the GDT, of which there is one.
pub(super) fn set_gdt(cpu: &mut Vcpu, frames: u64, entries: u64) -> Result {
    let frame: u64 = read(frames)?;
    if entries > PAGE / 8 || !is_ram(frame) {
        return Err(EINVAL);
    }
    cpu.gdt = frame * PAGE;
    take(cpu, entries);
    Ok(0)
}

/// Those of the GDT with which a vCPU is turned on for the first time.
pub(crate) fn take_segments(cpu: &mut Vcpu) {
    if cpu.gdt != 0 {
        take(cpu, ENTRIES);
    }
}

/// The first entries of the GDT, which is there.
fn take(cpu: &mut Vcpu, entries: u64) {
    for index in 0..entries.min(ENTRIES) {
        if let Some(descriptor) = word(cpu.gdt + index * 8) {
            apply(cpu, index, descriptor.load(Relaxed));
        }
    }
}

/// UPDATE_DESCRIPTOR: writes an entry by its machine address.
pub(super) fn update(cpu: &mut Vcpu, address: u64, descriptor: u64) -> Result {
    word(address).ok_or(EINVAL)?.store(descriptor, Relaxed);
    if address & !(PAGE - 1) == cpu.gdt {
        apply(cpu, (address - cpu.gdt) / 8, descriptor);
    }
    Ok(0)
}

fn apply(cpu: &mut Vcpu, index: u64, descriptor: u64) {
    match effect(index, descriptor) {
        Effect::Tls(i) => {
            let known = &mut cpu.tls[i as usize];
            // What lg refuses, no program can load either.
            if *known != descriptor && hypercall::set_tls(i, descriptor) == 0 {
                *known = descriptor;
            }
        }
        Effect::CpuNode(limit) => {
            hypercall::set_cpunode(limit.into());
            cpu.cpu_node = limit;
        }
        Effect::None => {}
    }
}

/// SET_SEGMENT_BASE.
pub(super) fn set_segment_base(cpu: &Vcpu, which: u64, base: u64) -> Result {
    if which == segment::GS_USER_SELECTOR {
        shared_write!(of cpu.id, user_gs_base, cpu::load_gs(base as u16));
        return Ok(0);
    }
    if !is_canonical(base) {
        return Err(EINVAL);
    }
    match which {
        segment::FS => cpu::set_fs_base(base),
        segment::GS_USER => shared_write!(of cpu.id, user_gs_base, base),
        segment::GS_KERNEL => cpu::set_gs_base(base),
        _ => return Err(EINVAL),
    }
    Ok(0)
}
