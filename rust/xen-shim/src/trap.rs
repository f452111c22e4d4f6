// SPDX-License-Identifier: GPL-2.0
//! Events of the kernel and its programs: handed to the kernel as Xen would, or done for it.

use crate::memory::{self, read};
use crate::vcpu::{Frame, Trap, Vcpu, USER_SS};
use crate::{cpu, interrupt};
use core::sync::atomic::Ordering::SeqCst;
use lguest_call::abi::{LGUEST_ERROR_SYSCALL32, LGUEST_ERROR_SYSENTER};
use lguest_call::{shared_read, shared_write};
use xen_abi::number::error::ENOSYS;
use xen_abi::vcpu::{selector, IretFrame, TrapInfo, TRAP_MASKS_EVENTS};
use xen_core::frame::{self, Target};

/// Vectors of exceptions (SDM volume 3, table 7-1).
const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
pub(crate) const PAGE_FAULT: u8 = 14;
/// The first vector of interrupts.
const INTERRUPTS: u8 = 32;
const INT80: u8 = 0x80;

/// Linux's number of the system call that makes LDTs: of 64-bit programs, and of 32-bit ones.
pub(crate) const MODIFY_LDT: u32 = 154;
const MODIFY_LDT_32: u32 = 123;

/// Bytes of SYSCALL.
const SYSCALL_LENGTH: u64 = 2;
/// Selectors that kernel mode has in frames: Xen's, with the RPL that says "kernel".
const KERNEL_CS: u64 = selector::FLAT_CS64 as u64 & !3;
const KERNEL_SS: u64 = selector::FLAT_DS as u64;

const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The kernel's handler of `vector` is as `trap` says, whose address is canonical.
pub(crate) fn set_handler(cpu: &mut Vcpu, vector: u8, trap: &TrapInfo) {
    if vector == PAGE_FAULT {
        let masks = trap.flags & TRAP_MASKS_EVENTS != 0;
        cpu.page_fault = if masks { trap.address } else { 0 };
    }
    cpu.traps[usize::from(vector)] = Trap {
        address: trap.address,
        flags: trap.flags,
    };
}

/// What came from the kernel or a program, with the state in `cpu.frame`.
pub(crate) fn event(cpu: &mut Vcpu, vector: u8, error: u64) {
    match vector {
        INT80 => int80(cpu),
        INTERRUPTS.. => interrupt(cpu, vector),
        INVALID_OPCODE if cpu::forced_cpuid(cpu) => {}
        GENERAL_PROTECTION => protection(cpu, error),
        PAGE_FAULT => {
            cpu.info().cr2.store(shared_read!(of cpu.id, cr2), SeqCst);
            exception(cpu, vector, error);
        }
        _ => exception(cpu, vector, error),
    }
}

/// An interrupt, in the kernel, a program, or on the way out.
pub(crate) fn interrupt(cpu: &mut Vcpu, vector: u8) {
    interrupt::count(cpu, vector);
    deliver_pending(cpu);
}

/// Enters the kernel's handler of events, if one is pending and they are not masked.
pub(crate) fn deliver_pending(cpu: &mut Vcpu) -> bool {
    let info = cpu.info();
    if info.upcall.load(SeqCst) == 0 || info.mask.load(SeqCst) != 0 || cpu.event.address == 0 {
        return false;
    }
    enter(cpu, cpu.event, &[]);
    true
}

fn int80(cpu: &mut Vcpu) {
    if cpu.user != 0 && cpu.frame.rax as u32 == MODIFY_LDT_32 {
        cpu.frame.rax = ENOSYS as u64;
        return;
    }
    let trap = cpu.traps[usize::from(INT80)];
    if trap.address != 0 && trap.flags & 3 == 3 {
        enter(cpu, trap, &[]);
    } else {
        // As if a gate did not let it through: the vector, and that it is one.
        cpu.frame.rip -= 2;
        exception(cpu, GENERAL_PROTECTION, (u64::from(INT80) << 3) | 2);
    }
}

/// #GP: fast system calls of 32-bit code, which fault as they do under Xen if they have no callback; some MSRs are ours, and
/// so are the registers of descriptor tables; ports may be a program's.
fn protection(cpu: &mut Vcpu, error: u64) {
    if error == u64::from(LGUEST_ERROR_SYSENTER) {
        match cpu.sysenter.address {
            0 => exception(cpu, GENERAL_PROTECTION, 0),
            _ => enter(cpu, cpu.sysenter, &[]),
        }
    } else if error == u64::from(LGUEST_ERROR_SYSCALL32) {
        if cpu.syscall32.address != 0 {
            enter(cpu, cpu.syscall32, &[]);
            return;
        }
        cpu.frame.rip -= SYSCALL_LENGTH;
        exception(cpu, INVALID_OPCODE, 0);
    } else {
        let done = error == 0
            && match cpu.user {
                0 => cpu::msr(cpu) || cpu::store_table(cpu),
                _ => cpu::port(cpu),
            };
        if !done {
            exception(cpu, GENERAL_PROTECTION, error);
        }
    }
}

/// Hands an exception to the kernel.
fn exception(cpu: &mut Vcpu, vector: u8, error: u64) {
    let trap = cpu.traps[usize::from(vector)];
    if trap.address == 0 {
        panic!("exception {vector}, error {error:#x}, before the kernel has a handler for it");
    }
    if has_error_code(vector) {
        enter(cpu, trap, &[error]);
    } else {
        enter(cpu, trap, &[]);
    }
}

/// Enters the kernel at `trap`: RCX, R11, what is `extra` and the interrupted state are on its stack.
fn enter(cpu: &mut Vcpu, trap: Trap, extra: &[u64]) {
    let Frame {
        rcx,
        r11,
        rip,
        rflags,
        rsp,
        ..
    } = cpu.frame;
    let (stack, cs, ss) = match cpu.user {
        0 => (rsp, KERNEL_CS, KERNEL_SS),
        user => (cpu.kernel_sp, user, USER_SS),
    };
    let mut push = Push(stack & !15);
    for word in [ss, rsp, frame::shown(rflags, cpu.masked()), cs, rip] {
        push.word(word);
    }
    for &word in extra.iter().rev() {
        push.word(word);
    }
    push.word(r11);
    push.word(rcx);
    cpu.frame.rsp = push.0;
    cpu.frame.rip = trap.address;
    cpu.frame.rflags = rflags & !(frame::TF | frame::NOT_IN_HANDLERS);
    cpu.user = 0;
    if trap.flags & TRAP_MASKS_EVENTS != 0 {
        cpu.mask(true);
    }
}

/// A stack of the kernel's that grows.
struct Push(u64);

impl Push {
    fn word(&mut self, word: u64) {
        self.0 = self.0.wrapping_sub(8);
        if memory::write(self.0, word).is_err() {
            panic!("an event finds no stack of the kernel's at {:#x}", self.0);
        }
    }
}

/// Hypercall IRET: RSP points at its frame.
pub(crate) fn iret(cpu: &mut Vcpu) {
    let Ok(wanted) = read::<IretFrame>(cpu.frame.rsp) else {
        panic!("IRET without a frame");
    };
    let IretFrame {
        rax,
        r11,
        rcx,
        rip,
        cs,
        rflags,
        rsp,
        ss,
        ..
    } = wanted;
    let target = frame::target(cs, rip, ss);
    cpu.frame = Frame {
        rax,
        rcx,
        r11,
        rip,
        rsp,
        rflags: frame::rflags(rflags),
        ..cpu.frame
    };
    cpu.mask(frame::masks_events(rflags));
    match target {
        Ok(Target::Kernel) => cpu.user = 0,
        Ok(Target::User(selector)) => cpu.user = selector.into(),
        Err(frame::BadFrame) => {
            // The kernel takes it for a fault of its program, as after an IRET.
            cpu.user = if cs & 3 == 3 { cs & 0xffff } else { 0 };
            failsafe(cpu);
            return;
        }
    }
    deliver_pending(cpu);
}

/// A frame that no IRET can resume: the kernel hears of it with the data selectors, which are those of its program.
fn failsafe(cpu: &mut Vcpu) {
    let trap = cpu.failsafe;
    if trap.address == 0 {
        panic!("IRET with a frame that no CPU resumes, and no failsafe callback");
    }
    let selectors = cpu::data_selectors();
    enter(cpu, trap, &selectors);
}

/// An exception in the shim.
pub(crate) fn crash(cpu: &mut Vcpu) -> ! {
    let (event, error, cr2) = (
        shared_read!(of cpu.id, event),
        shared_read!(of cpu.id, error_code),
        shared_read!(of cpu.id, cr2),
    );
    let (rip, rsp, rax) = (
        shared_read!(of cpu.id, rip),
        shared_read!(of cpu.id, rsp),
        shared_read!(of cpu.id, rax),
    );
    // From here on a page fault of ours shall be told, too.
    shared_write!(of cpu.id, event, 0);
    panic!(
        "exception {} in the shim: error {error:#x}, RIP {rip:#x}, RSP {rsp:#x}, RAX {rax:#x}, CR2 {cr2:#x}; the kernel's \
         stack for events is at {:#x}",
        event as u8, cpu.kernel_sp
    )
}
