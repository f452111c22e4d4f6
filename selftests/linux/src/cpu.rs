// SPDX-License-Identifier: GPL-2.0
//! The processor as programs see it: vector registers under task switches, segments, old ways into the kernel.

use crate::sys::{check, in_child, on_xen, spawn, wait, Map};
use crate::Test;
use std::arch::{asm, global_asm};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(crate) const TESTS: &[Test] = &[
    ("vector registers in parallel processes", vectors),
    ("x87 control word in parallel processes", x87),
    ("FS and GS bases", bases),
    ("int 0x80", int_0x80),
    ("the flag NT", nested_task),
    ("fast system calls of 32-bit programs", fast_32),
    ("XCR0 is what signal frames hold", xcr0),
    ("instructions of the kernel", privileged),
    (
        "instructions that the kernel does for programs",
        done_by_the_kernel,
    ),
    ("RDTSC", rdtsc),
    ("TLS segments", tls_segment),
    ("no LDTs", no_ldt),
];

/// Eight processes, each with its own numbers in all vector registers, which it checks again and again while they take
/// turns on one CPU.
fn vectors() {
    let avx = std::is_x86_feature_detected!("avx");
    let children: Vec<i32> = (1..=8u64)
        .map(|id| {
            spawn(move || {
                for round in 0..300 {
                    let seed = (id << 32) | round;
                    // SAFETY: AVX is there if it is used.
                    let sum = unsafe {
                        if avx {
                            hold_avx(seed)
                        } else {
                            hold_sse(seed)
                        }
                    };
                    let registers = if avx { 32 } else { 16 };
                    assert_eq!(
                        sum,
                        seed.wrapping_mul(registers),
                        "vector registers in round {round}"
                    );
                }
                0
            })
        })
        .collect();
    for child in children {
        assert_eq!(
            wait(child),
            0,
            "a process found something else in its vector registers"
        );
    }
}

/// Yields between loading and reading; returns the sum of all lanes used.
macro_rules! hold {
    ($name:ident, $load:literal, $store:literal, $width:literal) => {
        unsafe fn $name(seed: u64) -> u64 {
            let input = [seed; 4];
            let mut output = [[0u64; 4]; 16];
            // SAFETY: sched_yield (24) changes RAX, RCX and R11; the buffers are large enough.
            unsafe {
                asm!(
                    concat!($load, " ({input}), %", $width, "mm0"), concat!($load, " ({input}), %", $width, "mm1"),
                    concat!($load, " ({input}), %", $width, "mm2"), concat!($load, " ({input}), %", $width, "mm3"),
                    concat!($load, " ({input}), %", $width, "mm4"), concat!($load, " ({input}), %", $width, "mm5"),
                    concat!($load, " ({input}), %", $width, "mm6"), concat!($load, " ({input}), %", $width, "mm7"),
                    concat!($load, " ({input}), %", $width, "mm8"), concat!($load, " ({input}), %", $width, "mm9"),
                    concat!($load, " ({input}), %", $width, "mm10"), concat!($load, " ({input}), %", $width, "mm11"),
                    concat!($load, " ({input}), %", $width, "mm12"), concat!($load, " ({input}), %", $width, "mm13"),
                    concat!($load, " ({input}), %", $width, "mm14"), concat!($load, " ({input}), %", $width, "mm15"),
                    "mov $20000, {count:e}", "2: dec {count:e}", "jnz 2b",
                    "mov $24, %eax", "syscall",
                    concat!($store, " %", $width, "mm0, 0*32({output})"), concat!($store, " %", $width, "mm1, 1*32({output})"),
                    concat!($store, " %", $width, "mm2, 2*32({output})"), concat!($store, " %", $width, "mm3, 3*32({output})"),
                    concat!($store, " %", $width, "mm4, 4*32({output})"), concat!($store, " %", $width, "mm5, 5*32({output})"),
                    concat!($store, " %", $width, "mm6, 6*32({output})"), concat!($store, " %", $width, "mm7, 7*32({output})"),
                    concat!($store, " %", $width, "mm8, 8*32({output})"), concat!($store, " %", $width, "mm9, 9*32({output})"),
                    concat!($store, " %", $width, "mm10, 10*32({output})"), concat!($store, " %", $width, "mm11, 11*32({output})"),
                    concat!($store, " %", $width, "mm12, 12*32({output})"), concat!($store, " %", $width, "mm13, 13*32({output})"),
                    concat!($store, " %", $width, "mm14, 14*32({output})"), concat!($store, " %", $width, "mm15, 15*32({output})"),
                    input = in(reg) &input, output = in(reg) &mut output, count = out(reg) _,
                    out("rax") _, out("rcx") _, out("r11") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(att_syntax)
                );
            }
            // Of each register the first and the last lane.
            let lanes = if $width == "y" { [0, 3] } else { [0, 1] };
            let sum = output.iter().map(|register| register[lanes[0]].wrapping_add(register[lanes[1]]));
            sum.fold(0, u64::wrapping_add)
        }
    };
}
hold!(hold_avx, "vmovdqu", "vmovdqu", "y");
hold!(hold_sse, "movdqu", "movdqu", "x");

fn x87() {
    let children: Vec<i32> = [0x027fu16, 0x037f, 0x067f, 0x0b7f]
        .into_iter()
        .map(|word| {
            spawn(move || {
                let mxcsr = 0x1f80u32 | (u32::from(word & 0xc00) << 3);
                // SAFETY: changes rounding and precision only, in this process.
                unsafe { asm!("fldcw ({})", "ldmxcsr ({})", in(reg) &word, in(reg) &mxcsr, options(att_syntax)) };
                for _ in 0..500 {
                    std::thread::yield_now();
                    let (mut seen, mut seen_mxcsr) = (0u16, 0u32);
                    // SAFETY: writes two variables.
                    unsafe {
                        asm!("fnstcw ({})", "stmxcsr ({})", in(reg) &mut seen, in(reg) &mut seen_mxcsr,
                            options(att_syntax));
                    }
                    assert_eq!((seen, seen_mxcsr & !0x3f), (word, mxcsr));
                }
                0
            })
        })
        .collect();
    children
        .into_iter()
        .for_each(|child| assert_eq!(wait(child), 0));
}

const ARCH_SET_GS: i32 = 0x1001;
const ARCH_GET_GS: i32 = 0x1004;

fn bases() {
    let children: Vec<i32> = (1..=4u64)
        .map(|id| {
            spawn(move || {
                let base = id << 32;
                // SAFETY: x86-64 programs do not use GS.
                unsafe {
                    check(
                        "ARCH_SET_GS",
                        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base),
                    );
                    for _ in 0..500 {
                        libc::sched_yield();
                        let mut seen = 0u64;
                        check(
                            "ARCH_GET_GS",
                            libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &mut seen),
                        );
                        assert_eq!(seen, base, "GS base after a task switch");
                    }
                    0
                }
            })
        })
        .collect();
    children
        .into_iter()
        .for_each(|child| assert_eq!(wait(child), 0));
}

/// A 32-bit system call with one argument.
fn call_by_int_0x80(number: i32, argument: u32) -> i32 {
    let mut result = number;
    // SAFETY: the callers' calls change no memory but what they own; RBX, which asm! cannot name, is put back.
    unsafe {
        asm!("xchg %rbx, {argument:r}", "int $0x80", "xchg %rbx, {argument:r}", argument = inout(reg) argument => _,
            inout("eax") result, in("ecx") 0, in("edx") 0, options(att_syntax));
    }
    result
}

fn int_0x80() {
    const GETPID: i32 = 20;
    const WRITE: i32 = 4;
    const TIME: i32 = 13;
    const FUTEX: i32 = 240;
    // SAFETY: takes nothing.
    let pid = unsafe { libc::getpid() };
    for _ in 0..5000 {
        assert_eq!(call_by_int_0x80(GETPID, 0), pid);
    }
    assert_eq!(call_by_int_0x80(WRITE, 12345), -libc::EBADF);
    assert_eq!(call_by_int_0x80(9999, 0), -libc::ENOSYS);
    // A 32-bit C library has times of 32 bits, and aborts where futexes know none.
    assert!(call_by_int_0x80(TIME, 0) > 0);
    assert_ne!(call_by_int_0x80(FUTEX, 0), -libc::ENOSYS);
}

/// A program may set NT, which does nothing in 64-bit mode but in an IRET, and finds it again behind system calls.
fn nested_task() {
    let flags: u64;
    // SAFETY: the two calls take and write nothing, and NT is cleared again.
    unsafe {
        asm!(
            "pushfq",
            "orq $0x4000, (%rsp)",
            "popfq",
            "mov $39, %eax", // getpid
            "syscall",
            "mov $20, %eax", // that of 32-bit programs
            "int $0x80",
            "pushfq",
            "mov (%rsp), {flags}",
            "andq $~0x4000, (%rsp)",
            "popfq",
            flags = out(reg) flags,
            out("rax") _, out("rcx") _, out("r11") _, out("r8") _, out("r9") _, out("r10") _,
            options(att_syntax)
        );
    }
    assert_ne!(flags & 0x4000, 0, "RFLAGS is {flags:#x}");
}

// Two programs that get their number by `int 0x80` and once more by a fast system call, with the registers that the vDSO
// uses: the kernel returns to the vDSO's own code, which takes three words from the stack and returns.
global_asm!(
    r#"
    .pushsection .rodata
    .code32
    .macro program name, from, to, instruction
\name:
    mov $20, %eax
    int $0x80
    mov %eax, %esi
    mov $20, %eax
    call 1f
    xor %ebx, %ebx
    cmp %eax, %esi
    setne %bl
    mov $1, %eax
    int $0x80
1:  push %ecx
    push %edx
    push %ebp
    mov \from, \to
    \instruction
\name\()_end:
    .endm
    program program_sysenter, %esp, %ebp, sysenter
    program program_syscall, %ecx, %ebp, syscall
    .purgem program
    .code64
    .popsection
    "#,
    options(att_syntax)
);

extern "C" {
    static program_sysenter: u8;
    static program_sysenter_end: u8;
    static program_syscall: u8;
    static program_syscall_end: u8;
}

/// Runs 32-bit code as a program; its exit status, or 128 and the signal that ended it.
fn run_32(start: *const u8, end: *const u8) -> i32 {
    const ADDRESS: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // SAFETY: both point into the same piece of read-only data.
    let code = unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) };
    let size = HEADERS + code.len() as u32;
    // Elf32_Ehdr, and one Elf32_Phdr for all of it: read and execute.
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
    elf.resize(16, 0);
    elf.extend([2u16, 3].map(u16::to_le_bytes).concat());
    elf.extend(
        [1, ADDRESS + HEADERS, 52, 0, 0]
            .map(u32::to_le_bytes)
            .concat(),
    );
    elf.extend([52u16, 32, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend(
        [1, 0, ADDRESS, ADDRESS, size, size, 5, 4096]
            .map(u32::to_le_bytes)
            .concat(),
    );
    elf.extend(code);
    in_child(|| {
        // SAFETY: a new file, and the two arrays that a program gets.
        unsafe {
            let name = c"32-bit".as_ptr();
            let fd = check("memfd_create", libc::memfd_create(name, libc::MFD_CLOEXEC)) as i32;
            let written = libc::write(fd, elf.as_ptr().cast(), elf.len());
            assert_eq!(written, elf.len() as isize, "write");
            let (argv, envp) = ([name, std::ptr::null()], [std::ptr::null::<i8>()]);
            libc::syscall(
                libc::SYS_execveat,
                fd,
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        panic!("execveat: {}", std::io::Error::last_os_error());
    })
}

/// Each processor has one of the two, or both, in 32-bit code; the other is an illegal instruction. A kernel of Xen's ABI
/// has only that of the two which it would use itself.
fn fast_32() {
    const ILLEGAL: i32 = 128 + libc::SIGILL;
    const REFUSED: i32 = 128 + libc::SIGSEGV;
    let sysenter = run_32(&raw const program_sysenter, &raw const program_sysenter_end);
    let syscall = run_32(&raw const program_syscall, &raw const program_syscall_end);
    // SAFETY: every processor has leaf 0.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) }.ebx.to_le_bytes();
    let expected: &[(i32, i32)] = match &vendor {
        b"Genu" => &[(0, ILLEGAL)],
        b"Auth" | b"Hygo" if on_xen() => &[(ILLEGAL, 0), (REFUSED, 0)],
        // Processors do not have SYSENTER here, but QEMU's models do.
        b"Auth" | b"Hygo" => &[(ILLEGAL, 0), (0, 0)],
        _ => &[(0, ILLEGAL), (ILLEGAL, 0), (0, 0)],
    };
    assert!(
        expected.contains(&(sysenter, syscall)),
        "SYSENTER gave {sysenter}, SYSCALL {syscall}"
    );
}

static FRAME_HOLDS: AtomicU64 = AtomicU64::new(0);

extern "C" fn look_at_frame(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// Where struct _fpx_sw_bytes is in the frame's FXSAVE area (asm/sigcontext.h), and how it begins.
    const SW_BYTES: usize = 464;
    const MAGIC: u32 = 0x4650_5853;
    // SAFETY: the kernel's frame, in which XSAVE wrote.
    unsafe {
        let context = &*context.cast::<libc::ucontext_t>();
        let sw_bytes = context.uc_mcontext.fpregs.cast::<u8>().add(SW_BYTES);
        if sw_bytes.cast::<u32>().read() == MAGIC {
            FRAME_HOLDS.store(sw_bytes.add(8).cast::<u64>().read(), Relaxed);
        }
    }
}

/// A program may use what is in XCR0, so the kernel must save all of it.
fn xcr0() {
    /// A program has to ask for it before it is saved: AMX.
    const ON_DEMAND: u64 = 1 << 18;
    // SAFETY: every processor has leaf 1.
    if unsafe { std::arch::x86_64::__cpuid(1) }.ecx & (1 << 27) == 0 {
        return;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is set. The handler reads what it is given and stores to an atomic.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = look_at_frame as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        check(
            "sigaction",
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
        );
        check("raise", libc::raise(libc::SIGUSR1));
    }
    let xcr0 = (u64::from(high) << 32) | u64::from(low);
    let holds = FRAME_HOLDS.load(Relaxed);
    assert_eq!(
        holds | ON_DEMAND,
        xcr0 | ON_DEMAND,
        "XCR0 {xcr0:#x}, but frames hold {holds:#x}"
    );
}

/// What a program may not do kills it and nobody else; what it may ask for tells nothing about who is below.
fn privileged() {
    macro_rules! dies {
        ($signal:expr, $($instruction:literal),*) => {
            let status = in_child(|| {
                // SAFETY: ends the child.
                unsafe { asm!($($instruction),*, options(att_syntax)) };
                0
            });
            assert_eq!(status, 128 + $signal, "{}", stringify!($($instruction),*));
        };
    }
    dies!(libc::SIGSEGV, "hlt");
    dies!(libc::SIGSEGV, "mov %cr3, %rax");
    dies!(libc::SIGSEGV, "mov %rax, %cr3");
    dies!(libc::SIGSEGV, "lgdt (%rsp)");
    dies!(libc::SIGSEGV, "in $0x60, %al");
    dies!(libc::SIGSEGV, "wrmsr");
    dies!(libc::SIGSEGV, "swapgs");
    dies!(libc::SIGSEGV, "mov $0x10, %eax", "mov %eax, %ss");
    dies!(libc::SIGILL, "ud2");
    dies!(libc::SIGTRAP, "int3");
    dies!(libc::SIGTRAP, "pushf", "orl $0x100, (%rsp)", "popf", "nop");
}

// A program that may use all ports where that can be had, and what the kernel does for it: CLI and STI, which do nothing,
// and SGDT and SMSW where the processor has UMIP. Its exit status is the number of what is wrong.
global_asm!(
    r#"
    .pushsection .rodata
    .code32
program_done:
    mov $110, %eax              /* iopl */
    mov $3, %ebx
    int $0x80
    test %eax, %eax
    jnz 3f                      /* not everybody may, and not every kernel has it */
    cli
    sti
3:  mov $7, %eax
    xor %ecx, %ecx
    cpuid
    test $(1 << 2), %ecx
    jz 2f
    mov $1, %esi
    sgdt -16(%esp)
    cmpw $0, -16(%esp)
    jne 1f
    cmpl $0xfffe0000, -14(%esp)
    jne 1f
    mov $2, %esi
    smsw %ax
    cmp $0x33, %ax
    jne 1f
2:  xor %esi, %esi
1:  mov %esi, %ebx
    mov $1, %eax
    int $0x80
program_done_end:
    .code64
    .popsection
    "#,
    options(att_syntax)
);

extern "C" {
    static program_done: u8;
    static program_done_end: u8;
}

/// Linux ignores CLI and STI of who may have all ports, and emulates what UMIP forbids, with numbers that say nothing.
fn done_by_the_kernel() {
    let status = run_32(&raw const program_done, &raw const program_done_end);
    assert_eq!(status, 0, "32-bit code");
    // SAFETY: every processor with 64-bit mode has leaf 7.
    if unsafe { std::arch::x86_64::__cpuid_count(7, 0) }.ecx & (1 << 2) == 0 {
        return;
    }
    let (mut gdt, mut idt) = ([0xcc_u8; 10], [0xcc_u8; 10]);
    let (cr0, task, ldt): (u32, u32, u32);
    // SAFETY: writes the two arrays and three registers.
    unsafe {
        asm!("sgdt ({})", "sidt ({})", in(reg) &mut gdt, in(reg) &mut idt, options(att_syntax, nostack));
        asm!("smsw {0:e}", "str {1:e}", "sldt {2:e}", out(reg) cr0, out(reg) task, out(reg) ldt,
            options(att_syntax, nostack));
    }
    assert_eq!(gdt, [0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(idt, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!((cr0, task, ldt), (0x8005_0033, 0x40, 0));
}

fn rdtsc() {
    let mut last = 0;
    for _ in 0..100_000 {
        // SAFETY: reads a counter.
        let now = unsafe { std::arch::x86_64::_rdtsc() };
        assert!(now >= last, "the TSC went back");
        last = now;
    }
}

/// There are no LDTs, and a program that wants one is told so by both ways into the kernel.
fn no_ldt() {
    const MODIFY_LDT_32: i32 = 123;
    const WRITE: i32 = 1;
    for function in [0, WRITE] {
        let nowhere = std::ptr::null_mut::<u8>();
        // SAFETY: no bytes are to be read or written.
        let result = unsafe { libc::syscall(libc::SYS_modify_ldt, function, nowhere, 0) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert_eq!(
            (result, error),
            (-1, Some(libc::ENOSYS)),
            "modify_ldt({function})"
        );
        assert_eq!(
            call_by_int_0x80(MODIFY_LDT_32, function as u32),
            -libc::ENOSYS
        );
    }
}

/// A TLS segment of the GDT, per task.
fn tls_segment() {
    const SET_THREAD_AREA: i32 = 243;
    let children: Vec<i32> = (1..=4u32)
        .map(|id| {
            spawn(move || {
                // struct user_desc: entry (any), base, limit; 32-bit, limit in pages, usable. Below 4 GiB.
                let map = Map::new(
                    4096,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                    -1,
                );
                let base = id << 20;
                map.set(0, (u64::from(base) << 32) | u64::from(u32::MAX));
                map.set(8, (0x51 << 32) | 0xfffff);
                assert_eq!(
                    call_by_int_0x80(SET_THREAD_AREA, map.start() as u32),
                    0,
                    "set_thread_area"
                );
                let selector = ((map.get(0) as u32) << 3) | 3;
                // SAFETY: x86-64 programs do not use GS.
                unsafe { asm!("mov {:e}, %gs", in(reg) selector, options(att_syntax)) };
                for _ in 0..500 {
                    std::thread::yield_now();
                    let seen: u32;
                    let mut seen_base = 0u64;
                    // SAFETY: reads a register; then the kernel writes a number.
                    unsafe {
                        asm!("mov %gs, {:e}", out(reg) seen, options(att_syntax));
                        check(
                            "ARCH_GET_GS",
                            libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &mut seen_base),
                        );
                    }
                    assert_eq!(
                        (seen, seen_base),
                        (selector, u64::from(base)),
                        "GS after a task switch"
                    );
                }
                0
            })
        })
        .collect();
    children
        .into_iter()
        .for_each(|child| assert_eq!(wait(child), 0));
}
