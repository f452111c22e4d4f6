// SPDX-License-Identifier: GPL-2.0
//! The CPU: instructions that are done for the kernel, and registers that only instructions reach.

use crate::memory::read;
use crate::vcpu::{Vcpu, USER_CS, USER_CS32};
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use lguest_call::abi::{LGUEST_HOST_CLEARS_BUFFERS, LGUEST_HOST_TSC_STABLE};
use lguest_call::shared_read;
use xen_core::cpuid::{self, Registers};
use xen_core::instruction::{self, Msr, PortAccess, FORCED_CPUID, MAX_LENGTH, MSR_LENGTH};

/// Executes Xen's CPUID, if that is what faulted.
pub(crate) fn forced_cpuid(cpu: &mut Vcpu) -> bool {
    if !matches!(read(cpu.frame.rip), Ok(FORCED_CPUID)) {
        return false;
    }
    let frame = &mut cpu.frame;
    let out = cpuid::answer(frame.rax as u32, frame.rcx as u32, &host(), native);
    frame.rax = out.eax.into();
    frame.rbx = out.ebx.into();
    frame.rcx = out.ecx.into();
    frame.rdx = out.edx.into();
    frame.rip += FORCED_CPUID.len() as u64;
    true
}

fn native(leaf: u32, subleaf: u32) -> Registers {
    // SAFETY: every 64-bit CPU has CPUID, and at CPL3 it is the CPU's own.
    let out = unsafe { __cpuid_count(leaf, subleaf) };
    Registers {
        eax: out.eax,
        ebx: out.ebx,
        ecx: out.ecx,
        edx: out.edx,
    }
}

fn host() -> cpuid::Host {
    const OSXSAVE: u32 = 1 << 27;
    cpuid::Host {
        xcr0: if native(1, 0).ecx & OSXSAVE != 0 {
            xcr0()
        } else {
            0
        },
        clears_buffers: host_has(LGUEST_HOST_CLEARS_BUFFERS),
        tsc_stable: tsc_is_stable(),
    }
}

/// Does the Host trust its TSC?
pub(crate) fn tsc_is_stable() -> bool {
    host_has(LGUEST_HOST_TSC_STABLE)
}

fn host_has(feature: u32) -> bool {
    shared_read!(host_features) & u64::from(feature) != 0
}

fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    unsafe fn get() -> u64 {
        // SAFETY: the caller has looked at OSXSAVE.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the caller has looked at OSXSAVE.
    unsafe { get() }
}

/// Does the access to an MSR of ours, if that is what faulted.
pub(crate) fn msr(cpu: &mut Vcpu) -> bool {
    let Some(access) = read(cpu.frame.rip).ok().and_then(instruction::msr) else {
        return false;
    };
    let Some(value) = instruction::msr_value(cpu.frame.rcx as u32) else {
        return false;
    };
    match access {
        Msr::Read => {
            cpu.frame.rax = value & 0xffff_ffff;
            cpu.frame.rdx = value >> 32;
        }
        // They are what they are.
        Msr::Write => {}
    }
    cpu.frame.rip += MSR_LENGTH;
    true
}

/// Does a program's access to I/O ports, if that is what faulted and the kernel grants it.
pub(crate) fn port(cpu: &mut Vcpu) -> bool {
    if (cpu.iopl < 3 && cpu.io_ports == 0) || !matches!(cpu.user, USER_CS | USER_CS32) {
        return false;
    }
    let (mut code, mut known) = ([0_u8; MAX_LENGTH], 0);
    // It can be the last instruction of what is mapped.
    for (gva, byte) in (cpu.frame.rip..).zip(&mut code) {
        let Ok(value) = read(gva) else { break };
        *byte = value;
        known += 1;
    }
    let access =
        instruction::port_access(&code[..known], cpu.frame.rdx as u16, cpu.user == USER_CS);
    let Some(access) = access.filter(|access| is_granted(cpu, access)) else {
        return false;
    };
    cpu.frame.rax = access.rax(cpu.frame.rax);
    cpu.frame.rip += access.length;
    true
}

fn is_granted(cpu: &Vcpu, access: &PortAccess) -> bool {
    if cpu.iopl == 3 {
        return true;
    }
    let last = u32::from(access.port) + access.width - 1;
    let bits = cpu.io_bitmap.wrapping_add(u64::from(access.port / 8));
    last < cpu.io_ports
        && read(bits).is_ok_and(|bits: [u8; 2]| access.is_granted(u16::from_le_bytes(bits)))
}

/// DS, ES, FS and GS.
pub(crate) fn data_selectors() -> [u64; 4] {
    let (ds, es, fs, gs): (u64, u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {:r}, ds", "mov {:r}, es", "mov {:r}, fs", "mov {:r}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    [ds, es, fs, gs]
}

/// Debug status: lg does the instruction for us.
pub(crate) fn dr6() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets the FS base, which is canonical.
pub(crate) fn set_fs_base(base: u64) {
    // SAFETY: the shim does not use FS; lg demands FSGSBASE of its Host.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
}

/// Sets the GS base of kernel mode, which is canonical.
pub(crate) fn set_gs_base(base: u64) {
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
}

fn gs_base() -> u64 {
    let base;
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

extern "C" {
    fn shim_load_gs(selector: u64) -> u64;
    fn shim_wait(hypercall: u32, irq_enabled: *mut u64) -> u64;
}

/// Loads GS with `selector`, or with null if that cannot be, and returns the base that it has then. That of kernel mode stays.
pub(crate) fn load_gs(selector: u16) -> u64 {
    let kernel = gs_base();
    // SAFETY: a selector that faults ends the function; the shim does not use GS.
    unsafe {
        if shim_load_gs(selector.into()) != 0 {
            shim_load_gs(0);
        }
    }
    let user = gs_base();
    set_gs_base(kernel);
    user
}

/// Does an lg hypercall with virtual interrupts on; returns the vector of the interrupt that came meanwhile, or 0.
pub(crate) fn wait(hypercall: u32) -> u64 {
    let shared = lguest_call::shared::SHARED;
    // SAFETY: the function keeps what a C function keeps, whether it returns by itself or by way of an interrupt; the page
    // is always there.
    unsafe { shim_wait(hypercall, core::ptr::addr_of_mut!((*shared).irq_enabled)) }
}
