// SPDX-License-Identifier: GPL-2.0
//! Exceptions that end a function instead of the kernel, and programs that run until their first event.

use crate::boot::call;
use core::arch::global_asm;
use core::mem::size_of;
use xen_abi::number::{CALLBACK_OP, IRET, SET_TRAP_TABLE, STACK_SWITCH};
use xen_abi::vcpu::{callback, CallbackRegister, IretFrame, TrapInfo, TRAP_MASKS_EVENTS};

/// In [`Caught::vector`]: a program's system call, and the failsafe callback.
pub const SYSTEM_CALL: u64 = 0x100;
#[allow(missing_docs)]
pub const FAILSAFE: u64 = 0x101;

/// What ended a function or a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Caught {
    /// Of the exception, or one of the constants above.
    pub vector: u64,
    /// Its error code, 0 if it has none.
    pub error: u64,
    /// Where.
    pub rip: u64,
    /// The selector in its frame.
    pub cs: u64,
    /// The flags in its frame.
    pub rflags: u64,
    /// The stack pointer in its frame.
    pub rsp: u64,
}

// A handler finds RCX, R11, the error code if there is one, RIP, CS, RFLAGS, RSP and SS on its stack. `catch_call` and
// `catch_program` leave their stack pointer, and the handler returns for them.
global_asm!(
    r#"
    .pushsection .text.traps, "ax"
    .macro handler vector, skip
    .balign 16
handler_\vector:
    movq $\vector, caught(%rip)
    movq $0, caught + 8(%rip)
    .if \skip > 2
    popq %rcx
    popq %rcx
    .if \skip == 3
    popq caught + 8(%rip)
    .endif
    .if \skip == 6
    lea 32(%rsp), %rsp
    .endif
    .else
    lea 16(%rsp), %rsp
    .endif
    jmp caught_one
    .endm

    .irp vector, 0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 18, 19, 20, 128, 256
    handler \vector, 2
    .endr
    .irp vector, 8, 10, 11, 12, 13, 14, 17
    handler \vector, 3
    .endr
    handler 257, 6                  /* the failsafe callback has four selectors */

caught_one:
    popq caught + 16(%rip)
    popq caught + 24(%rip)
    popq caught + 32(%rip)
    popq caught + 40(%rip)
    mov caught_rsp(%rip), %rsp
    test %rsp, %rsp
    jz 1f
    movq $0, caught_rsp(%rip)
    mov $1, %eax
    jmp 2f
1:  ud2                             /* nobody waits for it */

    .globl catch_call, catch_program, caught
catch_call:                         /* (function, argument): 0 if it returned */
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, caught_rsp(%rip)
    mov %rdi, %rax
    mov %rsi, %rdi
    call *%rax
    movq $0, caught_rsp(%rip)
    xor %eax, %eax
2:  cld
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

catch_program:                      /* (IretFrame) */
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, caught_rsp(%rip)
    lea -{frame}(%rsp), %rsp
    mov %rdi, %rsi
    mov %rsp, %rdi
    mov ${frame} / 8, %ecx
    rep movsq
    mov ${iret}, %eax
    syscall
    ud2
    .popsection

    .pushsection .bss.traps, "aw", @nobits
    .balign 16
caught:
    .skip 48
caught_rsp:
    .skip 8
    .skip 16384
    .globl event_stack
event_stack:
    .popsection

    .pushsection .rodata.traps, "a"
    .balign 8
    .globl handlers
handlers:
    .irp vector, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 128, 256, 257
    .quad \vector, handler_\vector
    .endr
    .popsection
    "#,
    frame = const size_of::<IretFrame>(),
    iret = const IRET,
    options(att_syntax)
);

extern "C" {
    fn catch_call(function: extern "C" fn(u64), argument: u64) -> u64;
    fn catch_program(frame: *const IretFrame) -> u64;
    static mut caught: Caught;
    static handlers: [[u64; 2]; 24];
    static event_stack: u8;
}

/// Registers all handlers, and a stack for what comes from user mode.
pub fn set_traps() {
    let mut list = [TrapInfo::default(); 25];
    // SAFETY: the table is constant.
    for (trap, &[vector, address]) in list.iter_mut().zip(unsafe { &handlers }) {
        match vector {
            SYSTEM_CALL => register(callback::SYSCALL, address),
            FAILSAFE => register(callback::FAILSAFE, address),
            _ => {
                *trap = TrapInfo {
                    vector: vector as u8,
                    flags: TRAP_MASKS_EVENTS | if matches!(vector, 3 | 4 | 128) { 3 } else { 0 },
                    cs: 0xe033,
                    address,
                    ..TrapInfo::default()
                }
            }
        }
    }
    assert_eq!(call(SET_TRAP_TABLE, &[list.as_ptr() as u64]), 0);
    let stack = (&raw const event_stack) as u64;
    assert_eq!(call(STACK_SWITCH, &[0xe02b, stack]), 0);
}

fn register(kind: u16, address: u64) {
    let wanted = CallbackRegister {
        kind,
        flags: 1,
        address,
        ..CallbackRegister::default()
    };
    assert_eq!(
        call(
            CALLBACK_OP,
            &[callback::REGISTER, (&raw const wanted) as u64]
        ),
        0
    );
}

/// Calls `function`; what ended it, or `None` if it returned.
pub fn catch(function: extern "C" fn(u64), argument: u64) -> Option<Caught> {
    // SAFETY: an exception ends it as if it had returned; the handler has written `caught`.
    unsafe { (catch_call(function, argument) != 0).then_some(caught) }
}

/// Makes hypercall IRET with `frame`; what came then.
pub fn program(frame: &IretFrame) -> Caught {
    // SAFETY: as in `catch`.
    unsafe {
        catch_program(frame);
        caught
    }
}

/// Reads at an address, whatever is there.
pub extern "C" fn peek(gva: u64) {
    // SAFETY: if nothing is there, the fault is what the test wants.
    unsafe { (gva as *const u64).read_volatile() };
}

/// Writes there.
pub extern "C" fn poke(gva: u64) {
    // SAFETY: as in `peek`.
    unsafe { (gva as *mut u64).write_volatile(0xcccc_cccc_cccc_cccc) };
}
