// SPDX-License-Identifier: GPL-2.0

//! Privileged instructions of a guest kernel for which it has no hypercall: they fault with #GP at
//! CPL3 and are done here.
//!
//! None of them is on a path that matters for speed; Linux runs a few dozen while it boots.

use crate::{
    abi::*,
    blame::{
        Death,
        Protection,
        Refused, //
    },
    lg_core::{
        addr::Gva,
        emulate::{
            Gpr,
            Privileged, //
        },
        flags,
    },
    sys::{
        page::Wait,
        switcher::Regs, //
    },
    vcpu::Vcpu,
    vm::Vm,
};
use core::mem::offset_of;
use kernel::prelude::*;

const MSR_EFER: u32 = 0xc000_0080;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// What a guest reads: paging, protection, write protection, the FPU as Linux sets it.
const CR0: u64 = 0x8005_0033;
/// PAE, PGE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE.
const CR4: u64 = 0x7_0ea0;
/// SCE, LME, LMA, NX.
const EFER: u64 = 0xd01;
/// DR7 after reset: a guest has no breakpoints of its own.
const DR7: u64 = 0x400;

const IF: usize = offset_of!(lguest_shared, irq_enabled);
const USER_GS_BASE: usize = offset_of!(lguest_shared, user_gs_base);

fn gpr(regs: &mut Regs, gpr: Gpr) -> &mut u64 {
    match gpr {
        Gpr::Rax => &mut regs.rax,
        Gpr::Rcx => &mut regs.rcx,
        Gpr::Rdx => &mut regs.rdx,
        Gpr::Rbx => &mut regs.rbx,
        Gpr::Rsp => &mut regs.rsp,
        Gpr::Rbp => &mut regs.rbp,
        Gpr::Rsi => &mut regs.rsi,
        Gpr::Rdi => &mut regs.rdi,
        Gpr::R8 => &mut regs.r8,
        Gpr::R9 => &mut regs.r9,
        Gpr::R10 => &mut regs.r10,
        Gpr::R11 => &mut regs.r11,
        Gpr::R12 => &mut regs.r12,
        Gpr::R13 => &mut regs.r13,
        Gpr::R14 => &mut regs.r14,
        Gpr::R15 => &mut regs.r15,
    }
}

/// Executes `instruction`, `len` bytes long, and steps over it.
pub(crate) fn execute(
    vcpu: &mut Vcpu,
    vm: &Vm,
    instruction: Privileged,
    len: u8,
) -> Result<(), Refused<Protection>> {
    let mut regs = *vcpu.switcher.regs();
    let next_rip = regs.rip.wrapping_add(len.into());
    let edx_eax = (regs.rdx << 32) | (regs.rax & 0xffff_ffff);
    match instruction {
        Privileged::Hlt => {
            if vcpu.switcher.shared(IF) & flags::IF == 0 {
                return Err(Death::HaltForever(regs.rip).into());
            }
            vcpu.halt()?;
        }
        Privileged::Cli => vcpu.switcher.set_shared(IF, 0),
        Privileged::Sti => vcpu.switcher.set_shared(IF, flags::IF),
        // Nothing to do: there is no lazy FPU, and caches are coherent.
        Privileged::Clts | Privileged::Wbinvd => {}
        Privileged::Xsetbv => {
            if regs.rcx as u32 != 0 || !vcpu.switcher.set_xcr0(edx_eax) {
                return Err(Protection.into());
            }
        }
        Privileged::Swapgs => {
            let (fs, gs) = vcpu.switcher.bases();
            let user = vcpu.switcher.shared(USER_GS_BASE);
            vcpu.switcher.set_shared(USER_GS_BASE, gs);
            vcpu.switcher
                .set_bases(fs, Gva::new(user).canonicalize().get());
        }
        Privileged::Rdmsr => {
            let Some(value) = rdmsr(vcpu, regs.rcx as u32) else {
                return Err(Protection.into());
            };
            (regs.rax, regs.rdx) = (value & 0xffff_ffff, value >> 32);
        }
        Privileged::Wrmsr => {
            if !wrmsr(vcpu, regs.rcx as u32, edx_eax) {
                return Err(Protection.into());
            }
        }
        // Nobody answers on any port: the bus floats high.
        Privileged::In { size, .. } => {
            regs.rax = match size {
                1 => regs.rax | 0xff,
                2 => regs.rax | 0xffff,
                _ => 0xffff_ffff,
            }
        }
        Privileged::Out { .. } => {}
        Privileged::MovFromCr { cr, gpr: to } => {
            *gpr(&mut regs, to) = match cr {
                0 => CR0,
                2 => vcpu.switcher.shared(offset_of!(lguest_shared, cr2)),
                3 => vcpu.root.get(),
                4 => CR4,
                _ => return Err(Protection.into()),
            }
        }
        Privileged::MovToCr { cr, gpr: from } => {
            let value = *gpr(&mut regs, from);
            match cr {
                // The modes a guest runs in are fixed; what it writes there changes nothing.
                0 | 4 => {}
                2 => vcpu
                    .switcher
                    .set_shared(offset_of!(lguest_shared, cr2), value),
                3 => vcpu.write_cr3(vm, value, Wait::Allowed)?,
                _ => return Err(Protection.into()),
            }
        }
        Privileged::MovFromDr { dr, gpr: to } => {
            *gpr(&mut regs, to) = match dr {
                0..=3 => 0,
                6 => vcpu.switcher.dr6(),
                7 => DR7,
                _ => return Err(Protection.into()),
            }
        }
        Privileged::MovToDr { dr, .. } => {
            if matches!(dr, 4 | 5) {
                return Err(Protection.into());
            }
        }
        Privileged::Invlpg(memory) => {
            let (fs, gs) = vcpu.switcher.bases();
            let gva = memory.address(|r| *gpr(&mut regs.clone(), r), next_rip, fs, gs);
            vcpu.flush_one(vm, gva)?;
        }
    }
    regs.rip = next_rip;
    *vcpu.switcher.regs() = regs;
    Ok(())
}

fn rdmsr(vcpu: &mut Vcpu, msr: u32) -> Option<u64> {
    let (fs, gs) = vcpu.switcher.bases();
    match msr {
        MSR_EFER => Some(EFER),
        MSR_FS_BASE => Some(fs),
        MSR_GS_BASE => Some(gs),
        MSR_KERNEL_GS_BASE => Some(vcpu.switcher.shared(USER_GS_BASE)),
        _ => None,
    }
}

fn wrmsr(vcpu: &mut Vcpu, msr: u32, value: u64) -> bool {
    let (fs, gs) = vcpu.switcher.bases();
    if matches!(msr, MSR_FS_BASE | MSR_GS_BASE | MSR_KERNEL_GS_BASE)
        && !Gva::new(value).is_canonical()
    {
        return false;
    }
    match msr {
        MSR_EFER => return value & !0xfff == 0,
        MSR_FS_BASE => vcpu.switcher.set_bases(value, gs),
        MSR_GS_BASE => vcpu.switcher.set_bases(fs, value),
        MSR_KERNEL_GS_BASE => vcpu.switcher.set_shared(USER_GS_BASE, value),
        _ => return false,
    }
    true
}
