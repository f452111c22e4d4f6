// SPDX-License-Identifier: GPL-2.0
//! Instructions of the kernel and its programs that fault and are done for them.

/// UD2, "xen", CPUID: by these bytes a kernel asks for Xen's answer to CPUID.
pub const FORCED_CPUID: [u8; 7] = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];

/// Bytes of RDMSR and WRMSR.
pub const MSR_LENGTH: u64 = 2;

/// An access to an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// The access to an MSR that `bytes` are, if they are one.
pub const fn msr(bytes: [u8; 2]) -> Option<Msr> {
    match bytes {
        [0x0f, 0x32] => Some(Msr::Read),
        [0x0f, 0x30] => Some(Msr::Write),
        _ => None,
    }
}

const MSR_PLATFORM_ID: u32 = 0x17;
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_UCODE_REV: u32 = 0x8b;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_PAT: u32 = 0x277;

/// What an MSR reads as that lg itself does not know; `None`: it is not there.
pub const fn msr_value(msr: u32) -> Option<u64> {
    match msr {
        // Read early, and without a look at whether they are there.
        MSR_PLATFORM_ID | MSR_UCODE_REV => Some(0),
        // Where it always is, on, of the boot CPU.
        MSR_APIC_BASE => Some(0xfee0_0900),
        // Fast strings, no BTS, no PEBS. On Intel's CPUs Linux clears another bit of it before it remembers that it runs by Xen's
        // ABI, and then takes even an access that may fault for its end.
        MSR_MISC_ENABLE => Some(1 | (1 << 11) | (1 << 12)),
        // The order of the types of memory that Linux itself would write there. All memory is write-back anyway.
        MSR_PAT => Some(0x0407_0506_0007_0106),
        _ => None,
    }
}

/// The byte that CLI is.
pub const CLI: u8 = 0xfa;
/// The byte that STI is.
pub const STI: u8 = 0xfb;

/// Bytes that an instruction has at most.
pub const MAX_LENGTH: usize = 15;

/// IN or OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The first port.
    pub port: u16,
    /// Ports: 1, 2 or 4.
    pub width: u32,
    /// It is IN.
    pub input: bool,
    /// Bytes of the instruction.
    pub length: u64,
}

/// The access to a port that `code` begins with, if it is one. Those of strings are not known. `long`: it is 64-bit code.
pub fn port_access(code: &[u8], dx: u16, long: bool) -> Option<PortAccess> {
    let (mut short, mut wide) = (false, false);
    for (i, &byte) in code.iter().enumerate().take(MAX_LENGTH) {
        match byte {
            0x66 => (short, wide) = (true, false),
            // Segments, the size of addresses, and repetition mean nothing here.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf2 | 0xf3 => wide = false,
            0x40..=0x4f if long => wide = byte & 8 != 0,
            0xe4..=0xe7 | 0xec..=0xef => {
                let (port, length) = if byte & 8 == 0 {
                    (u16::from(*code.get(i + 1)?), i + 2)
                } else {
                    (dx, i + 1)
                };
                return Some(PortAccess {
                    port,
                    width: match byte & 1 {
                        0 => 1,
                        _ if short && !wide => 2,
                        _ => 4,
                    },
                    input: byte & 2 == 0,
                    length: length as u64,
                });
            }
            _ => return None,
        }
    }
    None
}

impl PortAccess {
    /// Does a bitmap with a bit for each port let it through? `bits` has those of the first port and of the 8 behind it.
    pub const fn is_granted(self, bits: u16) -> bool {
        (bits >> (self.port & 7)) & ((1 << self.width) - 1) == 0
    }

    /// RAX behind it: nobody answers on any port, and the bus floats high.
    pub const fn rax(self, rax: u64) -> u64 {
        match (self.input, self.width) {
            (false, _) => rax,
            (true, 1) => rax | 0xff,
            (true, 2) => rax | 0xffff,
            // A register that 32 bits are written to has no others.
            _ => 0xffff_ffff,
        }
    }
}

/// A table whose register an instruction stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// SGDT: a limit of 16 bits and a base of 64.
    Gdt,
    /// SIDT: likewise.
    Idt,
    /// SLDT: a selector of 16 bits.
    Ldt,
}

/// SGDT, SIDT or SLDT to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStore {
    /// Whose register it is.
    pub table: Table,
    /// Where it goes: a GVA, perhaps not a canonical one.
    pub to: u64,
    /// Bytes of the instruction.
    pub length: u64,
}

/// The store of a table's register that `code`, at `rip`, begins with, if it is one: of 64-bit code, as compilers make it,
/// with no prefix but REX. `register` is asked for general registers, by the CPU's numbers. (SDM volume 2, "Addressing-Mode
/// Encoding of ModR/M and SIB Bytes".)
pub fn table_store(code: &[u8], rip: u64, register: impl Fn(u8) -> u64) -> Option<TableStore> {
    let (rex, opcode) = match *code {
        [rex @ 0x40..=0x4f, ref opcode @ ..] => (rex, opcode),
        ref opcode => (0, opcode),
    };
    let [0x0f, group, modrm, ref operand @ ..] = *opcode else {
        return None;
    };
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let table = match (group, (modrm >> 3) & 7) {
        (1, 0) => Table::Gdt,
        (1, 1) => Table::Idt,
        (0, 0) => Table::Ldt,
        _ => return None,
    };
    // REX.B and REX.X are a fourth bit of the base's number and of the index'.
    let (base_high, index_high) = ((rex & 1) << 3, (rex & 2) << 2);
    let (base, index, operand) = match (rm, operand) {
        // RSP is no index.
        (4, &[sib, ref operand @ ..]) => match ((sib >> 3) & 7) | index_high {
            4 => (sib & 7, 0, operand),
            index => (sib & 7, register(index) << (sib >> 6), operand),
        },
        (4, []) => return None,
        _ => (rm, 0, operand),
    };
    // In the place of RBP and R13 without a displacement are addresses without a base.
    let no_base = mode == 0 && base == 5;
    let (displacement, size) = match (mode, operand) {
        (0, _) if !no_base => (0, 0),
        (1, &[byte, ..]) => (i64::from(byte as i8), 1),
        (0 | 2, &[a, b, c, d, ..]) => (i64::from(i32::from_le_bytes([a, b, c, d])), 4),
        _ => return None,
    };
    let length = (code.len() - operand.len() + size) as u64;
    let base = match rm {
        5 if no_base => rip.wrapping_add(length),
        _ if no_base => 0,
        _ => register(base | base_high),
    };
    Some(TableStore {
        table,
        to: base.wrapping_add(index).wrapping_add_signed(displacement),
        length,
    })
}
