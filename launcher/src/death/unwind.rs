// SPDX-License-Identifier: GPL-2.0
//! From where a Guest's kernel died, back through those that called.
//!
//! Its stack and its file are whatever it wants them to be, so there is no truth here, only an end: so many frames, so
//! many words that are looked at, and each word may be missing.

use lguest_abi::lguest_regs;

use super::orc::{Base, Bp, Kind, Orc, Rule};

/// The frames that are looked for.
const FRAMES: usize = 64;
/// The words of the stack among which a return address is looked for where nothing says where it is: of a frame, and
/// of all together.
const WORDS: u64 = 256;
const ALL_WORDS: u64 = 2048;
/// The furthest that a frame pointer is believed to be from the stack pointer.
const FRAME_MAX: u64 = 64 << 10;

/// Offsets in a `struct pt_regs` (`linux:arch/x86/include/asm/ptrace.h`).
const PT_BP: u64 = 32;
const PT_IP: u64 = 128;
const PT_CS: u64 = 136;
const PT_SP: u64 = 152;

/// One of those that called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The instruction that was next there.
    pub ip: u64,
    /// It is behind a call, and not where something came in between.
    pub called: bool,
    /// Tables or frame pointers say so; else it only looks like it.
    pub sure: bool,
}

/// What is known of the registers of a frame besides RIP, RSP and RBP.
#[derive(Clone, Copy)]
enum Saved<'a> {
    Nothing,
    /// All of them.
    Cpu(&'a lguest_regs),
    /// What is in a `struct pt_regs` here.
    At(u64),
}

/// Follows the calls.
struct Walker<'a, R> {
    orc: &'a Orc,
    read: R,
    sp: u64,
    bp: u64,
    saved: Saved<'a>,
    /// Words that may still be searched.
    left: u64,
}

/// The frames of kernel code with `regs`, from the innermost; `read` reads the eight bytes at an address.
pub fn backtrace(regs: &lguest_regs, orc: &Orc, read: impl Fn(u64) -> Option<u64>) -> Vec<Frame> {
    let mut walker = Walker {
        orc,
        read,
        sp: regs.rsp,
        bp: regs.rbp,
        saved: Saved::Cpu(regs),
        left: ALL_WORDS,
    };
    let mut frames = vec![Frame {
        ip: regs.rip,
        called: false,
        sure: true,
    }];
    while frames.len() < FRAMES {
        let last = frames[frames.len() - 1];
        let Some(next) = walker.caller(last) else {
            break;
        };
        frames.push(next);
    }
    frames
}

impl<R: Fn(u64) -> Option<u64>> Walker<'_, R> {
    /// The frame that has led to `frame`.
    fn caller(&mut self, frame: Frame) -> Option<Frame> {
        let before = (frame.ip, self.sp);
        // What is behind the call may be another piece of code.
        let ip = frame.ip.wrapping_sub(frame.called.into());
        let found = match self.orc.rule(ip) {
            Some(Rule::End) => return None,
            Some(Rule::Caller {
                base,
                offset,
                bp,
                kind,
            }) => self.by_rule(base, offset, bp, kind),
            None => self.by_frame_pointer(),
        };
        let found = found.or_else(|| self.by_looks())?;
        let next = Frame {
            sure: found.sure && frame.sure,
            ..found
        };
        ((next.ip, self.sp) != before).then_some(next)
    }

    fn by_rule(&mut self, base: Base, offset: i16, bp: Bp, kind: Kind) -> Option<Frame> {
        let offset = i64::from(offset);
        let read = &self.read;
        let sp = match base {
            Base::Sp => self.sp.wrapping_add_signed(offset),
            Base::Bp => self.bp.wrapping_add_signed(offset),
            Base::SpIndirect => read(self.sp)?.wrapping_add_signed(offset),
            Base::BpIndirect => read(self.bp.wrapping_add_signed(offset))?,
            Base::Saved(register) => self.register(register)?.wrapping_add_signed(offset),
        };
        let word = |offset| read(sp.wrapping_add(offset));
        let (ip, next, saved) = match kind {
            Kind::Call => (read(sp.wrapping_sub(8))?, sp, Saved::Nothing),
            Kind::Regs | Kind::RegsPartial => {
                let from = if kind == Kind::Regs { 0 } else { PT_IP };
                let field = |field: u64| word(field - from);
                // A program was interrupted, and nobody called that.
                if field(PT_CS)? & 3 != 0 {
                    return None;
                }
                let whole = if kind == Kind::Regs {
                    Saved::At(sp)
                } else {
                    Saved::Nothing
                };
                (field(PT_IP)?, field(PT_SP)?, whole)
            }
        };
        let old = self.bp;
        self.bp = match bp {
            Bp::Kept => match saved {
                Saved::At(regs) => read(regs.wrapping_add(PT_BP))?,
                _ => old,
            },
            Bp::FromSp(offset) => read(sp.wrapping_add_signed(offset.into()))?,
            Bp::FromFrame(offset) => read(old.wrapping_add_signed(offset.into()))?,
        };
        (self.sp, self.saved) = (next, saved);
        Some(Frame {
            ip,
            called: kind == Kind::Call,
            sure: true,
        })
    }

    /// A register of this frame, by its offset in a `struct pt_regs`.
    fn register(&self, offset: u64) -> Option<u64> {
        match self.saved {
            Saved::Nothing => None,
            Saved::At(regs) => (self.read)(regs.wrapping_add(offset)),
            Saved::Cpu(regs) => match offset {
                16 => Some(regs.r13),
                56 => Some(regs.r10),
                80 => Some(regs.rax),
                96 => Some(regs.rdx),
                112 => Some(regs.rdi),
                _ => None,
            },
        }
    }

    /// As code does that keeps RBP for its frame.
    fn by_frame_pointer(&mut self) -> Option<Frame> {
        let bp = self.bp;
        if bp % 8 != 0 || bp < self.sp || bp - self.sp > FRAME_MAX {
            return None;
        }
        let (above, ip) = ((self.read)(bp)?, (self.read)(bp.wrapping_add(8))?);
        if !self.is_behind_a_call(ip) {
            return None;
        }
        (self.sp, self.bp, self.saved) = (bp.wrapping_add(16), above, Saved::Nothing);
        Some(Frame {
            ip,
            called: true,
            sure: true,
        })
    }

    /// The next word on the stack that looks like a return address.
    fn by_looks(&mut self) -> Option<Frame> {
        let first = self.sp & !7;
        for place in (0..WORDS).map(|word| first.wrapping_add(word * 8)) {
            self.left = self.left.checked_sub(1)?;
            let ip = (self.read)(place)?;
            if self.is_behind_a_call(ip) {
                (self.sp, self.saved) = (place.wrapping_add(8), Saved::Nothing);
                return Some(Frame {
                    ip,
                    called: true,
                    sure: false,
                });
            }
        }
        None
    }

    /// Is the instruction before `ip` a CALL? And where there are tables, do they know it?
    fn is_behind_a_call(&self, ip: u64) -> bool {
        let known = self.orc.is_empty() || self.orc.rule(ip.wrapping_sub(1)).is_some();
        let before = ip.checked_sub(8).filter(|_| known).and_then(&self.read);
        let Some(before) = before.map(u64::to_le_bytes) else {
            return false;
        };
        // CALL rel32, and CALL r/m64 of any length.
        before[3] == 0xe8 || (1..7).any(|at| before[at] == 0xff && before[at + 1] & 0x38 == 0x10)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::orc::tests::orc;
    use super::*;

    const STACK: u64 = 0xffff_8880_0000_1000;
    /// Where code begins; each return address below is behind a CALL.
    const CODE: u64 = 0xffff_ffff_8100_0000;

    /// Memory with these words, and code that is all CALLs with an offset of 0x3e8e8e8e8 or so.
    fn memory(words: &[(u64, u64)]) -> impl Fn(u64) -> Option<u64> {
        let words: HashMap<_, _> = words.iter().copied().collect();
        move |at| match at >= CODE {
            true => Some(0xe8e8_e8e8_e8e8_e8e8),
            false => words.get(&at).copied(),
        }
    }

    fn regs(rip: u64, rbp: u64) -> lguest_regs {
        lguest_regs {
            rip,
            rsp: STACK,
            rbp,
            r10: STACK + 0x40,
            ..Default::default()
        }
    }

    fn ips(frames: &[Frame]) -> Vec<u64> {
        frames.iter().map(|frame| frame.ip - CODE).collect()
    }

    #[test]
    fn the_tables_lead_from_caller_to_caller() {
        let orc = orc(&[
            // RSP + 16; RBP saved below.
            (CODE, [16, 0, 0xf0, 0xff, 0x83, 2]),
            // RBP + 16.
            (CODE + 0x100, [16, 0, 0, 0, 0x04, 2]),
            // An exception's frame, at RSP.
            (CODE + 0x200, [0, 0, 0, 0, 0x03, 3]),
            // R10.
            (CODE + 0x300, [0, 0, 0, 0, 0x06, 2]),
            (CODE + 0x400, [0, 0, 0, 0, 0, 1]),
        ]);
        let memory = memory(&[
            (STACK, STACK + 0x30),
            (STACK + 8, CODE + 0x180),
            (STACK + 0x38, CODE + 0x280),
            (STACK + 0x40 + PT_IP, CODE + 0x300),
            (STACK + 0x40 + PT_CS, 0x10),
            (STACK + 0x40 + PT_SP, STACK + 0x200),
            (STACK + 0x40 + PT_BP, 7),
            (STACK + 0x40 + 56, STACK + 0x400),
            (STACK + 0x3f8, CODE + 0x480),
        ]);
        let frames = backtrace(&regs(CODE + 0x10, 0), &orc, memory);
        assert_eq!(ips(&frames), [0x10, 0x180, 0x280, 0x300, 0x480]);
        assert!(frames.iter().all(|frame| frame.sure));
        let called = frames.iter().map(|frame| frame.called);
        assert_eq!(called.collect::<Vec<_>>(), [false, true, true, false, true]);
    }

    #[test]
    fn a_program_that_was_interrupted_is_the_end() {
        let orc = orc(&[(CODE, [0, 0, 0, 0, 0x03, 4])]);
        let partial = |cs| {
            let memory = memory(&[
                (STACK, CODE + 0x50),
                (STACK + PT_CS - PT_IP, cs),
                (STACK + PT_SP - PT_IP, STACK + 0x1000),
            ]);
            backtrace(&regs(CODE, 0), &orc, memory)
        };
        assert_eq!(ips(&partial(0x10)), [0, 0x50]);
        let program = partial(0x33);
        // What else looks like a return address is no more than that.
        assert!(program[1..].iter().all(|frame| !frame.sure), "{program:?}");
    }

    #[test]
    fn without_tables_frame_pointers_and_then_looks() {
        let memory = memory(&[
            (STACK, 1),
            (STACK + 8, 2),
            (STACK + 16, STACK + 0x30),
            (STACK + 24, CODE + 0x100),
            (STACK + 32, 0),
            (STACK + 40, 0),
            (STACK + 0x30, 3),
            (STACK + 0x38, CODE + 0x200),
            (STACK + 0x40, 0),
            (STACK + 0x48, CODE + 0x300),
            (STACK + 0x50, 5),
        ]);
        let frames = backtrace(&regs(CODE + 8, STACK + 16), &Orc::default(), memory);
        assert_eq!(ips(&frames), [8, 0x100, 0x200, 0x300]);
        let sure = frames.iter().map(|frame| frame.sure);
        assert_eq!(sure.collect::<Vec<_>>(), [true, true, true, false]);
    }

    #[test]
    fn a_stack_that_is_a_circle_ends() {
        let memory = memory(&[(STACK + 8, CODE + 0x100), (STACK, STACK)]);
        let frames = backtrace(&regs(CODE, STACK), &Orc::default(), memory);
        assert!(frames.len() <= FRAMES, "{frames:?}");
        let everywhere = |_| Some(CODE);
        let frames = backtrace(&regs(CODE, STACK), &Orc::default(), everywhere);
        assert!(frames.len() <= FRAMES, "{frames:?}");
    }

    proptest! {
        /// Any stack, any tables, any registers.
        #[test]
        fn hostile_stacks(
            rules in prop::collection::vec(any::<[u8; 6]>(), 0..8),
            words: Vec<u64>,
            rsp in STACK - 64..STACK + 64,
            rbp in STACK - 64..STACK + 64,
            rip: u64,
        ) {
            let rules: Vec<_> = rules.into_iter().enumerate().map(|(i, rule)| (i as u64 * 0x100, rule)).collect();
            let regs = lguest_regs { rip, rsp, rbp, ..Default::default() };
            let read = |at: u64| {
                let index = at.wrapping_sub(STACK) / 8;
                words.get(usize::try_from(index).ok()? % words.len().max(1)).copied()
            };
            prop_assert!(backtrace(&regs, &orc(&rules), read).len() <= FRAMES);
        }
    }
}
