// SPDX-License-Identifier: GPL-2.0

//! The switcher in a program: a copy of its text that may be executed, with a state page and a shared page behind it.

use crate::call::{Call, Frame, Left, Way, EVENT_VALID, IRQ_ENABLED, KERNEL_GS, KERNEL_MODE};
use core::arch::global_asm;
use lg_core::{addr, eret, event, exit, flags, foresight, monitor, paging};
use std::cell::UnsafeCell;
use std::ptr::{addr_of, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;
pub(crate) const STATE: usize = 3 * PAGE;
pub(crate) const SHARED: usize = 4 * PAGE;
/// In the state page: where the replaced instructions jump, and the GS base that the replaced ones read and write.
const TO_IRET: usize = 0xf00;
const TO_SYSRET: usize = 0xf08;
const TO_HOST: usize = 0xf10;
pub(crate) const GS: usize = 0xf18;

/// The fields of the state page that are looked at here. The others only need to be apart.
pub(crate) const REGS: usize = 0x200;
pub(crate) const MODE: usize = 0x600;
const IRQ_WAITING: usize = 0x604;
const NMI: usize = 0x608;
pub(crate) const KERNEL_GS_BASE: usize = 0x610;
const MONITOR_ENTRY: usize = 0x618;
pub(crate) const NOTE: usize = 0x620;
pub(crate) const EVENT_ENTRY: usize = 0x630;
pub(crate) const SHARED_GVA: usize = 0x638;
pub(crate) const DIRECT_FAULTS: usize = 0x640;
pub(crate) const SPURIOUS: usize = 0x648;
pub(crate) const SPURIOUS_COUNT: usize = 0x650;
const REST: usize = 0x700;

global_asm!(
    ".macro iretq\n jmpq *state + {TO_IRET}(%rip)\n .endm",
    ".macro sysretq\n jmpq *state + {TO_SYSRET}(%rip)\n .endm",
    ".macro lgdt where:vararg\n jmpq *state + {TO_HOST}(%rip)\n .endm",
    ".macro rdgsbase to\n movq state + {GS}(%rip), \\to\n .endm",
    ".macro wrgsbase from\n movq \\from, state + {GS}(%rip)\n .endm",
    ".macro invlpg where:vararg\n .endm",
    include_str!("../../../lg/sys/switcher.S"),
    ".purgem iretq",
    ".purgem sysretq",
    ".purgem lgdt",
    ".purgem rdgsbase",
    ".purgem wrgsbase",
    ".purgem invlpg",
    TO_IRET = const TO_IRET,
    TO_SYSRET = const TO_SYSRET,
    TO_HOST = const TO_HOST,
    GS = const GS,
    STATE = const STATE,
    SHARED = const SHARED,
    GDT = const 5 * PAGE,
    HOST_CS = const 0x10,
    HOST_DS = const 0x18,
    GUEST_CS_KERNEL = const eret::CS_KERNEL,
    GUEST_CS_USER64 = const eret::CS_USER64,
    GUEST_CS_USER32 = const eret::CS_USER32,
    GUEST_SS = const eret::SS_USER,
    AT_EVENT_ENTRY = const flags::AT_EVENT_ENTRY,
    IF = const flags::IF,
    NOT_IF = const !(flags::IF as u32),
    SLOT_SHIFT = const monitor::SLOT_SHIFT,
    MONITOR_CODE = const monitor::CODE_PREFIX,
    PAGE_SHIFT = const addr::PAGE_SHIFT,
    BLOCK_SHIFT = const foresight::BLOCK_SHIFT,
    BLOCK_PAGES = const foresight::BLOCK_PAGES,
    READ_ONLY_SHIFT = const foresight::READ_ONLY_SHIFT,
    PF_ABSENT = const foresight::ABSENT,
    PF_READ_ONLY = const foresight::READ_ONLY,
    PF_WRITE = const paging::error::W,
    EVENT_VALID = const EVENT_VALID,
    EVENT_PAGE_FAULT = const event::PF as u64 | EVENT_VALID,
    IRET_FLAGS = const flags::TF | flags::RF,
    TSS_SELECTOR = const 0x40,
    TSS_TYPE = const 0x45,
    EXIT_SYSCALL = const exit::SYSCALL,
    EXIT_SYSCALL32 = const exit::SYSCALL32,
    EXIT_INTERRUPTED = const exit::INTERRUPTED,
    EXIT_SWITCHER_FAULT = const exit::SWITCHER_FAULT,
    USER_RFLAGS = const flags::sanitize_user(!0),
    KERNEL_RFLAGS = const flags::sanitize_kernel(!0),
    F_ERROR = const 8,
    F_RIP = const 16,
    F_CS = const 24,
    R_VECTOR = const 15 * 8,
    R_ERROR = const 16 * 8,
    R_RIP = const 17 * 8,
    R_CS = const 18 * 8,
    R_RFLAGS = const 19 * 8,
    R_RSP = const 20 * 8,
    R_SS = const 21 * 8,
    ST_REGS = const REGS,
    ST_MODE = const MODE,
    ST_IRQ_WAITING = const IRQ_WAITING,
    ST_NMI = const NMI,
    ST_MCE = const NMI + 4,
    ST_KERNEL_GS_BASE = const KERNEL_GS_BASE,
    ST_HOST_RSP = const REST,
    ST_HOST_CR3 = const REST + 0x08,
    ST_HOST_FS_BASE = const REST + 0x10,
    ST_HOST_GS_BASE = const REST + 0x18,
    ST_HOST_DS = const REST + 0x20,
    ST_HOST_ES = const REST + 0x22,
    ST_HOST_FS = const REST + 0x24,
    ST_HOST_GS = const REST + 0x26,
    ST_HOST_TSS_TYPE = const REST + 0x28,
    ST_HOST_GDTR = const REST + 0x30,
    ST_HOST_GDTR_RW = const REST + 0x40,
    ST_HOST_IDTR = const REST + 0x50,
    ST_HOST_LDT = const REST + 0x60,
    ST_VERW = const REST + 0x62,
    ST_CLEAR_BUFFERS = const REST + 0x64,
    ST_FILL_RSB = const REST + 0x68,
    ST_CLEAR_HISTORY = const REST + 0x6c,
    ST_IBRS = const REST + 0x70,
    ST_IBPB = const REST + 0x74,
    ST_SPEC_CTRL = const REST + 0x78,
    MSR_SPEC_CTRL = const 0x48,
    MSR_PRED_CMD = const 0x49,
    ST_GDTR = const REST + 0x80,
    ST_IDTR = const REST + 0x90,
    ST_CR3 = const REST + 0xa0,
    ST_KERNEL_CR3 = const REST + 0xa8,
    ST_USER_CR3 = const REST + 0xb0,
    ST_FS_BASE = const REST + 0xb8,
    ST_GS_BASE = const REST + 0xc0,
    ST_DS = const REST + 0xc8,
    ST_ES = const REST + 0xca,
    ST_FS = const REST + 0xcc,
    ST_GS = const REST + 0xce,
    ST_SYSCALL_ENTRY = const REST + 0xd0,
    ST_CR2 = const REST + 0xd8,
    ST_INVLPG = const REST + 0xe0,
    ST_SPURIOUS = const SPURIOUS,
    ST_SPURIOUS_COUNT = const SPURIOUS_COUNT,
    ST_NOTE_BLOCK = const NOTE,
    ST_NOTE_PAGES = const NOTE + 8,
    ST_EVENT_ENTRY = const EVENT_ENTRY,
    ST_SHARED_GVA = const SHARED_GVA,
    ST_DIRECT_FAULTS = const DIRECT_FAULTS,
    ST_DB_DROPPED = const REST + 0xf8,
    ST_NMI_COUNT = const REST + 0xfc,
    ST_NMI_COUNT_PTR = const REST + 0x100,
    ST_FAULT_RIP = const REST + 0x108,
    ST_DIRECT_SYSCALLS = const REST + 0x110,
    ST_DIRECT_ERETS = const REST + 0x118,
    ST_MONITOR_ENTRY = const MONITOR_ENTRY,
    SH_IRQ_ENABLED = const 0,
    SH_RIP = const 8,
    SH_CS = const 16,
    SH_RFLAGS = const 24,
    SH_RSP = const 32,
    SH_RAX = const 40,
    SH_RCX = const 48,
    SH_R11 = const 56,
    SH_USER_GS_BASE = const 64,
    SH_CR2 = const 72,
    SH_EVENT = const 80,
    SH_ERROR_CODE = const 88,
    SH_SS = const 96,
    SH_KERNEL_RSP = const 104,
    options(att_syntax)
);

// `try_eret`: makes the call at `entry` with RCX, R11 and RSP, and comes back when one of the three ways is taken, with
// what the registers hold then in `came_back`. One thread at a time.
global_asm!(
    ".pushsection .text.try_eret, \"ax\"",
    ".globl try_eret, by_iret, by_sysret, by_host",
    "try_eret:", // rdi: entry, rsi: rip, rdx: rflags, rcx: rsp
    "pushq %rbx",
    "pushq %rbp",
    "pushq %r12",
    "pushq %r13",
    "pushq %r14",
    "pushq %r15",
    "movq %rsp, tests_rsp(%rip)",
    "movq %rcx, %rsp",
    "movq %rsi, %rcx",
    "movq %rdx, %r11",
    "xorl %eax, %eax",
    "jmp *%rdi",
    "by_iret:",
    "movl $0, came_back(%rip)",
    "jmp 1f",
    "by_sysret:",
    "movl $1, came_back(%rip)",
    "jmp 1f",
    "by_host:",
    "movl $2, came_back(%rip)",
    "1:",
    "movq %rax, came_back + 8(%rip)",
    "movq %rcx, came_back + 16(%rip)",
    "movq %r11, came_back + 24(%rip)",
    "movq %rsp, came_back + 32(%rip)",
    "movq tests_rsp(%rip), %rsp",
    "cld",
    "popq %r15",
    "popq %r14",
    "popq %r13",
    "popq %r12",
    "popq %rbp",
    "popq %rbx",
    "retq",
    ".popsection",
    ".pushsection .bss.try_eret, \"aw\", @nobits",
    ".balign 8",
    ".globl tests_rsp, came_back",
    "tests_rsp: .skip 8",
    "came_back: .skip 40",
    ".popsection",
    options(att_syntax)
);

#[repr(C)]
pub(crate) struct CameBack {
    pub(crate) way: u64,
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) r11: u64,
    pub(crate) rsp: u64,
}

extern "C" {
    static lg_switcher_start: u8;
    static lg_switcher_syscall: u8;
    static lg_switcher_syscall_monitored: u8;
    static by_iret: u8;
    static by_sysret: u8;
    static by_host: u8;
    pub(crate) static came_back: UnsafeCell<CameBack>;
    fn try_eret(entry: usize, rip: u64, rflags: u64, rsp: u64);
}

/// Whoever makes a call holds this: what it comes back by is in memory that all tests of this program share, and cargo
/// runs each in a thread of its own.
static ALONE: Mutex<()> = Mutex::new(());

/// A region of the switcher, and the right to make calls.
pub(crate) struct Switcher {
    pub(crate) base: *mut u8,
    last: Way,
    _alone: MutexGuard<'static, ()>,
}

impl Switcher {
    pub(crate) fn new() -> Self {
        // A test that has failed leaves nothing behind for the next.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let size = 6 * PAGE;
        // SAFETY: A new mapping, which nobody else has.
        let base = unsafe {
            libc::mmap(
                null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED, "no memory that can be executed");
        let base = base.cast::<u8>();
        // SAFETY: The text is three pages, and the mapping has room for them.
        let text = unsafe {
            addr_of!(lg_switcher_start).copy_to_nonoverlapping(base, STATE);
            std::slice::from_raw_parts_mut(base, STATE)
        };
        // MOV to CR3 from RAX or RCX are privileged: NOPs of the same length. MOV from CR2 to RAX is one from R15.
        const NOP: [u8; 3] = [0x0f, 0x1f, 0x00];
        let mut replaced = 0;
        for (privileged, by) in [
            ([0x0f, 0x22, 0xd8], NOP),
            ([0x0f, 0x22, 0xd9], NOP),
            ([0x0f, 0x20, 0xd0], [0x4c, 0x89, 0xf8]),
        ] {
            for at in 0..text.len() - 2 {
                if text[at..at + 3] == privileged {
                    text[at..at + 3].copy_from_slice(&by);
                    replaced += 1;
                }
            }
        }
        assert!(replaced >= 3, "only {replaced} privileged instructions");
        let this = Self {
            base,
            last: Way::Host,
            _alone: alone,
        };
        let labels = [addr_of!(by_iret), addr_of!(by_sysret), addr_of!(by_host)];
        for (at, label) in [TO_IRET, TO_SYSRET, TO_HOST].into_iter().zip(labels) {
            this.set(STATE + at, label as u64);
        }
        this
    }

    /// How the last one ended.
    pub(crate) fn last_way(&self) -> Way {
        self.last
    }

    pub(crate) fn set(&self, offset: usize, value: u64) {
        assert!(offset % 8 == 0 && offset < 6 * PAGE);
        // SAFETY: An aligned word of the mapping.
        unsafe { self.base.add(offset).cast::<u64>().write_volatile(value) };
    }

    pub(crate) fn get(&self, offset: usize) -> u64 {
        assert!(offset % 8 == 0 && offset < 6 * PAGE);
        // SAFETY: As above.
        unsafe { self.base.add(offset).cast::<u64>().read_volatile() }
    }

    /// Makes the hypercall ERET from Guest kernel mode. `waiting`: an interrupt waits for the Guest.
    pub(crate) fn eret(&mut self, frame: &Frame, call: &Call, waiting: bool) -> Left {
        self.syscall(
            addr_of!(lg_switcher_syscall),
            IRQ_ENABLED,
            frame,
            call,
            waiting,
        )
    }

    /// Makes a SYSCALL with RAX 0 from Guest kernel mode where there is a monitor at `entry`. Also returns RIP and RFLAGS of
    /// the shared page.
    pub(crate) fn monitored(
        &mut self,
        entry: u64,
        irq_enabled: u64,
        call: &Call,
    ) -> (Left, u64, u64) {
        self.set(STATE + MONITOR_ENTRY, entry);
        let label = addr_of!(lg_switcher_syscall_monitored);
        let left = self.syscall(label, irq_enabled, &Frame::default(), call, false);
        (left, self.get(SHARED + 8), self.get(SHARED + 24))
    }

    fn syscall(
        &mut self,
        label: *const u8,
        irq_enabled: u64,
        frame: &Frame,
        call: &Call,
        waiting: bool,
    ) -> Left {
        let shared = [
            irq_enabled,
            frame.rip,
            frame.cs,
            frame.rflags,
            frame.rsp,
            frame.rax,
            frame.rcx,
            frame.r11,
            frame.user_gs_base,
        ];
        for (i, word) in shared.into_iter().enumerate() {
            self.set(SHARED + 8 * i, word);
        }
        // The mode is 0, and in the same word is whether an interrupt waits.
        self.set(STATE + MODE, u64::from(waiting) << 32);
        self.set(STATE + NMI, 0);
        self.set(STATE + GS, KERNEL_GS);
        let entry = label as usize - addr_of!(lg_switcher_start) as usize;
        // SAFETY: The copy is complete, and with the three ways replaced it comes back as a function does. What it
        // writes is in the mapping and in `came_back`, which belongs to the one thread of this test.
        let out = unsafe {
            try_eret(self.base as usize + entry, call.rip, call.rflags, call.rsp);
            came_back.get().read_volatile()
        };
        let regs = |i: usize| self.get(STATE + REGS + 8 * i);
        let user_mode = self.get(STATE + MODE) & 0xffff_ffff != 0;
        let (irq_enabled, gs_base) = (self.get(SHARED), self.get(STATE + GS));
        let common = Left {
            user_mode,
            irq_enabled,
            gs_base,
            rax: out.rax,
            ..KERNEL_MODE
        };
        let left = match out.way {
            // IRETQ finds its frame where RSP points, which must be in the region's registers.
            0 => {
                assert_eq!(out.rsp, self.base as u64 + (STATE + REGS + 17 * 8) as u64);
                Left {
                    way: Way::Iret,
                    rip: regs(17),
                    cs: regs(18),
                    rflags: regs(19),
                    rsp: regs(20),
                    ss: regs(21),
                    rcx: out.rcx,
                    r11: out.r11,
                    ..common
                }
            }
            // SYSRETQ takes RIP from RCX and RFLAGS from R11, and leaves them there.
            1 => Left {
                way: Way::Sysret,
                rip: out.rcx,
                rflags: out.r11,
                cs: eret::CS_USER64,
                ss: eret::SS_USER,
                rsp: out.rsp,
                rcx: out.rcx,
                r11: out.r11,
                ..common
            },
            _ => Left {
                way: Way::Host,
                vector: regs(15),
                rip: regs(17),
                rflags: regs(19),
                rsp: regs(20),
                rax: regs(10),
                ..common
            },
        };
        self.last = left.way;
        left
    }
}

impl Drop for Switcher {
    fn drop(&mut self) {
        // SAFETY: It is our mapping, and nobody executes it any more.
        unsafe { libc::munmap(self.base.cast(), 6 * PAGE) };
    }
}
