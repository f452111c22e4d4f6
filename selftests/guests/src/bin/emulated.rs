// SPDX-License-Identifier: GPL-2.0
//! Privileged instructions of a guest kernel that the Host does for it, and MSRs.

#![no_std]
#![no_main]

use core::arch::asm;
use lguest_guest::event::vector;
use lguest_guest::{entry, irq, println, shared_read, shared_write};
use lguest_guest_tests::{code, in_kernel_with, peek, User, DATA};

entry!(main);

const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const EFER: u32 = 0xc000_0080;

fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: reads an MSR that the Host emulates.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("rax") low, out("rdx") high, options(nomem, nostack))
    };
    assert_eq!(
        (low >> 32, high >> 32),
        (0, 0),
        "RDMSR clears the upper halves of RAX and RDX"
    );
    (high << 32) | low
}

fn wrmsr(msr: u32, value: u64) {
    // SAFETY: nothing of Rust's is reached through FS or GS, whose bases are the MSRs written here.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

fn main() -> u8 {
    User::new();
    msrs();
    interrupt_flag();
    control_registers();
    ports();
    swapgs();
    println!("the Host does them all");
    0
}

fn msrs() {
    for value in [0, 0x1234_5678_9abc, 0xffff_8765_4321_0000] {
        for msr in [FS_BASE, GS_BASE, KERNEL_GS_BASE] {
            wrmsr(msr, value);
            assert_eq!(rdmsr(msr), value, "MSR {msr:#x}");
        }
        let (fs, gs): (u64, u64);
        // SAFETY: reads registers.
        unsafe {
            asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack))
        };
        assert_eq!(
            (fs, gs, shared_read!(user_gs_base)),
            (value, value, value),
            "what the MSRs stand for"
        );
    }
    const LONG_MODE_NX: u64 = (1 << 8) | (1 << 10) | (1 << 11);
    assert_eq!(rdmsr(EFER) & LONG_MODE_NX, LONG_MODE_NX, "EFER");
    let frame =
        in_kernel_with(code!("mov %esi, %ecx" => "rdmsr"), 0x4000_0123).expect("an unknown MSR");
    assert_eq!(
        (frame.vector, frame.error_code),
        (vector::GENERAL_PROTECTION, 0)
    );
}

fn interrupt_flag() {
    // SAFETY: the Host changes the virtual flag; no interrupt source is armed.
    unsafe { asm!("sti") };
    assert!(irq::enabled(), "STI");
    // SAFETY: as above.
    unsafe { asm!("cli") };
    assert!(!irq::enabled(), "CLI");
}

fn control_registers() {
    let (cr0, cr4): (u64, u64);
    // SAFETY: reads what the Host emulates.
    unsafe { asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4) };
    assert_eq!(
        cr0 & 0x8001_0001,
        0x8001_0001,
        "CR0: PG, WP, PE in {cr0:#x}"
    );
    assert_ne!(cr4 & (1 << 5), 0, "CR4: PAE in {cr4:#x}");
    // SAFETY: what it was before; CR2 is the guest's own.
    unsafe {
        asm!("mov cr0, {}", "mov cr4, {}", "mov cr2, {}", in(reg) cr0, in(reg) cr4, in(reg) 0x1357u64)
    };
    assert_eq!(shared_read!(cr2), 0x1357, "MOV to CR2");
    // SAFETY: a page that is mapped; then it is loaded again.
    unsafe { asm!("invlpg [{}]", in(reg) DATA) };
    peek(DATA);
    // SAFETY: there is no lazy FPU, and no cache that does not obey.
    unsafe { asm!("clts", "wbinvd") };
}

/// Nobody is at any port.
fn ports() {
    let (mut byte, mut word, mut long) = (0x1111_1111_1111_1100u64, 0x1111_1111_1111_0000u64, 0u64);
    // SAFETY: the Host answers for devices that are not there.
    unsafe {
        asm!("in al, 0x60", inout("rax") byte);
        asm!("in ax, dx", inout("rax") word, in("dx") 0x3f8);
        asm!("in eax, dx", inout("rax") long, in("dx") 0xcf8);
        asm!("out 0x80, al", "out dx, eax", in("eax") 0, in("dx") 0xcf8);
    }
    assert_eq!(
        (byte, word, long),
        (0x1111_1111_1111_11ff, 0x1111_1111_1111_ffff, 0xffff_ffff),
        "IN"
    );
}

fn swapgs() {
    wrmsr(GS_BASE, 0x1000);
    shared_write!(user_gs_base, 0x2000);
    let gs: u64;
    // SAFETY: nothing of Rust's is reached through GS.
    unsafe { asm!("swapgs", "rdgsbase {}", out(reg) gs) };
    assert_eq!((gs, shared_read!(user_gs_base)), (0x2000, 0x1000), "SWAPGS");
}
