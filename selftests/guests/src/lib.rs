// SPDX-License-Identifier: GPL-2.0
//! What the test Guests share: pieces of code that run in Guest kernel mode and in Guest user mode, with their events
//! caught. A Guest that finds something wrong panics, and the panic's message is what the runner prints.

#![no_std]

pub mod monitor;
pub mod several;

use core::arch::{asm, global_asm};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use lguest_guest::event::{self, vector, Frame};
use lguest_guest::paging::{alloc_frame, gpa_to_ptr, pte, AddressSpace, PAGE};
use lguest_guest::{abi, hypercall, user};

/// A piece of machine code made by [`code!`]: position independent, and at most a page.
#[derive(Clone, Copy)]
pub struct Code {
    /// Its first byte in the image; a RET follows its last one.
    pub start: *const u8,
    /// Bytes from `start` to the RIP that the event should have.
    pub rip: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// Assembles lines (AT&T) into a [`Code`]. A `=>` between two lines marks the RIP at which an event is expected.
#[macro_export]
macro_rules! code {
    ($($line:literal),* => $($rest:literal),*) => {{
        let (start, rip, end): (u64, u64, u64);
        // SAFETY: takes three addresses; the code itself is not executed here.
        unsafe {
            core::arch::asm!(
                "lea 772f(%rip), {start}", "lea 773f(%rip), {rip}", "lea 774f(%rip), {end}",
                ".pushsection .text.code, \"ax\"",
                "772:", $($line,)*
                "773:", $($rest,)*
                "774:", "ret",
                ".popsection",
                start = out(reg) start, rip = out(reg) rip, end = out(reg) end,
                options(att_syntax, nomem, nostack, preserves_flags)
            );
        }
        $crate::Code {
            start: start as *const u8,
            rip: rip - start,
            len: (end - start) as usize,
        }
    }};
    ($($line:literal),*) => { $crate::code!($($line),* =>) };
}

/// The addresses of a [`User`]'s code, stack and data: low enough for 32-bit code, a page each.
pub const CODE: u64 = 0x40_0000;
#[allow(missing_docs)]
pub const STACK_TOP: u64 = 0x60_0000;
#[allow(missing_docs)]
pub const DATA: u64 = 0x70_0000;
/// Nothing is mapped from here to the end of the table it is in.
pub const NOTHING: u64 = 0x80_0000;

/// An address space with room for one piece of code at a time, active since it was made.
pub struct User {
    /// Its tables.
    pub space: AddressSpace,
    code: u64,
}

impl User {
    #[allow(missing_docs, clippy::new_without_default)]
    pub fn new() -> Self {
        let space = AddressSpace::new();
        let code = alloc_frame();
        space.map(CODE, code, pte::USER);
        space.map_new_user(STACK_TOP - PAGE);
        space.map_new_user(DATA);
        space.activate();
        Self { space, code }
    }

    /// Puts `code` into the code page, followed by UD2, and returns the state that starts it.
    pub fn load(&self, code: Code) -> Frame {
        let page = gpa_to_ptr::<u8>(self.code);
        // SAFETY: a page of ours, with room for the code (checked) and UD2.
        unsafe {
            assert!(code.len + 2 <= PAGE as usize);
            page.copy_from(code.start, code.len);
            page.add(code.len).cast::<u16>().write_unaligned(0x0b0f);
        }
        user::start(CODE, STACK_TOP)
    }

    /// Runs `code` from its start to its first event without a handler.
    pub fn run(&self, code: Code) -> Frame {
        self.run_with(code, 0)
    }

    /// The same, with `argument` in RSI.
    pub fn run_with(&self, code: Code, argument: u64) -> Frame {
        let mut frame = self.load(code);
        frame.rsi = argument;
        user::run(&mut frame);
        reset_fpu();
        frame
    }

    /// GPA of the code page.
    pub fn code_gpa(&self) -> u64 {
        self.code
    }
}

// `test_catch(code, argument)` calls the code and returns 0; `test_caught` is where an event's frame is sent to return 1 instead.
global_asm!(
    r#"
    .pushsection .text.test_catch, "ax"
    .globl test_catch, test_caught
test_catch:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, test_catch_rsp(%rip)
    call *%rdi
    xor %eax, %eax
    jmp 1f
test_caught:
    mov $1, %eax
1:  cld
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .popsection

    .pushsection .bss.test_catch_rsp, "aw", @nobits
    .balign 8
    .globl test_catch_rsp
test_catch_rsp:
    .skip 8
    .popsection
    "#,
    options(att_syntax)
);

extern "C" {
    fn test_catch(code: *const u8, argument: u64) -> bool;
    fn test_caught();
    static test_catch_rsp: AtomicU64;
}

const EXCEPTIONS: Range<u64> = 0..32;
// SAFETY: a Frame is numbers.
static mut CAUGHT: Frame = unsafe { core::mem::zeroed() };

fn catch(frame: &mut Frame) {
    // SAFETY: there is one vCPU, and `in_kernel` looks when no event can come.
    unsafe { CAUGHT = *frame };
    frame.rip = test_caught as usize as u64;
    // SAFETY: `test_catch` has stored it, or its code could not have run.
    frame.rsp = unsafe { test_catch_rsp.load(Relaxed) };
    frame.rflags &= lguest_guest::irq::FLAG_IF;
}

/// Runs `code` in Guest kernel mode; the frame of the exception (or `int 0x80`) that ended it, or `None` if it reached its
/// end.
pub fn in_kernel(code: Code) -> Option<Frame> {
    in_kernel_with(code, 0)
}

/// The same, with `argument` in RSI.
pub fn in_kernel_with(code: Code, argument: u64) -> Option<Frame> {
    let vectors = || EXCEPTIONS.chain([vector::INT80]);
    vectors().for_each(|vector| event::set_handler(vector, Some(catch)));
    // SAFETY: the code is the test's own; it keeps to the C calling convention, or an event ends it.
    let caught = unsafe { test_catch(code.start, argument) };
    vectors().for_each(|vector| event::set_handler(vector, None));
    reset_fpu();
    // SAFETY: `catch` has written it if it was called, and nothing else refers to it.
    let frame = unsafe { CAUGHT };
    caught.then_some(frame)
}

/// Brings x87 and MXCSR to the state compiled code expects.
fn reset_fpu() {
    let mxcsr = 0x1f80u32;
    // SAFETY: loads the state of a fresh process; no floating point value is alive here.
    unsafe { asm!("fninit", "ldmxcsr ({})", in(reg) &mxcsr, options(att_syntax, nostack)) };
}

/// RSP at the start of the code that [`in_kernel`] ran last.
pub fn kernel_rsp() -> u64 {
    // SAFETY: an aligned integer that only `test_catch` writes.
    unsafe { test_catch_rsp.load(Relaxed) - 8 }
}

/// Says whether the timer has fired since [`arm`].
pub static FIRED: AtomicBool = AtomicBool::new(false);

fn fire(_: &mut Frame) {
    FIRED.store(true, Relaxed);
}

/// Arms the timer to set [`FIRED`] in `ns` nanoseconds.
pub fn arm(ns: u64) {
    FIRED.store(false, Relaxed);
    event::set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(fire));
    assert_eq!(hypercall::set_timer(ns), 0, "SET_TIMER");
}

/// Reads memory, whatever the compiler thinks is there.
pub fn peek(gva: u64) -> u64 {
    // SAFETY: a load of the test's own memory; if nothing is mapped, the fault is what the test wants to see.
    unsafe { (gva as *const u64).read_volatile() }
}

/// Reads 32 bits, as a device wants to be read.
pub fn peek32(gva: u64) -> u32 {
    // SAFETY: as in `peek`.
    unsafe { (gva as *const u32).read_volatile() }
}

/// Writes memory.
pub fn poke(gva: u64, value: u64) {
    // SAFETY: as in `peek`; the test has mapped the page for this.
    unsafe { (gva as *mut u64).write_volatile(value) }
}

/// Is this QEMU's TCG? It differs from the SDM here and there, and the tests say where.
pub fn in_tcg() -> bool {
    // SAFETY: every 64-bit processor has CPUID; an unknown leaf gives numbers without a meaning.
    unsafe { core::arch::x86_64::__cpuid(0x4000_0000) }.ebx == u32::from_le_bytes(*b"TCGT")
}

/// A generator of numbers that look random (xorshift64*), for tests that must be repeatable.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
