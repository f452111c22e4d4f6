// SPDX-License-Identifier: GPL-2.0
//! Instructions that a Guest must not have, in both modes, and instructions known to confuse kernels.

#![no_std]
#![no_main]

use core::arch::asm;
use lguest_guest::event::{set_handler, vector, Frame, USER32_CS};
use lguest_guest::{abi, entry, hypercall, irq, println, user};
use lguest_guest_tests::{
    code, in_kernel, in_kernel_with, in_tcg, peek, poke, Code, Random, User, CODE, DATA,
};
use lguest_hostile_guests::commit;

entry!(main);

const GP: u64 = vector::GENERAL_PROTECTION;
const UD: u64 = vector::INVALID_OPCODE;

fn main() -> u8 {
    commit(&[
        ("privileged", privileged),
        ("not-even-emulated", not_even_emulated),
        ("store-tables", store_tables),
        ("int-n", int_n),
        ("popf", popf),
        ("trap-flag", trap_flag),
        ("mov-ss", mov_ss),
        ("selectors", selectors),
        ("msrs", msrs),
        ("32-bit", compat),
        ("protection-keys", protection_keys),
        ("random-bytes", random_bytes),
    ])
}

/// Runs each piece in user mode: the vector must be one of those beside it, #GP with error code 0.
fn check_user(user: &User, cases: &[(&str, &[u64], Code)]) {
    for (name, vectors, code) in cases.iter().filter(|(name, ..)| !nop_in_tcg(name)) {
        let frame = user.run(*code);
        assert!(
            vectors.contains(&frame.vector),
            "{name} in user mode: {frame:x?}"
        );
        let error_code = match (*name, frame.vector) {
            ("SYSENTER", GP) => abi::LGUEST_ERROR_SYSENTER.into(),
            _ => 0,
        };
        assert_eq!(
            (frame.rip, frame.error_code),
            (CODE, error_code),
            "{name} in user mode"
        );
    }
}

/// QEMU's TCG executes these at any CPL, and they do nothing.
fn nop_in_tcg(name: &str) -> bool {
    in_tcg() && ["WBINVD", "INVD"].contains(&name)
}

/// What the Host emulates for a Guest kernel is #GP for a program.
fn privileged() {
    check_user(
        &User::new(),
        &[
            ("CLI", &[GP], code!("cli")),
            ("STI", &[GP], code!("sti")),
            ("HLT", &[GP], code!("hlt")),
            ("IN", &[GP], code!("in %dx, %eax")),
            ("OUT", &[GP], code!("out %eax, %dx")),
            ("IN from a fixed port", &[GP], code!("in $0x60, %al")),
            ("OUT to the reset port", &[GP], code!("out %al, $0x64")),
            ("INS", &[GP], code!("insb")),
            ("OUTS", &[GP], code!("outsb")),
            ("CLTS", &[GP], code!("clts")),
            ("WBINVD", &[GP], code!("wbinvd")),
            ("INVD", &[GP], code!("invd")),
            ("INVLPG", &[GP], code!("invlpg (%rax)")),
            ("RDMSR", &[GP], code!("rdmsr")),
            ("WRMSR", &[GP], code!("wrmsr")),
            ("MOV from CR0", &[GP], code!("mov %cr0, %rax")),
            ("MOV to CR0", &[GP], code!("mov %rax, %cr0")),
            ("MOV to CR3", &[GP], code!("mov %rax, %cr3")),
            ("MOV to CR4", &[GP], code!("mov %rax, %cr4")),
            ("MOV from CR8", &[GP], code!("mov %cr8, %rax")),
            ("MOV to DR7", &[GP], code!("mov %rax, %dr7")),
            ("SWAPGS", &[GP], code!("swapgs")),
            ("XSETBV", &[GP], code!("xsetbv")),
            ("LMSW", &[GP], code!("lmsw %ax")),
            ("LGDT", &[GP], code!("lgdt (%rsp)")),
            ("LIDT", &[GP], code!("lidt (%rsp)")),
            ("LLDT", &[GP], code!("lldt %ax")),
            ("LTR", &[GP], code!("ltr %ax")),
            ("SYSRET", &[GP], code!("sysretq")),
            ("SYSEXIT", &[GP, UD], code!("sysexitq")),
        ],
    );
}

/// No Guest has any use for these, in either mode.
fn not_even_emulated() {
    let cases: [(&str, &[u64], Code); 14] = [
        ("SYSENTER", &[GP, UD], code!("sysenter")),
        ("SYSRET", &[GP], code!("sysretq")),
        ("SYSEXIT", &[GP, UD], code!("sysexitq")),
        ("LGDT", &[GP], code!("lgdt (%rsp)")),
        ("LIDT", &[GP], code!("lidt (%rsp)")),
        ("LLDT", &[GP], code!("lldt %ax")),
        ("LTR", &[GP], code!("ltr %ax")),
        ("INVD", &[GP], code!("invd")),
        ("RSM", &[UD], code!("rsm")),
        ("VMXOFF", &[GP, UD], code!("vmxoff")),
        ("VMRUN", &[GP, UD], code!("vmrun")),
        ("CLGI", &[GP, UD], code!("clgi")),
        ("CLAC", &[UD], code!("clac")),
        ("MONITOR", &[UD], code!("monitor")),
    ];
    check_user(&User::new(), &cases);
    for (name, vectors, code) in cases.into_iter().filter(|(name, ..)| !nop_in_tcg(name)) {
        let frame = in_kernel(code).unwrap_or_else(|| panic!("{name} in kernel mode did nothing"));
        assert!(
            vectors.contains(&frame.vector),
            "{name} in kernel mode: {frame:x?}"
        );
        assert_eq!(
            (frame.rip, frame.error_code),
            (code.start as u64, 0),
            "{name} in kernel mode"
        );
    }
    // Without a hypervisor below the Host these are #UD; with one, it answers, and must not crash anything.
    for code in [code!("vmcall"), code!("vmmcall")] {
        in_kernel(code);
        User::new().run(code);
    }
    // IRET to CPL 0.
    for cs in [0x08u64, 0x10, 0x11, 0x12] {
        let code = code!("push $0x18", "push %rsp", "pushf", "push %rsi", "push $0" => "iretq");
        let frame = in_kernel_with(code, cs).expect("IRET to CPL 0");
        assert_eq!(frame.vector, GP, "IRET to CS {cs:#x}");
        assert_eq!(frame.error_code, cs & !3, "IRET to CS {cs:#x}");
    }
}

/// Where the Host's tables are is nobody's business. A processor with UMIP faults; one without shows those of the switcher,
/// whose address is no secret.
fn store_tables() {
    const SWITCHER: core::ops::Range<u64> = 0xffff_8780_0000_0000..0xffff_8800_0000_0000;
    // SAFETY: every processor with 64-bit mode has leaf 7.
    let umip = unsafe { core::arch::x86_64::__cpuid_count(7, 0) }.ecx & (1 << 2) != 0;
    let cases = [
        ("SGDT", code!("sgdt 0x700006")),
        ("SIDT", code!("sidt 0x700006")),
        ("SLDT", code!("sldt %eax")),
        ("STR", code!("str %eax")),
        ("SMSW", code!("smsw %eax")),
    ];
    let user = User::new();
    for (name, code) in cases {
        let modes = [Some(user.run(code)), in_kernel(code)];
        if umip {
            let vectors = modes.map(|frame| frame.map(|frame| frame.vector));
            assert_eq!(vectors, [Some(GP); 2], "{name} in user and kernel mode");
        } else if name == "SGDT" || name == "SIDT" {
            let base = peek(DATA + 8);
            assert!(
                SWITCHER.contains(&base),
                "{name} shows the Host's {base:#x}"
            );
        }
    }
}

/// All 256 software interrupts, in both modes.
fn int_n() {
    let user = User::new();
    for n in 0..=255u64 {
        let mut frame = user.load(code!("int $0"));
        let page = lguest_guest::paging::gpa_to_ptr::<u8>(user.code_gpa());
        // SAFETY: the second byte of the code just loaded: n.
        unsafe { page.add(1).write_volatile(n as u8) };
        user::run(&mut frame);
        let expected = match n {
            3 | 4 | 0x80 => (n, 0, CODE + 2),
            _ => (GP, n * 8 + 2, CODE),
        };
        assert_eq!(
            (frame.vector, frame.error_code, frame.rip),
            expected,
            "int {n:#x}"
        );
    }
}

/// POPF cannot turn off the Host's interrupts or give I/O ports.
fn popf() {
    let user = User::new();
    for flags in (0..22).map(|bit| 1u64 << bit).chain([u64::MAX & !(1 << 8)]) {
        if flags == 1 << 8 {
            continue;
        }
        let frame = user.run_with(
            code!("push %rsi", "popf", "pushf", "pop %rax", "push $2", "popf"),
            flags,
        );
        assert_eq!(frame.vector, UD, "POPF of {flags:#x}: {frame:x?}");
        assert_ne!(frame.rax & irq::FLAG_IF, 0, "IF after POPF of {flags:#x}");
        assert_eq!(
            frame.rax & ((3 << 12) | (1 << 17)),
            0,
            "IOPL and VM after POPF of {flags:#x}"
        );
        // NT makes IRET fault: it must not be set while the Host returns to the Guest.
        let frame = user.run_with(code!("push %rsi", "popf", "int3"), flags);
        assert_eq!(
            frame.vector,
            vector::BREAKPOINT,
            "INT3 with flags {flags:#x}"
        );
        let frame = user.run_with(code!("push %rsi", "popf", "syscall"), flags);
        assert_eq!(
            frame.vector,
            vector::SYSCALL,
            "SYSCALL with flags {flags:#x}"
        );
        let exit = code!(
            "push %rsi",
            "popf",
            "mov $3, %eax",
            "xor %edi, %edi",
            "syscall",
            "push $2",
            "popf"
        );
        assert!(
            in_kernel_with(exit, flags & !(1 << 18)).is_none(),
            "a hypercall with flags {flags:#x}"
        );
    }
}

/// Single steps over everything that changes worlds.
fn trap_flag() {
    let user = User::new();
    for (least, code) in [
        (
            3,
            code!("push $0x102", "popf", "nop", "syscall", "nop", "nop"),
        ),
        (2, code!("push $0x102", "popf", "int3", "nop", "nop")),
        (2, code!("push $0x102", "popf", "int $0x80", "nop", "nop")),
        (
            3,
            code!("push $0x102", "popf", "movabs %al, 0x700000", "nop", "nop"),
        ),
        (
            5,
            code!(
                "push $0x102",
                "popf",
                "pushf",
                "popf",
                "cpuid",
                "rdtsc",
                "nop"
            ),
        ),
        (0, code!("push $0x102", "popf", "mov (%rsi), %al", "nop")),
        (
            2,
            code!(
                "push $0x102",
                "popf",
                "mov %ss, %eax",
                "mov %eax, %ss",
                "syscall",
                "nop"
            ),
        ),
        (0, code!("push $0x102", "popf", "hlt", "nop")),
    ] {
        let mut frame = user.load(code);
        let mut events = 0;
        hypercall::flush_tlb(lguest_guest::abi::LGUEST_FLUSH_ALL, 0);
        loop {
            user::run(&mut frame);
            if [UD, GP, vector::PAGE_FAULT].contains(&frame.vector) {
                break;
            }
            events += 1;
            assert!(events < 50, "{frame:x?}");
        }
        assert!(
            events >= least,
            "{events} events instead of {least}: {frame:x?}"
        );
    }
    // The kernel steps over a hypercall, over an emulated instruction, and into an event.
    static STEPS: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
    set_handler(
        vector::DEBUG,
        Some(|_: &mut Frame| {
            STEPS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        }),
    );
    set_handler(vector::BREAKPOINT, Some(|_| ()));
    // SAFETY: FLUSH_TLB changes RAX, RCX, R11 and here RDI; the handlers resume.
    unsafe {
        asm!("push $0x102", "popf", "nop", "mov $3, %eax", "xor %edi, %edi", "syscall", "wbinvd", "int3", "nop",
            "push $2", "popf",
            out("rax") _, out("rcx") _, out("r11") _, out("rdi") _, options(att_syntax));
    }
    assert!(
        STEPS.load(core::sync::atomic::Ordering::Relaxed) >= 5,
        "the kernel was stepped"
    );
}

/// MOV SS holds back a #DB until after the next instruction, even if that enters the Host (CVE-2018-8897).
fn mov_ss() {
    let user = User::new();
    for code in [
        code!("mov %ss, %eax", "mov %eax, %ss", "syscall"),
        code!("mov %ss, %eax", "mov %eax, %ss", "int3"),
        code!("mov %ss, %eax", "mov %eax, %ss", "int $0x80"),
        code!("mov %ss, %eax", "mov %eax, %ss", ".byte 0xf1"),
        code!(
            "push $0x2b",
            "push $0x102",
            "popf",
            "mov %ss, %eax",
            "mov %eax, %ss",
            "int3"
        ),
        code!(
            "push $0x102",
            "mov %ss, %eax",
            "popf",
            "mov %eax, %ss",
            "syscall"
        ),
        code!(
            "push $0x102",
            "mov %ss, %eax",
            "popf",
            "mov %eax, %ss",
            "int $0x80"
        ),
        code!(
            "push $0x102",
            "mov %ss, %eax",
            "popf",
            "mov %eax, %ss",
            "mov 0x800000, %eax"
        ),
    ] {
        let frame = user.run(code);
        assert_ne!(frame.vector, UD, "{frame:x?}");
        in_kernel(code!("mov %ss, %eax", "mov %eax, %ss", "int3"));
        assert_eq!(user.run(code!("nop")).vector, UD);
    }
}

/// Every selector in every segment register: loaded or refused, and kept over an exit or forgotten, but never harmful.
fn selectors() {
    /// The bit of a selector which says that its descriptor is in the LDT.
    const LDT: u64 = 1 << 2;
    let user = User::new();
    let mut random = Random(11);
    let selectors = (0..0x100).chain((0..200).map(|_| random.number() & 0xffff));
    for selector in selectors {
        for code in [
            code!("mov %esi, %ds", "int3"),
            code!("mov %esi, %es", "int3"),
            code!("mov %esi, %fs", "int3"),
            code!("mov %esi, %gs", "int3"),
            code!("mov %esi, %ss", "push %rax", "int3"),
            // To 0x800000, where nothing is.
            code!("push %rsi", "push $0x800000", "lretq"),
        ] {
            let frame = user.run_with(code, selector);
            assert!(frame.from_user(), "{frame:x?}");
        }
        for code in [
            code!("mov %esi, %ds"),
            code!("mov %esi, %es"),
            code!("mov %esi, %fs"),
            code!("mov %esi, %gs"),
        ] {
            match in_kernel_with(code, selector) {
                Some(frame) => {
                    assert_eq!(frame.vector, GP, "selector {selector:#x}: {frame:x?}");
                    assert_eq!(frame.error_code, selector & !3 & 0xffff);
                }
                // A Guest has no LDT, whatever its Launcher has.
                None => assert_eq!(selector & LDT, 0, "selector {selector:#x} is one"),
            }
        }
        hypercall::flush_tlb(0, 0);
    }
}

/// MSRs by which the Host is entered, or that hold its secrets, cannot be read or written.
fn msrs() {
    const SYSENTER_EIP: u64 = 0x176;
    const SPEC_CTRL: u64 = 0x48;
    const PRED_CMD: u64 = 0x49;
    for msr in [
        0x10,
        0x1b,
        0x3a,
        SPEC_CTRL,
        PRED_CMD,
        0x174,
        0x175,
        SYSENTER_EIP,
        0x1d9,
        0x6a0,
        0xda0,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0103,
        0xc001_0117,
        0xffff_ffff,
    ] {
        let code = code!("mov %esi, %ecx", "mov $-1, %eax", "mov $-1, %edx" => "wrmsr");
        let frame =
            in_kernel_with(code, msr).unwrap_or_else(|| panic!("WRMSR {msr:#x} was accepted"));
        assert_eq!((frame.vector, frame.error_code), (GP, 0), "WRMSR {msr:#x}");
        assert_eq!(frame.rip, code.start as u64 + code.rip, "WRMSR {msr:#x}");
    }
    // Bases that are not canonical.
    for msr in [0xc000_0100, 0xc000_0101, 0xc000_0102] {
        let code = code!(
            "mov %esi, %ecx",
            "xor %eax, %eax",
            "mov $0x8000, %edx",
            "wrmsr"
        );
        assert!(
            in_kernel_with(code, msr).is_some(),
            "a base that is not canonical in MSR {msr:#x}"
        );
    }
}

/// 32-bit code has entries of its own.
fn compat() {
    let user = User::new();
    for code in [
        code!(".code32", "syscall", ".code64"),
        code!(".code32", "sysenter", ".code64"),
        code!(".code32", "lcall $0x10, $0", ".code64"),
        code!(".code32", "lcall $0x33, $0x400000", ".code64"),
        code!(".code32", "mov $0x33, %eax", "mov %eax, %ss", ".code64"),
        code!(".code32", "push $0x202", "popf", "iret", ".code64"),
        code!(
            ".code32",
            "mov $0xfffffffe, %esp",
            "push %eax",
            "pop %eax",
            ".code64"
        ),
        code!(".code32", "sgdt (%esp)", ".code64"),
        code!(".code32", "mov %cr0, %eax", ".code64"),
        code!(".code32", "into", "aaa", "daa", "pusha", "popa", ".code64"),
    ] {
        let mut frame = user.load(code);
        frame.cs = USER32_CS;
        user::run(&mut frame);
        assert!(frame.from_user(), "{frame:x?}");
        assert_eq!(user.run(code!("nop")).vector, UD, "after {frame:x?}");
    }
}

/// The state component of PKRU, and how long a page is.
const PKRU: u64 = 1 << 9;
const DATA_LEN: u64 = 4096;

/// WRPKRU is for everybody, and takes all rights to all user pages: at CPL 3, and from the Host's own accesses to them.
/// User mode may lose its memory by it; nobody else may.
fn protection_keys() {
    let user = User::new();
    for _ in 0..100 {
        for code in [
            code!(
                "mov $-1, %eax",
                "xor %ecx, %ecx",
                "xor %edx, %edx",
                "wrpkru",
                "syscall"
            ),
            code!(
                "mov $-1, %eax",
                "xor %ecx, %ecx",
                "xor %edx, %edx",
                "wrpkru",
                "int3"
            ),
        ] {
            let frame = user.run(code);
            assert!(frame.from_user(), "{frame:x?}");
            poke(DATA, 1);
            assert_eq!(peek(DATA), 1, "the kernel's own accesses");
        }
        hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
    }
    // XRSTOR would load PKRU without CR4.PKE, if it were in XCR0. The image: all zeroes but its header, and PKRU where
    // every processor has it.
    (0..DATA_LEN / 8).for_each(|i| poke(DATA + 8 * i, 0));
    poke(DATA + 512, PKRU);
    poke(DATA + 2688, u64::MAX);
    let xrstor = code!("mov $0x700000, %ebx", "mov $-1, %eax", "mov %eax, %edx" => "xrstor (%rbx)");
    let frame = user.run(xrstor);
    assert_eq!(
        (frame.vector, frame.rip),
        (GP, CODE + xrstor.rip),
        "PKRU by XRSTOR"
    );
    let frame = in_kernel(xrstor).expect("PKRU by XRSTOR in kernel mode");
    assert_eq!(frame.vector, GP, "{frame:x?}");
    println!("the Launcher reads this with rights of its own");
}

/// Random instructions, 64-bit and 32-bit.
fn random_bytes() {
    let user = User::new();
    let mut random = Random(12);
    let page = lguest_guest::paging::gpa_to_ptr::<u64>(user.code_gpa());
    hypercall::set_timer(u64::MAX);
    for round in 0..20_000u64 {
        let mut frame = user.load(code!("nop"));
        for i in 0..4 {
            // SAFETY: the code page, followed by INT3.
            unsafe { page.add(i).write_volatile(random.number()) };
        }
        // SAFETY: as above.
        unsafe { page.add(4).write_volatile(0xcccc_cccc_cccc_cccc) };
        frame.cs = if round % 2 == 0 { frame.cs } else { USER32_CS };
        for register in [
            &mut frame.rax,
            &mut frame.rbx,
            &mut frame.rdx,
            &mut frame.rsi,
            &mut frame.rdi,
        ] {
            *register = if random.number() % 2 == 0 {
                0x70_0000
            } else {
                random.number()
            };
        }
        // A loop ends by the timer.
        set_handler(u64::from(lguest_guest::abi::LGUEST_VECTOR_TIMER), None);
        hypercall::set_timer(3_000_000);
        user::run(&mut frame);
        assert!(frame.from_user(), "{frame:x?}");
    }
    hypercall::set_timer(u64::MAX);
}
