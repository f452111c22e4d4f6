// SPDX-License-Identifier: GPL-2.0
//! Privileged instructions of a Guest kernel that the Host does for it, and MSRs.

#![no_std]
#![no_main]

use core::arch::{asm, x86_64::__cpuid_count};
use lguest_guest::event::vector;
use lguest_guest::{abi, entry, irq, println, shared_read, shared_write};
use lguest_guest_tests::{code, in_kernel, in_kernel_with, peek, User, CODE, DATA};

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
    xcr0();
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
    // SAFETY: what it was before; CR2 is the Guest's own.
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

/// Nobody is at any port: the bus floats high, but where a kernel would wait for it to fall.
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
    let (mut counter, mut counters, mut gate) = (0x1111_1111_1111_11ffu64, !0u64, 0u64);
    // SAFETY: as above.
    unsafe {
        asm!("in al, 0x42", inout("rax") counter);
        asm!("in ax, dx", inout("rax") counters, in("dx") 0x40);
        asm!("in al, 0x61", inout("rax") gate);
    }
    assert_eq!(
        (counter, counters, gate),
        (0x1111_1111_1111_1100, !0xffff, 0xff),
        "IN of the timer's ports"
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

fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: lg's Hosts have OSXSAVE set.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    (u64::from(high) << 32) | u64::from(low)
}

/// XSETBV with RSI; the event, if it raises one.
fn xsetbv(value: u64) -> Option<lguest_guest::event::Frame> {
    in_kernel_with(
        code!(
            "xor %ecx, %ecx",
            "mov %esi, %eax",
            "mov %rsi, %rdx",
            "shr $32, %rdx" => "xsetbv"
        ),
        value,
    )
}

/// A Guest has what the contract says of the processor's state, in both modes, whatever its Host has.
fn xcr0() {
    const SSE: u64 = 3;
    const AVX: u64 = 7;
    const AVX512: u64 = 0xe0;
    // SAFETY: every processor with XSAVE has the leaf.
    let leaf = unsafe { __cpuid_count(0xd, 0) };
    let supported = (u64::from(leaf.edx) << 32) | u64::from(leaf.eax);
    let all = supported & (AVX | AVX512);
    assert_eq!(
        xgetbv(),
        all,
        "XCR0 at first; the processor has {supported:#x}"
    );

    for refused in [
        0,
        SSE & !1,
        AVX & !2,
        all | (1 << 9),
        all | (3 << 17),
        all | (1 << 19),
        all | (1 << 63),
        (all & AVX) | (1 << 5),
        SSE | AVX512,
        !all,
        !0,
    ] {
        let frame = xsetbv(refused).unwrap_or_else(|| panic!("XSETBV took {refused:#x}"));
        assert_eq!(
            (frame.vector, frame.error_code),
            (vector::GENERAL_PROTECTION, 0),
            "XSETBV of {refused:#x}"
        );
        assert_eq!(xgetbv(), all, "XCR0 after XSETBV of {refused:#x}");
    }
    let other = in_kernel(code!(
        "mov $1, %ecx",
        "xor %edx, %edx",
        "mov $3, %eax",
        "xsetbv"
    ));
    assert!(other.is_some(), "XCR1");

    // Off is off in both modes, also when the Host has had the processor in between.
    let user = User::new();
    let avx = code!("vpxor %ymm0, %ymm0, %ymm0");
    for value in [1, SSE, all & AVX, all] {
        assert!(xsetbv(value).is_none(), "XSETBV of {value:#x}");
        let kept: u64;
        // SAFETY: disarms the timer, for which the Host gives the processor away; RAX, RCX and R11 are lost.
        unsafe {
            asm!("movq %rsi, %xmm5", "syscall", "movq %xmm5, %rsi",
                inout("rsi") 0x1234_5678_9abc_def0_u64 => kept, in("rdi") u64::MAX,
                inout("rax") u64::from(abi::LHCALL_SET_TIMER) => _, out("rcx") _, out("r11") _, out("xmm5") _,
                options(att_syntax));
        }
        assert_eq!(kept, 0x1234_5678_9abc_def0, "XMM5 with XCR0 {value:#x}");
        let frame = user.run(code!("xor %ecx, %ecx", "xgetbv"));
        assert_eq!(
            ((frame.rdx << 32) | frame.rax, xgetbv()),
            (value, value),
            "XCR0 in user and in kernel mode"
        );
        if all & AVX == AVX {
            let in_kernel = in_kernel(avx).map(|frame| frame.vector);
            let faults = (value & AVX != AVX).then_some(vector::INVALID_OPCODE);
            assert_eq!(in_kernel, faults, "AVX in kernel mode with XCR0 {value:#x}");
            // In user mode what follows the code is #UD; see where.
            let frame = user.run(avx);
            assert_eq!(
                frame.rip == CODE,
                faults.is_some(),
                "AVX in user mode: {frame:x?}"
            );
        }
    }

    // TILERELEASE, of AMX.
    let frame = user.run(code!(".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0"));
    assert_eq!(
        (frame.vector, frame.rip),
        (vector::INVALID_OPCODE, CODE),
        "an instruction of state that no guest has"
    );
}
