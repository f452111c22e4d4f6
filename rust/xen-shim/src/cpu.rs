// SPDX-License-Identifier: GPL-2.0
//! The CPU: instructions that are done for the kernel, and registers that only instructions reach.

use crate::memory::{self, handover, read, write};
use crate::vcpu::{entries, Vcpu, USER_CS, USER_CS32};
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use lguest_call::abi::{LGUEST_HOST_CLEARS_BUFFERS, LGUEST_HOST_TSC_STABLE};
use lguest_call::shared::page_of;
use lguest_call::{hypercall, shared_read, shared_write};
use xen_abi::number::physdev::IO_PORTS;
use xen_core::cpuid::{self, Registers};
use xen_core::descriptor::ENTRIES;
use xen_core::instruction::{
    self, Msr, PortAccess, Table, CLI, FORCED_CPUID, MAX_LENGTH, MSR_LENGTH, STI,
};

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

/// Does a program's access to I/O ports, if that is what faulted and the kernel grants it; and nothing for its CLI or STI, if
/// it is 32-bit code that may have all.
pub(crate) fn port(cpu: &mut Vcpu) -> bool {
    if (cpu.iopl < 3 && cpu.io_ports == 0) || !matches!(cpu.user, USER_CS | USER_CS32) {
        return false;
    }
    let mut code = [0; MAX_LENGTH];
    let code = fetch(cpu.frame.rip, &mut code);
    // Linux has the same rule, but looks for the code segment by SGDT, which finds a table that is not its own where the Host
    // has no UMIP.
    if cpu.user == USER_CS32 && matches!(code, [CLI | STI, ..]) && has_all_ports(cpu) {
        cpu.frame.rip += 1;
        return true;
    }
    let access = instruction::port_access(code, cpu.frame.rdx as u16, cpu.user == USER_CS);
    let Some(access) = access.filter(|access| is_granted(cpu, access)) else {
        return false;
    };
    cpu.frame.rax = access.rax(cpu.frame.rax);
    cpu.frame.rip += access.length;
    true
}

/// The instruction at `rip`, in `code`: less of it where what is mapped ends.
fn fetch(rip: u64, code: &mut [u8; MAX_LENGTH]) -> &[u8] {
    let mut known = 0;
    for (gva, byte) in (rip..).zip(&mut *code) {
        let Ok(value) = read(gva) else { break };
        *byte = value;
        known += 1;
    }
    &code[..known]
}

/// Stores the register of a descriptor table for the kernel, if that is what faulted, as it does where the Host has UMIP on.
/// The GDT is the kernel's own, in the alias; it has no IDT and no LDT. A pointer that cannot be written through is the
/// kernel's #GP, and not the page fault that a CPU would raise.
pub(crate) fn store_table(cpu: &mut Vcpu) -> bool {
    let mut code = [0; MAX_LENGTH];
    let code = fetch(cpu.frame.rip, &mut code);
    let register = |number| cpu.frame.register(number);
    let Some(store) = instruction::table_store(code, cpu.frame.rip, register) else {
        return false;
    };
    let (limit, base): (u16, u64) = match store.table {
        Table::Gdt if cpu.gdt != 0 => (ENTRIES as u16 * 8 - 1, memory::address(cpu.gdt)),
        _ => (0, 0),
    };
    let [l0, l1] = limit.to_le_bytes();
    let [b0, b1, b2, b3, b4, b5, b6, b7] = base.to_le_bytes();
    let stored = match store.table {
        Table::Gdt | Table::Idt => write(store.to, [l0, l1, b0, b1, b2, b3, b4, b5, b6, b7]),
        Table::Ldt => write(store.to, [0_u8; 2]),
    };
    if stored.is_ok() {
        cpu.frame.rip += store.length;
    }
    stored.is_ok()
}

fn has_all_ports(cpu: &Vcpu) -> bool {
    let word = |i| read::<u64>(cpu.io_bitmap.wrapping_add(i * 8));
    cpu.iopl == 3
        || cpu.io_ports == IO_PORTS && (0..u64::from(IO_PORTS) / 64).all(|i| word(i) == Ok(0))
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

fn fs_base() -> u64 {
    let base;
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

extern "C" {
    fn shim_load_gs(selector: u64) -> u64;
    fn shim_wait(hypercall: u32, irq_enabled: *mut u64) -> u64;
    fn shim_off(sp: *mut u64) -> u64;
}

/// Makes of a vCPU that lg has just turned on, and that is as lg has made it, what `cpu` says.
pub(crate) fn settle(cpu: &Vcpu) {
    let entries = entries(cpu.id);
    let set = hypercall::set_entries(entries.syscall, entries.event_user, entries.event_kernel);
    assert_eq!(set, 0, "SET_ENTRIES");
    let set = hypercall::set_monitor(entries.hypercall, handover().root);
    assert_eq!(set, 0, "SET_MONITOR");
    shared_write!(of cpu.id, kernel_rsp, cpu.kernel_sp);
    // Faults of programs go to the kernel as they come, and Linux looks whether there is anything to do.
    shared_write!(of cpu.id, takes_spurious, 1);
    assert_eq!(hypercall::write_cr3(cpu.cr3), 0, "WRITE_CR3");
    let [fs, gs, user_gs] = cpu.bases;
    set_fs_base(fs);
    set_gs_base(gs);
    shared_write!(of cpu.id, user_gs_base, user_gs);
    for (i, &descriptor) in (0..).zip(&cpu.tls) {
        hypercall::set_tls(i, descriptor);
    }
    hypercall::set_cpunode(cpu.cpu_node.into());
}

/// Turns this vCPU off, and returns when it is on again, as it was; but the FPU is as lg has made it.
pub(crate) fn off(cpu: &mut Vcpu) {
    cpu.bases = [fs_base(), gs_base(), shared_read!(of cpu.id, user_gs_base)];
    // SAFETY: the function keeps what a C function keeps; the place for the stack pointer is nobody else's.
    if unsafe { shim_off(core::ptr::addr_of_mut!(cpu.off_sp)) } != 0 {
        // So ends a kernel that meets with an exception before it has anything to tell of it by.
        panic!("the kernel has stopped its last CPU");
    }
    settle(cpu);
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
pub(crate) fn wait(cpu: &Vcpu, hypercall: u32) -> u64 {
    let shared = page_of(cpu.id);
    // SAFETY: the function keeps what a C function keeps, whether it returns by itself or by way of an interrupt; the page
    // is always there.
    unsafe { shim_wait(hypercall, core::ptr::addr_of_mut!((*shared).irq_enabled)) }
}
