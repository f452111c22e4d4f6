// SPDX-License-Identifier: GPL-2.0

//! Page faults: which of them the switcher gives to the Guest's kernel, with what in registers and shared page, and that it
//! touches nothing where it does not.

use crate::call::{EVENT_VALID, IRQ_ENABLED, KERNEL_GS};
use crate::switcher::{
    came_back, Switcher, DIRECT_FAULTS, EVENT_ENTRY, GS, KERNEL_GS_BASE, MODE, NOTE, REGS, SHARED,
    SHARED_GVA, SPURIOUS, SPURIOUS_COUNT, STATE,
};
use crate::word;
use core::arch::global_asm;
use lg_core::addr::Gva;
use lg_core::foresight::{Note, ABSENT, BLOCK_SHIFT, READ_ONLY};
use lg_core::{eret, event, flags};
use proptest::prelude::*;
use std::cell::RefCell;

// `try_fault`: as `try_eret`, with RAX, RCX, R11 and R15 from four words; R15 stands for CR2.
global_asm!(
    ".pushsection .text.try_fault, \"ax\"",
    ".globl try_fault",
    "try_fault:", // rdi: entry, rsi: the words, rdx: rsp
    "pushq %rbx",
    "pushq %rbp",
    "pushq %r12",
    "pushq %r13",
    "pushq %r14",
    "pushq %r15",
    "movq %rsp, tests_rsp(%rip)",
    "movq %rdx, %rsp",
    "movq (%rsi), %rax",
    "movq 8(%rsi), %rcx",
    "movq 16(%rsi), %r11",
    "movq 24(%rsi), %r15",
    "jmp *%rdi",
    ".popsection",
    options(att_syntax)
);

extern "C" {
    fn try_fault(entry: usize, registers: &[u64; 4], rsp: u64);
}

const USER_GS: u64 = 0x7fff_1234_5000;
const ENTRY: u64 = 0xffff_ffff_8100_0040;
const SHARED_PAGE: u64 = 0xffff_8700_0000_0000;

/// A page fault as the CPU reports it, and what decides about it besides.
#[derive(Clone, Copy, Debug)]
struct Fault {
    cr2: u64,
    code: u64,
    /// RIP, CS, RFLAGS, RSP, SS.
    frame: [u64; 5],
    /// RAX, RCX, R11.
    registers: [u64; 3],
    user_mode: bool,
    waiting: bool,
    event: u64,
    kernel_rsp: u64,
    note: Note,
    /// Where the last fault was that was taken for spurious.
    spurious: u64,
}

/// The places where the fault leaves anything, with the values that are found there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Found {
    to_host: bool,
    rax: u64,
    rcx: u64,
    r11: u64,
    /// RIP to SS, of who runs next.
    frame: [u64; 5],
    /// irq_enabled, rip, cs, rflags, rsp, rax, rcx, r11, user_gs_base, cr2, event, error_code, ss, kernel_rsp.
    shared: [u64; 14],
    user_mode: bool,
    gs_base: u64,
    kernel_gs_base: u64,
    note: Note,
    direct: u64,
    spurious: (u64, u64),
}

/// What is in the shared page before.
fn shared(fault: &Fault) -> [u64; 14] {
    let mut shared = core::array::from_fn(|i| 0xabcd_0000 + i as u64);
    shared[0] = IRQ_ENABLED;
    shared[10] = fault.event;
    shared[13] = fault.kernel_rsp;
    shared
}

impl Switcher {
    fn fault(&mut self, fault: &Fault) -> Found {
        for (i, word) in shared(fault).into_iter().enumerate() {
            self.set(SHARED + 8 * i, word);
        }
        self.set(
            STATE + MODE,
            u64::from(fault.user_mode) | (u64::from(fault.waiting) << 32),
        );
        self.set(STATE + GS, USER_GS);
        self.set(STATE + KERNEL_GS_BASE, KERNEL_GS);
        self.set(STATE + NOTE, fault.note.block);
        self.set(STATE + NOTE + 8, fault.note.pages.into());
        self.set(STATE + EVENT_ENTRY, ENTRY);
        self.set(STATE + SHARED_GVA, SHARED_PAGE);
        self.set(STATE + DIRECT_FAULTS, 0);
        self.set(STATE + SPURIOUS, fault.spurious);
        self.set(STATE + SPURIOUS_COUNT, 0);
        // What the CPU pushes: error code, and the frame.
        let pushed = STATE + REGS + 16 * 8;
        self.set(pushed, fault.code);
        for (i, word) in fault.frame.into_iter().enumerate() {
            self.set(pushed + 8 + 8 * i, word);
        }
        let [rax, rcx, r11] = fault.registers;
        let stub = self.base as usize + usize::from(event::PF) * 16;
        // SAFETY: As for a SYSCALL: the copy is complete, comes back as a function does, and writes to the mapping and
        // `came_back` only.
        let out = unsafe {
            try_fault(
                stub,
                &[rax, rcx, r11, fault.cr2],
                (self.base as usize + pushed) as u64,
            );
            came_back.get().read_volatile()
        };
        assert_ne!(out.way, 1, "an event loses no register");
        let regs = |i: usize| self.get(STATE + REGS + 8 * i);
        let to_host = out.way == 2;
        if to_host {
            assert_eq!((regs(15), regs(16)), (event::PF.into(), fault.code));
            assert_eq!(self.get(STATE + 0x7d8), fault.cr2);
        } else {
            let frame = self.base as u64 + (STATE + REGS + 17 * 8) as u64;
            assert_eq!(out.rsp, frame, "where IRETQ finds its frame");
        }
        Found {
            to_host,
            rax: if to_host { regs(10) } else { out.rax },
            rcx: if to_host { regs(11) } else { out.rcx },
            r11: if to_host { regs(6) } else { out.r11 },
            frame: core::array::from_fn(|i| regs(17 + i)),
            shared: core::array::from_fn(|i| self.get(SHARED + 8 * i)),
            user_mode: self.get(STATE + MODE) & 0xffff_ffff != 0,
            gs_base: self.get(STATE + GS),
            kernel_gs_base: self.get(STATE + KERNEL_GS_BASE),
            note: Note {
                block: self.get(STATE + NOTE),
                pages: self.get(STATE + NOTE + 8) as u32,
            },
            direct: self.get(STATE + DIRECT_FAULTS),
            spurious: (self.get(STATE + SPURIOUS), self.get(STATE + SPURIOUS_COUNT)),
        }
    }
}

/// What is to be found, by the rule in Rust and by the contract; and which way it is.
fn expected(fault: &Fault) -> (Found, usize) {
    let [rip, cs, rflags, rsp, _] = fault.frame;
    let [rax, rcx, r11] = fault.registers;
    let untouched = Found {
        to_host: true,
        rax,
        rcx,
        r11,
        frame: fault.frame,
        shared: shared(fault),
        user_mode: fault.user_mode,
        gs_base: USER_GS,
        kernel_gs_base: KERNEL_GS,
        note: fault.note,
        direct: 0,
        spurious: (fault.spurious, 0),
    };
    let may = fault.user_mode
        && !fault.waiting
        && cs == eret::CS_USER64
        && fault.event & EVENT_VALID == 0;
    let mut note = fault.note;
    if may && note.take(fault.code, Gva::new(fault.cr2)) {
        let view = flags::guest_view(rflags, true);
        let [_, _, _, _, _, _, old_rcx, old_r11, ..] = untouched.shared;
        let given = Found {
            to_host: false,
            rax: SHARED_PAGE,
            frame: [
                ENTRY,
                eret::CS_USER64,
                flags::AT_EVENT_ENTRY,
                fault.kernel_rsp,
                eret::SS_USER,
            ],
            shared: [
                0,
                rip,
                eret::CS_USER64,
                view,
                rsp,
                rax,
                old_rcx,
                old_r11,
                USER_GS,
                fault.cr2,
                u64::from(event::PF) | EVENT_VALID,
                fault.code,
                eret::SS_USER,
                fault.kernel_rsp,
            ],
            user_mode: false,
            gs_base: KERNEL_GS,
            note,
            direct: 1,
            ..untouched
        };
        return (given, 0);
    }
    if fault.code & 1 != 0 && fault.cr2 >> 63 != 0 && fault.cr2 != fault.spurious {
        let again = Found {
            to_host: false,
            spurious: (fault.cr2, 1),
            ..untouched
        };
        return (again, 1);
    }
    (untouched, 2)
}

fn fault() -> impl Strategy<Value = Fault> {
    let address = (any::<bool>(), word(), 0u64..1 << BLOCK_SHIFT);
    let code = prop_oneof![
        8 => prop::sample::select(vec![ABSENT.into(), u64::from(ABSENT) | 2, READ_ONLY.into()]),
        1 => 0u64..0x40,
        1 => word(),
    ];
    let cs = prop_oneof![9 => Just(eret::CS_USER64), 1 => Just(eret::CS_USER32)];
    let event = prop_oneof![4 => Just(0), 1 => word()];
    let note = (any::<u32>(), any::<u32>(), prop::bool::weighted(0.8));
    let rest = (
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
        any::<bool>(),
    );
    let words = (word(), word(), word(), word(), word(), word(), word());
    (address, code, cs, event, note, rest, words).prop_map(
        |((lower, cr2, within), code, cs, event, (one, other, noted), rest, words)| {
            let (user_mode, waiting, repeated) = rest;
            let (rip, rflags, rsp, ss, rax, rcx, r11) = words;
            let cr2 = if lower { cr2 & ((1 << 47) - 1) } else { cr2 };
            let block = cr2 >> BLOCK_SHIFT;
            let cr2 = (block << BLOCK_SHIFT) | within;
            Fault {
                cr2,
                code,
                frame: [rip, cs, rflags, rsp, ss],
                registers: [rax, rcx, r11],
                user_mode,
                waiting,
                event,
                kernel_rsp: rip ^ rsp,
                note: Note {
                    block: if noted { block } else { block ^ 1 },
                    pages: one | other,
                },
                spurious: if repeated { cr2 } else { 0 },
            }
        },
    )
}

#[test]
fn assembly_and_rust_give_the_same_faults_to_the_guest() {
    let switcher = RefCell::new(Switcher::new());
    let ways = RefCell::new([0u32; 3]);
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(40_000)
    };
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    runner
        .run(&fault(), |fault| {
            let (expected, way) = expected(&fault);
            ways.borrow_mut()[way] += 1;
            prop_assert_eq!(switcher.borrow_mut().fault(&fault), expected);
            Ok(())
        })
        .unwrap();
    let ways = ways.into_inner();
    assert!(
        ways.iter().all(|&n| n > 300),
        "a way was hardly tried: {ways:?}"
    );
}
