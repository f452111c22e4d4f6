// SPDX-License-Identifier: GPL-2.0

//! Privileged instructions of a Guest kernel for which it has no hypercall: they fault with #GP at
//! CPL3 and are done here.
//!
//! None of them is on a path that matters for speed; Linux runs a few dozen while it boots.

use crate::{
    blame::{
        Death,
        Protection,
        Refused,
        Stop, //
    },
    guest::{
        lguest,
        Cpu, //
    },
    lg_core::{
        addr::Gva,
        emulate::{
            self,
            Gpr,
            Privileged, //
        },
        shadow::Flush, //
    },
    sys::{
        page::Wait,
        switcher::Regs, //
    },
};

const MSR_EFER: u32 = 0xc000_0080;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// A Guest reads PG, AM, WP, NE, ET, MP and PE: the mode that it runs in, with the FPU as Linux
/// sets it.
const CR0: u64 = 0x8005_0033;
/// A Guest reads PAE, PGE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, PCIDE and OSXSAVE: all that its
/// programs may rely on, and no SMEP, SMAP or PKE, which mean nothing at CPL3.
const CR4: u64 = 0x7_0ea0;
/// A Guest reads SCE, LME, LMA and NXE: SYSCALL is on, and so are long mode and NX.
const EFER: u64 = 0xd01;
/// DR7 after reset: a Guest has no breakpoints of its own.
const DR7: u64 = 0x400;

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

/// Executes `instruction`, `len` bytes long, and steps over it. May sleep.
pub(crate) fn execute(
    cpu: &mut Cpu,
    instruction: Privileged,
    len: u8,
) -> Result<(), Refused<Protection>> {
    let mut regs = *cpu.switcher.regs();
    let next_rip = regs.rip.wrapping_add(len.into());
    let (ecx, edx_eax) = (regs.rcx as u32, (regs.rdx << 32) | (regs.rax & 0xffff_ffff));
    match instruction {
        Privileged::Hlt => halt(cpu, regs.rip)?,
        Privileged::Cli => lguest::set_virtual_if(cpu, false),
        Privileged::Sti => lguest::set_virtual_if(cpu, true),
        // Nothing to do: there is no lazy FPU, and caches are coherent.
        Privileged::Clts | Privileged::Wbinvd => {}
        Privileged::Xsetbv => {
            if ecx != 0 || !cpu.xcr0.set(edx_eax) {
                return Err(Protection.into());
            }
        }
        Privileged::Swapgs => swapgs(cpu),
        Privileged::Rdmsr => {
            let value = rdmsr(cpu, ecx)?;
            (regs.rax, regs.rdx) = (value & 0xffff_ffff, value >> 32);
        }
        Privileged::Wrmsr => wrmsr(cpu, ecx, edx_eax)?,
        Privileged::In { size, port } => {
            let value: u64 = emulate::read_port(port.number(regs.rdx as u16)).into();
            regs.rax = match size {
                1 => (regs.rax & !0xff) | (value & 0xff),
                2 => (regs.rax & !0xffff) | (value & 0xffff),
                _ => value,
            }
        }
        Privileged::Out { .. } => {}
        Privileged::MovFromCr { cr, gpr: to } => *gpr(&mut regs, to) = read_cr(cpu, cr)?,
        Privileged::MovToCr { cr, gpr: from } => write_cr(cpu, cr, *gpr(&mut regs, from))?,
        Privileged::MovFromDr { dr, gpr: to } => *gpr(&mut regs, to) = read_dr(cpu, dr)?,
        // A Guest has no breakpoints of its own.
        Privileged::MovToDr { dr, .. } => {
            if matches!(dr, 4 | 5) {
                return Err(Protection.into());
            }
        }
        Privileged::Invlpg(memory) => {
            let (fs, gs) = cpu.switcher.bases();
            let gva = memory.address(|r| *gpr(&mut regs.clone(), r), next_rip, fs, gs);
            let page = Flush::Page(Gva::new(gva));
            cpu.flush(page, Wait::Allowed)?;
        }
    }
    regs.rip = next_rip;
    *cpu.switcher.regs() = regs;
    Ok(())
}

fn halt(cpu: &mut Cpu, rip: u64) -> Result<(), Stop> {
    if !lguest::virtual_if(cpu) {
        return Err(Death::HaltForever(rip).into());
    }
    cpu.halt()
}

fn swapgs(cpu: &mut Cpu) {
    let (fs, gs) = cpu.switcher.bases();
    let user = lguest::user_gs_base(cpu);
    lguest::set_user_gs_base(cpu, gs);
    cpu.switcher
        .set_bases(fs, Gva::new(user).canonicalize().get());
}

fn read_cr(cpu: &Cpu, cr: u8) -> Result<u64, Protection> {
    match cr {
        0 => Ok(CR0),
        2 => Ok(lguest::cr2(cpu)),
        3 => Ok(cpu.root.gpa().get()),
        4 => Ok(CR4),
        _ => Err(Protection),
    }
}

fn write_cr(cpu: &mut Cpu, cr: u8, value: u64) -> Result<(), Refused<Protection>> {
    match cr {
        // The modes a Guest runs in are fixed; what it writes there changes nothing.
        0 | 4 => {}
        2 => lguest::set_cr2(cpu, value),
        3 => cpu.write_cr3(value, Wait::Allowed)?,
        _ => return Err(Protection.into()),
    }
    Ok(())
}

fn read_dr(cpu: &mut Cpu, dr: u8) -> Result<u64, Protection> {
    match dr {
        0..=3 => Ok(0),
        6 => Ok(cpu.switcher.dr6()),
        7 => Ok(DR7),
        _ => Err(Protection),
    }
}

fn rdmsr(cpu: &mut Cpu, msr: u32) -> Result<u64, Protection> {
    let (fs, gs) = cpu.switcher.bases();
    match msr {
        MSR_EFER => Ok(EFER),
        MSR_FS_BASE => Ok(fs),
        MSR_GS_BASE => Ok(gs),
        MSR_KERNEL_GS_BASE => Ok(lguest::user_gs_base(cpu)),
        _ => Err(Protection),
    }
}

fn wrmsr(cpu: &mut Cpu, msr: u32, value: u64) -> Result<(), Protection> {
    let (fs, gs) = cpu.switcher.bases();
    if matches!(msr, MSR_FS_BASE | MSR_GS_BASE | MSR_KERNEL_GS_BASE)
        && !Gva::new(value).is_canonical()
    {
        return Err(Protection);
    }
    match msr {
        MSR_EFER if value & !0xfff == 0 => {}
        MSR_FS_BASE => cpu.switcher.set_bases(value, gs),
        MSR_GS_BASE => cpu.switcher.set_bases(fs, value),
        MSR_KERNEL_GS_BASE => lguest::set_user_gs_base(cpu, value),
        _ => return Err(Protection),
    }
    Ok(())
}
