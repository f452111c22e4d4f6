// SPDX-License-Identifier: GPL-2.0

//! Decodes the privileged instructions that a paravirtualized kernel still executes: those which
//! fault at CPL 3 and which no hook of the Guest's kernel replaced.
//!
//! Only for 64-bit code. The bytes come from the Guest's memory and may have changed since the
//! processor saw them, so whoever executes the result must already know that the Guest's kernel,
//! not one of its programs, was at work.

/// The longest instruction (SDM, "Interrupt 13, General Protection Exception").
pub const MAX_LENGTH: usize = 15;

/// A general register, by the processor's own numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// The register whose number is in the low four bits.
    const fn from_number(number: u8) -> Self {
        match number & 15 {
            0 => Self::Rax,
            1 => Self::Rcx,
            2 => Self::Rdx,
            3 => Self::Rbx,
            4 => Self::Rsp,
            5 => Self::Rbp,
            6 => Self::Rsi,
            7 => Self::Rdi,
            8 => Self::R8,
            9 => Self::R9,
            10 => Self::R10,
            11 => Self::R11,
            12 => Self::R12,
            13 => Self::R13,
            14 => Self::R14,
            _ => Self::R15,
        }
    }
}

/// The place where an IN or OUT finds its port number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// In the instruction.
    Immediate(u8),
    /// In DX.
    Dx,
}

impl Port {
    /// Its number, when DX is `dx`.
    pub const fn number(self, dx: u16) -> u16 {
        match self {
            Self::Immediate(number) => number as u16,
            Self::Dx => dx,
        }
    }
}

/// What IN gets from port `number`, as far as the operand is wide. Nobody answers on any: the bus floats high.
///
/// The counters of the PC's timer are the exception, and stand still at 0. Linux, which calibrates by them where it is not
/// told otherwise, waits as long as it reads all ones: 100,000 times, each of which is an exit. Port 0x61 stays high, where
/// Linux waits for a bit to come.
pub const fn read_port(number: u16) -> u32 {
    match number {
        0x40..=0x43 => 0,
        _ => !0,
    }
}

/// A segment whose base is not 0 in 64-bit mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// The first part of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// None.
    Zero,
    /// The next instruction's address.
    NextRip,
    /// A register.
    Register(Gpr),
}

/// An operand in memory: segment + base + (index << scale) + displacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The segment, if its base counts.
    pub segment: Option<Segment>,
    /// The base.
    pub base: Base,
    /// The index register.
    pub index: Option<Gpr>,
    /// log2 of what the index is multiplied by, 0 to 3.
    pub scale: u8,
    /// The displacement, in bytes.
    pub displacement: i32,
    /// True if the sum, without the segment's base, is cut to 32 bits.
    pub address32: bool,
}

impl Memory {
    /// The linear address, from the registers' contents, the address of the next instruction and
    /// the bases of FS and GS. Need not be canonical.
    pub fn address(
        &self,
        register: impl Fn(Gpr) -> u64,
        next_rip: u64,
        fs_base: u64,
        gs_base: u64,
    ) -> u64 {
        let base = match self.base {
            Base::Zero => 0,
            Base::NextRip => next_rip,
            Base::Register(gpr) => register(gpr),
        };
        let index = self.index.map_or(0, register);
        let sum = base
            .wrapping_add(index.wrapping_shl(u32::from(self.scale)))
            .wrapping_add_signed(i64::from(self.displacement));
        let offset = if self.address32 {
            sum & u64::from(u32::MAX)
        } else {
            sum
        };
        offset.wrapping_add(match self.segment {
            None => 0,
            Some(Segment::Fs) => fs_base,
            Some(Segment::Gs) => gs_base,
        })
    }
}

/// The instructions. What is not here, the Guest gets its #GP for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privileged {
    /// HLT
    Hlt,
    /// CLI
    Cli,
    /// STI
    Sti,
    /// CLTS
    Clts,
    /// WBINVD or WBNOINVD. Not INVD, which would have to lose what the caches hold.
    Wbinvd,
    /// SWAPGS
    Swapgs,
    /// XSETBV
    Xsetbv,
    /// RDMSR
    Rdmsr,
    /// WRMSR
    Wrmsr,
    /// IN to AL, AX or EAX.
    In {
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// The port.
        port: Port,
    },
    /// OUT from AL, AX or EAX.
    Out {
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// The port.
        port: Port,
    },
    /// MOV from a control register.
    MovFromCr {
        /// 0, 2, 3, 4 or 8.
        cr: u8,
        /// Its destination.
        gpr: Gpr,
    },
    /// MOV to a control register.
    MovToCr {
        /// 0, 2, 3, 4 or 8.
        cr: u8,
        /// Its source.
        gpr: Gpr,
    },
    /// MOV from a debug register.
    MovFromDr {
        /// 0 to 7.
        dr: u8,
        /// Its destination.
        gpr: Gpr,
    },
    /// MOV to a debug register.
    MovToDr {
        /// 0 to 7.
        dr: u8,
        /// Its source.
        gpr: Gpr,
    },
    /// INVLPG
    Invlpg(Memory),
}

/// Decodes the instruction at the start of `bytes`: what it is, and its length in bytes.
///
/// `None` if it is not one of [`Privileged`] or goes on past the end of `bytes`.
pub fn decode(bytes: &[u8]) -> Option<(Privileged, u8)> {
    let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
    let mut code = Code { bytes, used: 0 };
    let prefixes = Prefixes::read(&mut code)?;
    let instruction = match code.next()? {
        0xf4 => Privileged::Hlt,
        0xfa => Privileged::Cli,
        0xfb => Privileged::Sti,
        opcode @ (0xe4..=0xe7 | 0xec..=0xef) => {
            let size = match opcode & 1 {
                0 => 1,
                _ if prefixes.operand16 && !prefixes.rex_w => 2,
                _ => 4,
            };
            let port = match opcode & 8 {
                0 => Port::Immediate(code.next()?),
                _ => Port::Dx,
            };
            match opcode & 2 {
                0 => Privileged::In { size, port },
                _ => Privileged::Out { size, port },
            }
        }
        0x0f => two_byte(&mut code, &prefixes)?,
        _ => return None,
    };
    Some((instruction, code.used))
}

/// The length of the `int 0x80` at the start of `bytes`, 32-bit code or 64-bit; `None` if there is none.
pub fn int80_length(bytes: &[u8]) -> Option<u8> {
    let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
    let mut code = Code { bytes, used: 0 };
    Prefixes::read(&mut code)?;
    (code.next()? == 0xcd && code.next()? == 0x80).then_some(code.used)
}

/// Is the instruction at the start of `bytes` a SYSENTER? In 32-bit code, too: there a REX prefix
/// would be an instruction of its own, but it does not fault.
pub fn is_sysenter(bytes: &[u8]) -> bool {
    let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
    let mut code = Code { bytes, used: 0 };
    Prefixes::read(&mut code).is_some() && code.next() == Some(0x0f) && code.next() == Some(0x34)
}

/// The instructions whose opcode starts with 0F.
fn two_byte(code: &mut Code<'_>, prefixes: &Prefixes) -> Option<Privileged> {
    Some(match code.next()? {
        0x01 => group7(code, prefixes)?,
        0x06 => Privileged::Clts,
        0x09 => Privileged::Wbinvd,
        0x30 => Privileged::Wrmsr,
        0x32 => Privileged::Rdmsr,
        opcode @ 0x20..=0x23 => {
            // These take two registers, whatever the mod field says.
            let modrm = ModRm::read(code, prefixes)?;
            let (number, gpr) = (modrm.reg, Gpr::from_number(modrm.rm));
            let is_debug = opcode & 1 != 0;
            let exists = if is_debug {
                number < 8
            } else {
                matches!(number, 0 | 2 | 3 | 4 | 8)
            };
            if !exists {
                return None;
            }
            match opcode {
                0x20 => Privileged::MovFromCr { cr: number, gpr },
                0x21 => Privileged::MovFromDr { dr: number, gpr },
                0x22 => Privileged::MovToCr { cr: number, gpr },
                _ => Privileged::MovToDr { dr: number, gpr },
            }
        }
        _ => return None,
    })
}

/// The instructions whose opcode is 0F 01.
fn group7(code: &mut Code<'_>, prefixes: &Prefixes) -> Option<Privileged> {
    let modrm = ModRm::read(code, prefixes)?;
    match (modrm.mode, modrm.reg & 7, modrm.rm & 7) {
        (0..=2, 7, _) => memory(code, prefixes, modrm).map(Privileged::Invlpg),
        // 66, F2 or F3 would make it an instruction that does not exist.
        (3, 2, 1) if !prefixes.operand16 && !prefixes.repeat => Some(Privileged::Xsetbv),
        (3, 7, 0) => Some(Privileged::Swapgs),
        _ => None,
    }
}

/// The rest of a memory operand (SDM, "Addressing-Mode Encoding of ModR/M and SIB Bytes" and "REX
/// Prefixes").
fn memory(code: &mut Code<'_>, prefixes: &Prefixes, modrm: ModRm) -> Option<Memory> {
    let mut base = Base::Register(Gpr::from_number(modrm.rm));
    let mut index = None;
    let mut scale = 0;
    // RBP and R13 cannot be a base without a displacement: their place means "32 bits follow".
    let mut no_base = modrm.mode == 0 && modrm.rm & 7 == 5;
    if no_base {
        base = Base::NextRip;
    }
    if modrm.rm & 7 == 4 {
        let sib = code.next()?;
        scale = sib >> 6;
        let index_number = ((sib >> 3) & 7) | if prefixes.rex_x { 8 } else { 0 };
        // RSP cannot be an index; R12 can.
        index = (index_number != 4).then(|| Gpr::from_number(index_number));
        let base_number = (sib & 7) | (modrm.rm & 8);
        no_base = modrm.mode == 0 && sib & 7 == 5;
        base = if no_base {
            Base::Zero
        } else {
            Base::Register(Gpr::from_number(base_number))
        };
    }
    let displacement = match modrm.mode {
        1 => i32::from(i8::from_le_bytes([code.next()?])),
        2 => code.next_i32()?,
        _ if no_base => code.next_i32()?,
        _ => 0,
    };
    Some(Memory {
        segment: prefixes.segment,
        base,
        index,
        scale,
        displacement,
        address32: prefixes.address32,
    })
}

/// The bytes of an instruction, and how many of them were read.
struct Code<'a> {
    bytes: &'a [u8],
    used: u8,
}

impl Code<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(usize::from(self.used))?;
        self.used = self.used.wrapping_add(1);
        Some(byte)
    }

    fn next_i32(&mut self) -> Option<i32> {
        let bytes = [self.next()?, self.next()?, self.next()?, self.next()?];
        Some(i32::from_le_bytes(bytes))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(usize::from(self.used)).copied()
    }
}

/// The prefixes before the opcode.
#[derive(Default)]
struct Prefixes {
    operand16: bool,
    address32: bool,
    repeat: bool,
    segment: Option<Segment>,
    rex_w: bool,
    rex_r: bool,
    rex_x: bool,
    rex_b: bool,
}

impl Prefixes {
    /// Reads up to the opcode. `None` for LOCK, which none of the instructions may have.
    fn read(code: &mut Code<'_>) -> Option<Self> {
        let mut prefixes = Self::default();
        let mut rex = 0;
        loop {
            match code.peek()? {
                0x66 => prefixes.operand16 = true,
                0x67 => prefixes.address32 = true,
                0xf2 | 0xf3 => prefixes.repeat = true,
                // CS, DS, ES and SS have base 0 in 64-bit mode, and do not undo FS or GS.
                0x26 | 0x2e | 0x36 | 0x3e => {}
                0x64 => prefixes.segment = Some(Segment::Fs),
                0x65 => prefixes.segment = Some(Segment::Gs),
                0xf0 => return None,
                byte @ 0x40..=0x4f => {
                    rex = byte;
                    code.next()?;
                    continue;
                }
                _ => break,
            }
            // REX counts only right before the opcode.
            rex = 0;
            code.next()?;
        }
        prefixes.rex_w = rex & 8 != 0;
        prefixes.rex_r = rex & 4 != 0;
        prefixes.rex_x = rex & 2 != 0;
        prefixes.rex_b = rex & 1 != 0;
        Some(prefixes)
    }
}

/// A ModRM byte with its fields widened by REX.
#[derive(Clone, Copy)]
struct ModRm {
    mode: u8,
    reg: u8,
    rm: u8,
}

impl ModRm {
    fn read(code: &mut Code<'_>, prefixes: &Prefixes) -> Option<Self> {
        let byte = code.next()?;
        Some(Self {
            mode: byte >> 6,
            reg: ((byte >> 3) & 7) | if prefixes.rex_r { 8 } else { 0 },
            rm: (byte & 7) | if prefixes.rex_b { 8 } else { 0 },
        })
    }
}
