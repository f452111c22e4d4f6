// SPDX-License-Identifier: GPL-2.0
//! x87, SSE and AVX registers come through every kind of exit, in Guest kernel mode and in user mode.

#![no_std]
#![no_main]

use core::arch::{asm, x86_64::__cpuid_count};
use lguest_guest::event::{set_handler, vector, Frame};
use lguest_guest::paging::{alloc_frame, pte, AddressSpace};
use lguest_guest::{abi, entry, hypercall, irq, println, user};
use lguest_guest_tests::{code, poke, Code, User, DATA};

entry!(main);

/// What XSAVE stores: 512 bytes of x87 and SSE, a header of 64, then (at this offset in every processor) AVX.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct State([u64; 512]);

const X87_SSE_AVX: u64 = 7;
const AVX_AT: usize = 576 / 8;
const ZERO: State = State([0; 512]);

/// The parts of the state that the Host has switched on.
fn enabled_parts() -> u64 {
    // SAFETY: every processor with 64-bit mode and XSAVE has both.
    let osxsave = unsafe { __cpuid_count(1, 0) }.ecx & (1 << 27) != 0;
    if !osxsave {
        return 3;
    }
    let parts: u32;
    // SAFETY: OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") parts, out("edx") _, options(nomem, nostack)) };
    u64::from(parts) & X87_SSE_AVX
}

/// A state in which every register differs from every other and from what `seed` + 1 gives.
fn state(parts: u64, seed: u64) -> State {
    let mut state = ZERO;
    let word = |i: u64| ((seed << 32) | i) * 0x0101_0101;
    state.0[0] = 0x027f; // FCW: double precision; all exceptions masked
    state.0[0] |= 0xff << 32; // FTW: all eight registers are in use
    state.0[3] = 0x9fc0; // MXCSR: flush to zero, denormals are zeros, all masked
    for i in 0..8 {
        state.0[4 + 2 * i] = (1 << 63) | word(i as u64); // ST(i)
        state.0[5 + 2 * i] = 0x4000 + i as u64;
    }
    for i in 0..32 {
        state.0[20 + i] = word(100 + i as u64); // XMM
        if parts & 4 != 0 {
            state.0[AVX_AT + i] = word(200 + i as u64); // upper halves of YMM
        }
    }
    state.0[64] = parts; // XSTATE_BV
    state
}

fn load(state: &State) {
    // SAFETY: a valid, aligned image; compiled code here keeps nothing in these registers over the call.
    unsafe {
        asm!("xrstor64 ({})", in(reg) state, in("eax") u32::MAX, in("edx") u32::MAX,
            options(att_syntax, nostack, readonly));
    }
}

fn store() -> State {
    let mut state = ZERO;
    // SAFETY: a large enough, aligned area.
    unsafe {
        asm!("xsave64 ({})", in(reg) &mut state, in("eax") X87_SSE_AVX as u32, in("edx") 0,
            options(att_syntax, nostack));
    }
    state
}

fn compare(name: &str, mode: &str, after: &State, expected: &State) {
    const MXCSR: usize = 3;
    for i in (0..AVX_AT + 32).filter(|i| !(52..AVX_AT).contains(i)) {
        // The upper half of word 3 is MXCSR_MASK; words 1 and 2 are addresses of the last x87 instruction.
        let mask = match i {
            1 | 2 => 0,
            MXCSR => 0xffff,
            4..20 if i % 2 == 1 => 0xffff,
            _ => u64::MAX,
        };
        let (is, was) = (after.0[i] & mask, expected.0[i] & mask);
        assert_eq!(
            is, was,
            "word {i} of XSAVE after {name} in {mode}: {is:#x}, was {was:#x}"
        );
    }
}

fn flush() {
    hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
}

fn spin() {
    poke(DATA, 2_000_000);
}

fn unmap() {
    AddressSpace::current().unmap(0x90_0000);
    flush();
}

fn repair(_: &mut Frame) {
    AddressSpace::current().map(0x90_0000, alloc_frame(), pte::WRITE | pte::USER);
}

fn resume(_: &mut Frame) {}

fn ticked(_: &mut Frame) {
    poke(DATA, 1);
    hypercall::set_timer(1_000_000);
}

fn tick() {
    poke(DATA, 0);
    hypercall::set_timer(1_000_000);
    irq::enable();
}

fn main() -> u8 {
    let exits: [(&str, Code, fn()); 7] = [
        ("a fill", code!("movabs %al, 0x700008"), flush),
        (
            "the Host's interrupts",
            code!("6: decl 0x700000", "jnz 6b"),
            spin,
        ),
        ("a repaired fault", code!("movabs %al, 0x900008"), unmap),
        ("a breakpoint", code!("int3"), || ()),
        ("int 0x80", code!("int $0x80"), || ()),
        ("the timer", code!("6: cmpl $0, 0x700000", "je 6b"), tick),
        (
            "a system call or a hypercall",
            code!("mov $3, %eax", "mov $0, %edi", "syscall"),
            || (),
        ),
    ];
    set_handler(vector::PAGE_FAULT, Some(repair));
    set_handler(vector::BREAKPOINT, Some(resume));
    set_handler(vector::INT80, Some(resume));
    set_handler(vector::SYSCALL, Some(resume));
    set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(ticked));

    let parts = enabled_parts();
    let user = User::new();
    let clean = store();
    for (seed, (name, code, prepare)) in (1..).zip(exits) {
        let expected = state(parts, seed);
        prepare();
        load(&expected);
        // SAFETY: the code changes RAX, RCX, R11 and RDI at most.
        unsafe {
            asm!("call *{}", in(reg) code.start, out("rax") _, out("rcx") _, out("r11") _, out("rdi") _,
                options(att_syntax));
        }
        let after = store();
        irq::disable();
        compare(name, "kernel mode", &after, &expected);

        let expected = state(parts, seed + 1000);
        let mut frame = user.load(code);
        prepare();
        load(&expected);
        user::run(&mut frame);
        let after = store();
        irq::disable();
        hypercall::set_timer(u64::MAX);
        compare(name, "user mode", &after, &expected);
    }
    load(&clean);
    println!(
        "x87, SSE{} over {} exits",
        if parts & 4 == 0 { "" } else { ", AVX" },
        exits.len()
    );
    0
}
