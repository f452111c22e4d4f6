// SPDX-License-Identifier: GPL-2.0

//! RFLAGS: what the Guest believes, and what the processor gets (SDM, "EFLAGS Register").

/// Always 1.
pub const FIXED: u64 = 1 << 1;
/// Trap after each instruction.
pub const TF: u64 = 1 << 8;
/// Interrupts on.
pub const IF: u64 = 1 << 9;
/// String instructions go down.
pub const DF: u64 = 1 << 10;
/// I/O privilege level, two bits.
pub const IOPL: u64 = 3 << 12;
/// Nested task: makes IRET fault in 64-bit mode.
pub const NT: u64 = 1 << 14;
/// Resume: no instruction breakpoint on the next instruction.
pub const RF: u64 = 1 << 16;
/// Virtual 8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check.
pub const AC: u64 = 1 << 18;
/// Virtual interrupt flag of CR4.VME and CR4.PVI.
pub const VIF: u64 = 1 << 19;
/// Virtual interrupt pending, of the same.
pub const VIP: u64 = 1 << 20;
/// Can be changed if the processor has CPUID.
pub const ID: u64 = 1 << 21;

/// CF, PF, AF, ZF, SF and OF: the results of arithmetic.
const STATUS: u64 = 0x8d5;

/// What the Guest's kernel may choose for itself. Not AC: Linux sets CR0.AM and counts on the
/// processor to check alignment at CPL 3 only (SDM, "Alignment Check Exception"), where its kernel
/// is never otherwise.
const KERNEL: u64 = STATUS | TF | DF | RF | ID;
/// What a user program may choose. NT as well: POPF sets it at any CPL, both ways into the kernel
/// clear it, and Linux keeps it for the program.
const USER: u64 = KERNEL | AC | NT;

/// The flags to enter Guest user mode with, from what the Guest asked for.
pub const fn sanitize_user(wanted: u64) -> u64 {
    wanted & USER | FIXED | IF
}

/// The flags to enter Guest kernel mode with, from what the Guest asked for.
pub const fn sanitize_kernel(wanted: u64) -> u64 {
    wanted & KERNEL | FIXED | IF
}

/// The flags the Guest sees in a frame: those it was interrupted with, but its own, virtual
/// interrupt flag, and an IOPL of 0.
pub const fn guest_view(hardware: u64, virtual_if: bool) -> u64 {
    hardware & USER | FIXED | if virtual_if { IF } else { 0 }
}

/// The flags an event handler of the Guest starts with. The real IF stays on: the Host takes its
/// interrupts whatever the Guest thinks of its own.
pub const AT_EVENT_ENTRY: u64 = FIXED | IF;
