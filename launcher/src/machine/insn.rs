// SPDX-License-Identifier: GPL-2.0
//! Does the one instruction by which a Guest reached for a device.
//!
//! The Host reports a load or a store to a GPA that is not RAM with the instruction's bytes and the
//! registers. Here the instruction is decoded, its access made, and the registers become what the
//! CPU would have made of them.

use iced_x86::{
    Code, Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind,
    Register,
};
use lguest_abi::lguest_regs;

const DIRECTION_FLAG: u64 = 1 << 10;

/// The device's side of an access, of 1, 2, 4 or 8 bytes.
pub trait Target {
    /// Fills `data` with what the device says.
    fn load(&mut self, data: &mut [u8]);
    /// Gives `data` to the device.
    fn store(&mut self, data: &[u8]);
}

/// An instruction that is not known here, in words.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{0}")]
pub struct Unknown(String);

/// Does the instruction whose bytes begin with `bytes`, in 64-bit mode.
///
/// `target` is what it reached for. On success, `regs` are those after the instruction; of a
/// repeated one, after one round of it.
pub fn emulate(
    bytes: &[u8],
    regs: &mut lguest_regs,
    target: &mut dyn Target,
) -> Result<(), Unknown> {
    let insn = Decoder::with_ip(64, bytes, regs.rip, DecoderOptions::NONE).decode();
    if insn.code() == Code::INVALID {
        return Err(Unknown(format!(
            "no instruction begins with bytes {bytes:02x?}"
        )));
    }
    execute(&insn, regs, target).ok_or_else(|| {
        let mut text = String::new();
        NasmFormatter::new().format(&insn, &mut text);
        Unknown(format!(
            "instruction \"{text}\" is not one that lg does for a device"
        ))
    })
}

/// As [`emulate`]; `None`, with nothing done, when the instruction is not known.
fn execute(insn: &Instruction, regs: &mut lguest_regs, target: &mut dyn Target) -> Option<()> {
    let size = insn.memory_size().size();
    if !matches!(size, 1 | 2 | 4 | 8) {
        return None;
    }
    match (insn.mnemonic(), insn.op0_kind(), insn.op1_kind()) {
        (Mnemonic::Mov, OpKind::Memory, OpKind::Register) => {
            store(target, get(regs, insn.op1_register())?, size);
        }
        (Mnemonic::Mov, OpKind::Memory, _) => {
            store(target, insn.try_immediate(1).ok()?, size);
        }
        (Mnemonic::Mov | Mnemonic::Movzx, OpKind::Register, OpKind::Memory) => {
            // Look before the device is asked: a load can have effects there.
            get(regs, insn.op0_register())?;
            set(regs, insn.op0_register(), load(target, size));
        }
        (Mnemonic::Movsx | Mnemonic::Movsxd, OpKind::Register, OpKind::Memory) => {
            get(regs, insn.op0_register())?;
            let unused = 64 - 8 * size as u32;
            let value = ((load(target, size) << unused) as i64 >> unused) as u64;
            set(regs, insn.op0_register(), value);
        }
        (Mnemonic::Xchg, OpKind::Memory, OpKind::Register) => {
            let value = get(regs, insn.op1_register())?;
            set(regs, insn.op1_register(), load(target, size));
            store(target, value, size);
        }
        (
            Mnemonic::Stosb | Mnemonic::Stosd | Mnemonic::Stosq | Mnemonic::Stosw,
            OpKind::MemoryESRDI,
            _,
        ) => {
            store(target, regs.rax, size);
            let forward = regs.rflags & DIRECTION_FLAG == 0;
            let step = if forward {
                size as u64
            } else {
                (size as u64).wrapping_neg()
            };
            regs.rdi = regs.rdi.wrapping_add(step);
            if insn.has_rep_prefix() || insn.has_repne_prefix() {
                regs.rcx = regs.rcx.wrapping_sub(1);
                if regs.rcx != 0 {
                    return Some(());
                }
            }
        }
        _ => return None,
    }
    regs.rip = insn.next_ip();
    Some(())
}

fn load(target: &mut dyn Target, size: usize) -> u64 {
    let mut bytes = [0; 8];
    target.load(&mut bytes[..size]);
    u64::from_le_bytes(bytes)
}

fn store(target: &mut dyn Target, value: u64, size: usize) {
    target.store(&value.to_le_bytes()[..size]);
}

/// Is it AH, CH, DH or BH?
fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// The value of a general register, zero extended.
fn get(regs: &mut lguest_regs, register: Register) -> Option<u64> {
    let full = *full(regs, register)?;
    let value = if is_high_byte(register) {
        full >> 8
    } else {
        full
    };
    Some(value & mask(register))
}

/// Sets a general register, of which 8- and 16-bit ones keep the rest of the full one and 32-bit
/// ones clear it.
fn set(regs: &mut lguest_regs, register: Register, value: u64) {
    let (shift, mask) = (if is_high_byte(register) { 8 } else { 0 }, mask(register));
    if let Some(full) = full(regs, register) {
        let kept = if register.size() >= 4 {
            0
        } else {
            *full & !(mask << shift)
        };
        *full = kept | ((value & mask) << shift);
    }
}

fn mask(register: Register) -> u64 {
    u64::MAX >> (64 - 8 * register.size())
}

/// The 64-bit register that a general register is part of.
fn full(regs: &mut lguest_regs, register: Register) -> Option<&mut u64> {
    Some(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RBX => &mut regs.rbx,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A device of one register, which remembers what was done to it.
    #[derive(Default)]
    struct Fake {
        value: u64,
        loads: Vec<usize>,
        stores: Vec<(usize, u64)>,
    }

    impl Target for Fake {
        fn load(&mut self, data: &mut [u8]) {
            self.loads.push(data.len());
            data.copy_from_slice(&self.value.to_le_bytes()[..data.len()]);
        }

        fn store(&mut self, data: &[u8]) {
            let mut bytes = [0; 8];
            bytes[..data.len()].copy_from_slice(data);
            self.stores.push((data.len(), u64::from_le_bytes(bytes)));
        }
    }

    const RIP: u64 = 0xffff_ffff_8100_0000;

    fn regs() -> lguest_regs {
        lguest_regs {
            rax: 0x1111_2222_3333_4444,
            rbx: 0x5555_6666_7777_8888,
            rcx: 2,
            rdi: 0x1000,
            r9: 0x9999_aaaa_bbbb_cccc,
            rip: RIP,
            ..Default::default()
        }
    }

    fn assert_same(found: lguest_regs, expected: lguest_regs) {
        assert_eq!(format!("{found:#x?}"), format!("{expected:#x?}"));
    }

    fn run(bytes: &[u8], value: u64) -> (lguest_regs, Fake) {
        let (mut regs, mut fake) = (
            regs(),
            Fake {
                value,
                ..Default::default()
            },
        );
        emulate(bytes, &mut regs, &mut fake).unwrap();
        (regs, fake)
    }

    #[test]
    fn stores() {
        for (bytes, size, value) in [
            (&[0x88, 0x03][..], 1, 0x44),                            // mov [rbx], al
            (&[0x88, 0x23], 1, 0x44),                                // mov [rbx], ah
            (&[0x66, 0x89, 0x03], 2, 0x4444),                        // mov [rbx], ax
            (&[0x89, 0x03], 4, 0x3333_4444),                         // mov [rbx], eax
            (&[0x4c, 0x89, 0x4b, 0x08], 8, 0x9999_aaaa_bbbb_cccc),   // mov [rbx+8], r9
            (&[0xc6, 0x03, 0xfe], 1, 0xfe),                          // mov byte [rbx], 0xfe
            (&[0xc7, 0x03, 0xef, 0xbe, 0xad, 0xde], 4, 0xdead_beef), // mov dword [rbx], imm
            // mov qword [rbx], -2: the immediate is sign extended
            (&[0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff], 8, u64::MAX - 1),
            (&[0xa3, 0, 0, 0, 0xd0, 0, 0, 0, 0], 4, 0x3333_4444), // mov [moffs], eax
            (&[0x65, 0x89, 0x04, 0x25, 0, 0, 0, 0], 4, 0x3333_4444), // mov gs:[0], eax
        ] {
            let (after, fake) = run(bytes, 0);
            assert_eq!(fake.stores, [(size, value)], "{bytes:02x?}");
            assert_same(
                after,
                lguest_regs {
                    rip: RIP + bytes.len() as u64,
                    ..regs()
                },
            );
            assert!(fake.loads.is_empty());
        }
    }

    #[test]
    fn loads() {
        const VALUE: u64 = 0xf1f2_f3f4_f5f6_f7f8;
        for (bytes, size, rax) in [
            (&[0x8a, 0x03][..], 1, 0x1111_2222_3333_44f8), // mov al, [rbx]
            (&[0x8a, 0x23], 1, 0x1111_2222_3333_f844),     // mov ah, [rbx]
            (&[0x66, 0x8b, 0x03], 2, 0x1111_2222_3333_f7f8), // mov ax, [rbx]
            (&[0x8b, 0x03], 4, 0xf5f6_f7f8),               // mov eax, [rbx]
            (&[0x48, 0x8b, 0x03], 8, VALUE),               // mov rax, [rbx]
            (&[0x0f, 0xb6, 0x03], 1, 0xf8),                // movzx eax, byte [rbx]
            (&[0x66, 0x0f, 0xb6, 0x03], 1, 0x1111_2222_3333_00f8), // movzx ax, byte [rbx]
            (&[0x48, 0x0f, 0xb7, 0x03], 2, 0xf7f8),        // movzx rax, word [rbx]
            (&[0x0f, 0xbe, 0x03], 1, 0xffff_fff8),         // movsx eax, byte [rbx]
            (&[0x48, 0x0f, 0xbf, 0x03], 2, 0xffff_ffff_ffff_f7f8), // movsx rax, word [rbx]
            (&[0x48, 0x63, 0x03], 4, 0xffff_ffff_f5f6_f7f8), // movsxd rax, dword [rbx]
            (&[0xa1, 0, 0, 0, 0xd0, 0, 0, 0, 0], 4, 0xf5f6_f7f8), // mov eax, [moffs]
        ] {
            let (after, fake) = run(bytes, VALUE);
            assert_eq!(fake.loads, [size], "{bytes:02x?}");
            assert_same(
                after,
                lguest_regs {
                    rax,
                    rip: RIP + bytes.len() as u64,
                    ..regs()
                },
            );
            assert!(fake.stores.is_empty());
        }
    }

    #[test]
    fn exchange() {
        let (after, fake) = run(&[0x87, 0x03], 0x1234_5678); // xchg [rbx], eax
        assert_eq!(
            (after.rax, fake.stores),
            (0x1234_5678, vec![(4, 0x3333_4444)])
        );
    }

    #[test]
    fn repeated_stores_go_round_by_round() {
        let bytes = [0xf3, 0xab]; // rep stosd
        let (mut regs, mut fake) = (regs(), Fake::default());
        emulate(&bytes, &mut regs, &mut fake).unwrap();
        assert_eq!((regs.rip, regs.rcx, regs.rdi), (RIP, 1, 0x1004));
        emulate(&bytes, &mut regs, &mut fake).unwrap();
        assert_eq!((regs.rip, regs.rcx, regs.rdi), (RIP + 2, 0, 0x1008));
        assert_eq!(fake.stores, [(4, 0x3333_4444); 2]);
        regs.rflags = DIRECTION_FLAG;
        emulate(&[0xaa], &mut regs, &mut fake).unwrap(); // stosb
        assert_eq!(regs.rdi, 0x1007);
    }

    #[test]
    fn the_rest_is_named_and_changes_nothing() {
        for (bytes, text) in [
            (&[0x01, 0x03][..], "add"),      // add [rbx], eax
            (&[0x8e, 0x03], "mov es"),       // mov es, [rbx]
            (&[0x0f, 0x11, 0x03], "movups"), // movups [rbx], xmm0
            (&[0xff, 0x33], "push"),         // push qword [rbx]
            (&[0x67, 0xab], "stosd"),        // stosd with a 32-bit address
            (&[0x89, 0xd8], "mov eax,ebx"),  // reaches for no memory at all
            (&[0x0f, 0x0b], "ud2"),
            (&[0x06], "no instruction"),
            (&[], "no instruction"),
            (&[0xc7, 0x03, 1], "no instruction"), // cut off
        ] {
            let (mut after, mut fake) = (regs(), Fake::default());
            let error = emulate(bytes, &mut after, &mut fake)
                .unwrap_err()
                .to_string();
            assert!(error.contains(text), "{error}");
            assert_same(after, regs());
            assert!(fake.loads.is_empty() && fake.stores.is_empty());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_done_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..16),
            value in any::<u64>(),
        ) {
            let (mut after, mut fake) = (regs(), Fake { value, ..Default::default() });
            if emulate(&bytes, &mut after, &mut fake).is_ok() {
                prop_assert!(fake.loads.len() <= 1 && fake.stores.len() <= 1);
                prop_assert!(!fake.loads.is_empty() || !fake.stores.is_empty());
                prop_assert!(after.rip - RIP <= bytes.len() as u64);
            } else {
                assert_same(after, regs());
                prop_assert!(fake.loads.is_empty() && fake.stores.is_empty());
            }
        }
    }
}
