// SPDX-License-Identifier: GPL-2.0
//! A Guest to be debugged by selftests/host/src/bin/debug.rs, which it tells by hypercall NOTIFY what comes next and where.
//! It must see the same whether somebody steps it, sets breakpoints in it, or lets it run; but for POPF, and so the debugger
//! says `stepped` on the command line.

#![no_std]
#![no_main]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_guest::event::{set_handler, take_spurious_faults, vector, Frame};
use lguest_guest::paging::{pte, AddressSpace, PAGE};
use lguest_guest::{abi, command_line, entry, hypercall, irq, println, user};
use lguest_guest_tests::{code, User, CODE, DATA};

entry!(main);

const TF: u64 = 1 << 8;
/// Mapped to a GPA where there is no RAM.
const DEVICE: u64 = DATA + PAGE;
const DEVICE_GPA: u64 = 0xfec0_0000;

// Pieces of kernel code. The debugger knows the length of every instruction.
global_asm!(
    r#"
    .pushsection .text.debugged, "ax"
    .globl debugged_kernel, debugged_function
debugged_kernel:                    /* (device in RDI) -> what it read */
    nop
    mov %cr0, %rax                  /* emulated */
    mov $1000, %eax
    syscall                         /* no such hypercall */
    int3
    ud2
    mov (%rdi), %eax
    pushf
    pop %rdx
    pushf
    popf
    nop
    ret
debugged_function:                  /* (number in RDI) -> the next one */
    lea 1(%rdi), %rax
    ret
    .popsection
    "#,
    options(att_syntax)
);

extern "C" {
    fn debugged_kernel(device: u64) -> u32;
    fn debugged_function(number: u64) -> u64;
    // The stubs of lguest_guest::event.
    fn lguest_syscall();
    fn lguest_user_event();
    fn lguest_kernel_event();
}

/// Tells the debugger that part `part` begins, and three numbers about it.
fn tell(part: u64, about: [u64; 3]) {
    let [first, second, third] = about;
    let args = [part, first, second, third, 0];
    let result = hypercall::hypercall(u64::from(abi::LHCALL_NOTIFY), args);
    assert_eq!(result, 0, "NOTIFY");
}

static COUNT: AtomicU64 = AtomicU64::new(0);

fn count(frame: &Frame) {
    assert_eq!(frame.rflags & TF, 0, "TF is not the guest's: {frame:x?}");
    COUNT.fetch_add(1, Relaxed);
}

fn counted(handlers: &[u64], run: impl FnOnce()) -> u64 {
    COUNT.store(0, Relaxed);
    run();
    handlers
        .iter()
        .for_each(|&vector| set_handler(vector, None));
    COUNT.load(Relaxed)
}

fn main() -> u8 {
    let user = User::new();
    in_user_mode(&user);
    in_kernel_mode();
    breakpoints_in_kernel_mode();
    breakpoints_in_user_mode(&user);
    breakpoints_of_its_own(&user);
    steps_of_its_own(&user);
    an_interrupt(&user);
    println!("nothing unusual was seen");
    0
}

fn in_user_mode(user: &User) {
    // Were it not for the debugger, the page fault below would come without an exit: the page beside this one is not
    // there either.
    take_spurious_faults(true);
    let frame = user.run_with(code!("mov (%rsi), %bl"), PAGE);
    assert_eq!(frame.vector, vector::PAGE_FAULT);
    let handlers = [vector::SYSCALL, vector::BREAKPOINT, vector::INT80];
    for vector in handlers {
        set_handler(
            vector,
            Some(|frame| {
                count(frame);
                frame.rax += 1;
            }),
        );
    }
    set_handler(
        vector::PAGE_FAULT,
        Some(|frame| {
            count(frame);
            frame.rip += 2;
        }),
    );
    let mut frame = user.load(code!(
        "nop",
        "mov $7, %eax",
        "syscall",
        "mov (%rsi), %bl",
        "int3",
        "int $0x80",
        "mov $2, %ecx",
        "6: dec %ecx",
        "jnz 6b",
        "call 7f",
        "ud2",
        "7: pop %rdx",
        "pushf",
        "popf",
        "nop"
    ));
    tell(
        1,
        [
            lguest_syscall as usize as u64,
            lguest_user_event as usize as u64,
            0,
        ],
    );
    let events = counted(&handlers, || user::run(&mut frame));
    set_handler(vector::PAGE_FAULT, None);
    assert_eq!((events, frame.rax), (4, 10));
    assert_eq!(
        (frame.vector, frame.rflags & TF),
        (vector::INVALID_OPCODE, 0)
    );
}

fn in_kernel_mode() {
    AddressSpace::current().map(DEVICE, DEVICE_GPA, pte::WRITE);
    set_handler(vector::BREAKPOINT, Some(|frame| count(frame)));
    set_handler(
        vector::INVALID_OPCODE,
        Some(|frame| {
            count(frame);
            frame.rip += 2;
        }),
    );
    let (start, event) = (
        debugged_kernel as usize as u64,
        lguest_kernel_event as usize as u64,
    );
    tell(2, [start, event, DEVICE_GPA]);
    let mut read = 0;
    let events = counted(&[vector::BREAKPOINT, vector::INVALID_OPCODE], || {
        // SAFETY: a function; the page at DEVICE was just mapped.
        read = unsafe { debugged_kernel(DEVICE) };
    });
    assert_eq!(events, 2);
    assert!(
        [0x1234_5678, u32::MAX].contains(&read),
        "the device says {read:#x}"
    );
}

fn breakpoints_in_kernel_mode() {
    tell(3, [debugged_function as usize as u64, 0, 0]);
    for number in 0..3 {
        // SAFETY: a function that adds 1.
        assert_eq!(unsafe { debugged_function(number) }, number + 1);
    }
}

fn breakpoints_in_user_mode(user: &User) {
    let mut frame = user.load(code!("nop", "mov $1, %eax"));
    tell(4, [user.code_gpa(), 0, 0]);
    user::run(&mut frame);
    assert_eq!(
        (frame.vector, frame.rax, frame.rip),
        (vector::INVALID_OPCODE, 1, CODE + 6)
    );
}

fn breakpoints_of_its_own(user: &User) {
    set_handler(
        vector::BREAKPOINT,
        Some(|frame| {
            count(frame);
            assert!(!frame.from_user() || frame.rip == CODE + 1, "{frame:x?}");
        }),
    );
    let mut frame = user.load(code!("int3"));
    tell(5, [0; 3]);
    let events = counted(&[vector::BREAKPOINT], || {
        user::run(&mut frame);
        // SAFETY: the handler above resumes behind it.
        unsafe { core::arch::asm!("int3") };
    });
    assert_eq!((events, frame.vector), (2, vector::INVALID_OPCODE));
}

/// Counts the #DB that `frame` raises in user mode.
fn steps(frame: &mut Frame) -> u64 {
    set_handler(
        vector::DEBUG,
        Some(|_| {
            COUNT.fetch_add(1, Relaxed);
        }),
    );
    counted(&[vector::DEBUG], || user::run(frame))
}

fn steps_of_its_own(user: &User) {
    let stepped = command_line().contains("stepped");
    tell(6, [0; 3]);
    let mut frame = user.load(code!("nop", "nop", "mov $5, %eax", "nop"));
    frame.rflags |= TF;
    assert_eq!((steps(&mut frame), frame.rax), (4, 5), "TF by ERET");
    assert_eq!(frame.rflags & TF, TF);
    let mut frame = user.load(code!("nop", ".byte 0xf1", "nop"));
    assert_eq!(steps(&mut frame), 1, "INT1");
    let mut frame = user.load(code!("push $0x102", "popf", "nop", "nop"));
    let expected = if stepped { 0 } else { 2 };
    assert_eq!(steps(&mut frame), expected, "TF by POPF");
}

fn an_interrupt(user: &User) {
    fn leave_the_loop(frame: &mut Frame) {
        if frame.from_user() {
            count(frame);
            frame.rip = CODE + 5;
        } else {
            hypercall::set_timer(100_000);
        }
    }
    let timer = u64::from(abi::LGUEST_VECTOR_TIMER);
    set_handler(timer, Some(leave_the_loop));
    let mut frame = user.load(code!("6: inc %rbx", "jmp 6b", "nop"));
    tell(7, [leave_the_loop as usize as u64, 0, 0]);
    hypercall::set_timer(100_000);
    let events = counted(&[timer], || user::run(&mut frame));
    assert_eq!((events, frame.rip), (1, CODE + 6));
    irq::disable();
}
