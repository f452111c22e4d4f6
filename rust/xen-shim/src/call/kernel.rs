// SPDX-License-Identifier: GPL-2.0
//! What a kernel tells of itself, and what it wants to know.

use crate::console::Text;
use crate::cpu;
use crate::memory::Result;
use crate::memory::{element, read, write};
use crate::trap;
use crate::vcpu::{Trap, Vcpu};
use lguest_call::shared_write;
use xen_abi::number::error::{EINVAL, ENOSYS};
use xen_abi::number::physdev::{SetIobitmap, SetIopl};
use xen_abi::number::{assist, console, physdev, version};
use xen_abi::vcpu::{callback, CallbackRegister, TrapInfo, TRAP_MASKS_EVENTS};
use xen_core::cpuid::XEN_VERSION;
use xen_core::page_table::is_canonical;

/// What Linux panics without: that MMU_UPDATE may keep accessed and dirty bits, and that grants can be mapped with the bits
/// of an entry that are the kernel's own. The second is of use to backends alone.
const FEATURES: u32 = (1 << 5) | (1 << 7);
/// DR7 after reset.
const DR7: u64 = 0x400;

const NOBODY: Trap = Trap {
    address: 0,
    flags: 0,
};

/// STACK_SWITCH: the stack for what comes from user mode.
pub(super) fn stack_switch(cpu: &mut Vcpu, sp: u64) -> i64 {
    cpu.kernel_sp = sp & !15;
    shared_write!(of cpu.id, kernel_rsp, cpu.kernel_sp);
    0
}

/// SET_TRAP_TABLE: handlers of exceptions and of int 0x80; a list of none forgets all.
pub(super) fn set_trap_table(cpu: &mut Vcpu, list: u64) -> Result {
    if list == 0 {
        cpu.traps = [NOBODY; 256];
        cpu.page_fault = 0;
        return Ok(0);
    }
    for i in 0.. {
        let wanted: TrapInfo = read(element::<TrapInfo>(list, i)?)?;
        if wanted.address == 0 {
            break;
        }
        if !is_canonical(wanted.address) {
            return Err(EINVAL);
        }
        trap::set_handler(cpu, wanted.vector, &wanted);
    }
    Ok(0)
}

/// CALLBACK_OP. Those for the fast system calls of 32-bit code are kept for programs that execute them by themselves, and
/// refused nevertheless: Linux's vDSO then uses int 0x80, which is faster here.
pub(super) fn callback(cpu: &mut Vcpu, command: u64, argument: u64) -> Result {
    if command != callback::REGISTER {
        return Err(ENOSYS);
    }
    let wanted: CallbackRegister = read(argument)?;
    if !is_canonical(wanted.address) {
        return Err(EINVAL);
    }
    let masks = if wanted.flags & 1 != 0 {
        TRAP_MASKS_EVENTS
    } else {
        0
    };
    let trap = Trap {
        address: wanted.address,
        flags: masks,
    };
    match wanted.kind {
        callback::EVENT => cpu.event = trap,
        callback::FAILSAFE => cpu.failsafe = trap,
        callback::SYSCALL => cpu.syscall = wanted.address,
        callback::SYSENTER | callback::SYSCALL32 => {
            match wanted.kind {
                callback::SYSENTER => cpu.sysenter = trap,
                _ => cpu.syscall32 = trap,
            }
            return Err(EINVAL);
        }
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// SET_DEBUGREG: the kernel's breakpoints are remembered, and hit nothing.
pub(super) fn set_debug_register(cpu: &mut Vcpu, register: u64, value: u64) -> Result {
    match register {
        0..=3 | 7 => cpu.debug[register as usize] = value,
        6 => {}
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// GET_DEBUGREG. The result is the value: nothing is an error.
pub(super) fn debug_register(cpu: &Vcpu, register: u64) -> Result {
    Ok(match register {
        0..=3 => cpu.debug[register as usize],
        6 => cpu::dr6(),
        7 => cpu.debug[7] | DR7,
        _ => 0,
    } as i64)
}

/// XEN_VERSION. Linux asks for the version, with nothing to be written to, when it wants pending events delivered: that
/// happens behind every hypercall.
pub(super) fn version(command: u64, argument: u64) -> Result {
    match command {
        version::VERSION => return Ok(XEN_VERSION.into()),
        version::EXTRAVERSION => {
            for (i, byte) in (0..).zip(*b".lg\0") {
                write(element::<u8>(argument, i)?, byte)?;
            }
        }
        version::GET_FEATURES => {
            let words: u32 = read(argument)?;
            let features = if words == 0 { FEATURES } else { 0 };
            write(element::<u32>(argument, 1)?, features)?;
        }
        _ => return Err(ENOSYS),
    }
    Ok(0)
}

/// CONSOLE_IO: text of an early kernel. There is nothing to read.
pub(super) fn console(command: u64, len: u64, gva: u64) -> Result {
    match command {
        console::WRITE => {
            let mut written = 0;
            while written < len {
                let mut text = Text::<1024>::new();
                written += text.copy_in(gva.wrapping_add(written), len - written)?;
                text.print();
            }
            Ok(0)
        }
        console::READ => Ok(0),
        _ => Err(ENOSYS),
    }
}

/// VM_ASSIST.
pub(super) fn assist(command: u64, what: u64) -> Result {
    match (command, what) {
        (assist::ENABLE, assist::WRITABLE_PAGE_TABLES) => Ok(0),
        _ => Err(EINVAL),
    }
}

/// PHYSDEV_OP: which ports programs may have; a physical interrupt needs no acknowledgement.
pub(super) fn physdev(cpu: &mut Vcpu, command: u64, argument: u64) -> Result {
    match command {
        physdev::SET_IOPL => {
            let SetIopl { iopl } = read(argument)?;
            if iopl > 3 {
                return Err(EINVAL);
            }
            cpu.iopl = iopl;
        }
        physdev::SET_IOBITMAP => {
            let wanted: SetIobitmap = read(argument)?;
            if wanted.nr_ports > physdev::IO_PORTS {
                return Err(EINVAL);
            }
            cpu.io_bitmap = wanted.bitmap;
            cpu.io_ports = wanted.nr_ports;
        }
        // Behind the interrupt's number are its flags.
        physdev::IRQ_STATUS_QUERY => write(element::<u32>(argument, 1)?, 0_u32)?,
        _ => return Err(ENOSYS),
    }
    Ok(0)
}
