// SPDX-License-Identifier: GPL-2.0

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, Register};
use lg_core::emulate::{decode, read_port, Base, Gpr, Memory, Port, Privileged, MAX_LENGTH};
use proptest::prelude::*;

const GPRS: [(Gpr, Register); 16] = [
    (Gpr::Rax, Register::RAX),
    (Gpr::Rcx, Register::RCX),
    (Gpr::Rdx, Register::RDX),
    (Gpr::Rbx, Register::RBX),
    (Gpr::Rsp, Register::RSP),
    (Gpr::Rbp, Register::RBP),
    (Gpr::Rsi, Register::RSI),
    (Gpr::Rdi, Register::RDI),
    (Gpr::R8, Register::R8),
    (Gpr::R9, Register::R9),
    (Gpr::R10, Register::R10),
    (Gpr::R11, Register::R11),
    (Gpr::R12, Register::R12),
    (Gpr::R13, Register::R13),
    (Gpr::R14, Register::R14),
    (Gpr::R15, Register::R15),
];

fn gpr(register: Register) -> Gpr {
    let found = GPRS
        .iter()
        .find(|(_, theirs)| *theirs == register.full_register());
    found
        .unwrap_or_else(|| panic!("{register:?} is no general register"))
        .0
}

/// What iced-x86 makes of the bytes, in our words; `None` if it is none of ours. A memory operand
/// is left as a placeholder: addresses are compared, not their parts.
fn reference(bytes: &[u8]) -> Option<(Privileged, u8, Instruction)> {
    let mut decoder = Decoder::with_ip(64, bytes, RIP, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if decoder.last_error() != DecoderError::None {
        return None;
    }
    let imm8 = || Port::Immediate(instruction.immediate8());
    let input = |size, port| Privileged::In { size, port };
    let output = |size, port| Privileged::Out { size, port };
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let number = |register: Register| register.number() as u8;
    let privileged = match instruction.code() {
        Code::Hlt => Privileged::Hlt,
        Code::Cli => Privileged::Cli,
        Code::Sti => Privileged::Sti,
        Code::Clts => Privileged::Clts,
        Code::Wbinvd | Code::Wbnoinvd => Privileged::Wbinvd,
        Code::Swapgs => Privileged::Swapgs,
        Code::Xsetbv => Privileged::Xsetbv,
        Code::Rdmsr => Privileged::Rdmsr,
        Code::Wrmsr => Privileged::Wrmsr,
        Code::In_AL_imm8 => input(1, imm8()),
        Code::In_AX_imm8 => input(2, imm8()),
        Code::In_EAX_imm8 => input(4, imm8()),
        Code::In_AL_DX => input(1, Port::Dx),
        Code::In_AX_DX => input(2, Port::Dx),
        Code::In_EAX_DX => input(4, Port::Dx),
        Code::Out_imm8_AL => output(1, imm8()),
        Code::Out_imm8_AX => output(2, imm8()),
        Code::Out_imm8_EAX => output(4, imm8()),
        Code::Out_DX_AL => output(1, Port::Dx),
        Code::Out_DX_AX => output(2, Port::Dx),
        Code::Out_DX_EAX => output(4, Port::Dx),
        Code::Mov_r64_cr => Privileged::MovFromCr {
            cr: number(second),
            gpr: gpr(first),
        },
        Code::Mov_cr_r64 => Privileged::MovToCr {
            cr: number(first),
            gpr: gpr(second),
        },
        Code::Mov_r64_dr => Privileged::MovFromDr {
            dr: number(second),
            gpr: gpr(first),
        },
        Code::Mov_dr_r64 => Privileged::MovToDr {
            dr: number(first),
            gpr: gpr(second),
        },
        Code::Invlpg_m => Privileged::Invlpg(PLACEHOLDER),
        _ => return None,
    };
    Some((privileged, instruction.len() as u8, instruction))
}

const PLACEHOLDER: Memory = Memory {
    segment: None,
    base: Base::Zero,
    index: None,
    scale: 0,
    displacement: 0,
    address32: false,
};

/// The address of the instructions.
const RIP: u64 = 0xffff_ffff_8123_4567;
const FS_BASE: u64 = 0x7f00_1111_2222_3333;
const GS_BASE: u64 = 0xffff_8881_4444_5555;

/// Different in every register, and with high bits that a 32-bit address must lose.
fn content(gpr: Gpr) -> u64 {
    let number = GPRS.iter().position(|(ours, _)| *ours == gpr).unwrap() as u64;
    0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number + 1)
}

/// The address of INVLPG's operand, by iced-x86.
fn reference_address(instruction: &Instruction) -> u64 {
    let address = instruction.virtual_address(0, 0, |register, _, _| {
        Some(match register {
            Register::FS => FS_BASE,
            Register::GS => GS_BASE,
            Register::CS | Register::DS | Register::ES | Register::SS => 0,
            _ if register.is_gpr32() => content(gpr(register)) & 0xffff_ffff,
            _ => content(gpr(register)),
        })
    });
    address.unwrap()
}

/// Both decoders agree on what the bytes are.
fn compare(bytes: &[u8]) {
    let ours = decode(bytes);
    match (ours, reference(bytes)) {
        (None, None) => {}
        (
            Some((Privileged::Invlpg(memory), len)),
            Some((Privileged::Invlpg(_), their_len, insn)),
        ) => {
            assert_eq!(len, their_len, "length of {bytes:02x?}");
            let address = memory.address(content, RIP + u64::from(len), FS_BASE, GS_BASE);
            assert_eq!(
                address,
                reference_address(&insn),
                "{memory:x?} in {bytes:02x?}"
            );
        }
        (Some(ours), Some((privileged, len, _))) => {
            assert_eq!(ours, (privileged, len), "{bytes:02x?}");
        }
        (ours, theirs) => panic!("{bytes:02x?} is {ours:x?}, and to iced-x86 {theirs:x?}"),
    }
}

/// The bytes that GNU as makes of each line.
#[test]
fn the_assemblers_output_decodes() {
    use Privileged::*;
    let dx = Port::Dx;
    let table: [(&str, &[u8], Privileged); 28] = [
        ("hlt", &[0xf4], Hlt),
        ("cli", &[0xfa], Cli),
        ("sti", &[0xfb], Sti),
        ("clts", &[0x0f, 0x06], Clts),
        ("wbinvd", &[0x0f, 0x09], Wbinvd),
        ("wbnoinvd", &[0xf3, 0x0f, 0x09], Wbinvd),
        ("swapgs", &[0x0f, 0x01, 0xf8], Swapgs),
        ("xsetbv", &[0x0f, 0x01, 0xd1], Xsetbv),
        ("rdmsr", &[0x0f, 0x32], Rdmsr),
        ("wrmsr", &[0x0f, 0x30], Wrmsr),
        (
            "in $0x70,%al",
            &[0xe4, 0x70],
            In {
                size: 1,
                port: Port::Immediate(0x70),
            },
        ),
        (
            "in $0x71,%ax",
            &[0x66, 0xe5, 0x71],
            In {
                size: 2,
                port: Port::Immediate(0x71),
            },
        ),
        (
            "in $0x72,%eax",
            &[0xe5, 0x72],
            In {
                size: 4,
                port: Port::Immediate(0x72),
            },
        ),
        ("in %dx,%al", &[0xec], In { size: 1, port: dx }),
        ("in %dx,%ax", &[0x66, 0xed], In { size: 2, port: dx }),
        ("in %dx,%eax", &[0xed], In { size: 4, port: dx }),
        (
            "out %al,$0x80",
            &[0xe6, 0x80],
            Out {
                size: 1,
                port: Port::Immediate(0x80),
            },
        ),
        (
            "out %ax,$0x81",
            &[0x66, 0xe7, 0x81],
            Out {
                size: 2,
                port: Port::Immediate(0x81),
            },
        ),
        (
            "out %eax,$0x82",
            &[0xe7, 0x82],
            Out {
                size: 4,
                port: Port::Immediate(0x82),
            },
        ),
        ("out %al,%dx", &[0xee], Out { size: 1, port: dx }),
        ("out %ax,%dx", &[0x66, 0xef], Out { size: 2, port: dx }),
        ("out %eax,%dx", &[0xef], Out { size: 4, port: dx }),
        (
            "mov %cr3,%rax",
            &[0x0f, 0x20, 0xd8],
            MovFromCr {
                cr: 3,
                gpr: Gpr::Rax,
            },
        ),
        (
            "mov %cr8,%r15",
            &[0x45, 0x0f, 0x20, 0xc7],
            MovFromCr {
                cr: 8,
                gpr: Gpr::R15,
            },
        ),
        (
            "mov %rdi,%cr4",
            &[0x0f, 0x22, 0xe7],
            MovToCr {
                cr: 4,
                gpr: Gpr::Rdi,
            },
        ),
        (
            "mov %r9,%cr0",
            &[0x41, 0x0f, 0x22, 0xc1],
            MovToCr {
                cr: 0,
                gpr: Gpr::R9,
            },
        ),
        (
            "mov %db7,%rcx",
            &[0x0f, 0x21, 0xf9],
            MovFromDr {
                dr: 7,
                gpr: Gpr::Rcx,
            },
        ),
        (
            "mov %r11,%db6",
            &[0x41, 0x0f, 0x23, 0xf3],
            MovToDr {
                dr: 6,
                gpr: Gpr::R11,
            },
        ),
    ];
    for (line, bytes, expected) in table {
        assert_eq!(decode(bytes), Some((expected, bytes.len() as u8)), "{line}");
    }
}

/// The same for INVLPG, whose operand is an address.
#[test]
fn the_assemblers_addresses_are_computed() {
    let r = content;
    let table: [(&str, &[u8], u64); 7] = [
        ("(%rdi)", &[0x0f, 0x01, 0x3f], r(Gpr::Rdi)),
        (
            "-8(%rbp)",
            &[0x0f, 0x01, 0x7d, 0xf8],
            r(Gpr::Rbp).wrapping_sub(8),
        ),
        (
            "0x12345678(%r13,%r12,8)",
            &[0x43, 0x0f, 0x01, 0xbc, 0xe5, 0x78, 0x56, 0x34, 0x12],
            r(Gpr::R13)
                .wrapping_add(r(Gpr::R12) << 3)
                .wrapping_add(0x1234_5678),
        ),
        (
            "%gs:0x40",
            &[0x65, 0x0f, 0x01, 0x3c, 0x25, 0x40, 0, 0, 0],
            GS_BASE + 0x40,
        ),
        (
            "%fs:(%rsp,%rbx,2)",
            &[0x64, 0x0f, 0x01, 0x3c, 0x5c],
            FS_BASE
                .wrapping_add(r(Gpr::Rsp))
                .wrapping_add(r(Gpr::Rbx) << 1),
        ),
        (
            "0x1000(%rip)",
            &[0x0f, 0x01, 0x3d, 0, 0x10, 0, 0],
            RIP + 7 + 0x1000,
        ),
        (
            "(%ecx)",
            &[0x67, 0x0f, 0x01, 0x39],
            r(Gpr::Rcx) & 0xffff_ffff,
        ),
    ];
    for (operand, bytes, expected) in table {
        let Some((Privileged::Invlpg(memory), len)) = decode(bytes) else {
            panic!("invlpg {operand}");
        };
        assert_eq!(usize::from(len), bytes.len(), "{operand}");
        let address = memory.address(content, RIP + u64::from(len), FS_BASE, GS_BASE);
        assert_eq!(address, expected, "{operand}");
    }
}

/// Every opcode of one and two bytes with every ModRM byte: none is overlooked, none is taken for
/// another.
#[test]
fn all_opcodes_agree() {
    let tail = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x08];
    for prefix in [
        &[][..],
        &[0x66],
        &[0xf2],
        &[0xf3],
        &[0x48],
        &[0x45],
        &[0x67],
        &[0x64],
        &[0xf0],
    ] {
        for escape in [&[][..], &[0x0f]] {
            for opcode in 0..=u8::MAX {
                for modrm in 0..=u8::MAX {
                    compare(&[prefix, escape, &[opcode, modrm], &tail].concat());
                }
            }
        }
    }
}

/// Every way to write INVLPG's operand: all ModRM and SIB bytes, with and without REX.
#[test]
fn all_memory_operands_agree() {
    for rex in [0x40, 0x41, 0x42, 0x43, 0x4f] {
        for modrm in (0..=u8::MAX).filter(|modrm| (modrm >> 3) & 7 == 7) {
            for sib in 0..=u8::MAX {
                for segment in [0x64, 0x65, 0x2e] {
                    compare(&[
                        segment, rex, 0x0f, 0x01, modrm, sib, 0x80, 0xff, 0x7f, 0x80, 0x12,
                    ]);
                }
                compare(&[
                    0x67, rex, 0x0f, 0x01, modrm, sib, 0xf0, 0xff, 0xff, 0xff, 0xff,
                ]);
            }
        }
    }
}

/// An instruction cut short is none: no byte beyond the slice is guessed.
#[test]
fn truncated_instructions_do_not_decode() {
    let whole = [0x65, 0x67, 0x41, 0x0f, 0x01, 0xbc, 0xc8, 1, 2, 3, 4];
    assert_eq!(
        decode(&whole).map(|(_, len)| usize::from(len)),
        Some(whole.len())
    );
    for len in 0..whole.len() {
        assert_eq!(decode(&whole[..len]), None);
    }
}

/// SDM, "Interrupt 13": an instruction has 15 bytes at most, prefixes included.
#[test]
fn fifteen_bytes_are_the_limit() {
    let mut bytes = [0x2e; 20];
    bytes[MAX_LENGTH - 1] = 0xf4;
    assert_eq!(decode(&bytes), Some((Privileged::Hlt, 15)));
    bytes[MAX_LENGTH - 1] = 0x2e;
    bytes[MAX_LENGTH] = 0xf4;
    assert_eq!(decode(&bytes), None);
}

/// These are left to the Guest's #GP handler, on purpose.
#[test]
fn what_is_not_emulated_does_not_decode() {
    let table: [(&str, &[u8]); 16] = [
        ("lgdt [rax]", &[0x0f, 0x01, 0x10]),
        ("lidt [rax]", &[0x0f, 0x01, 0x18]),
        ("sgdt [rax]", &[0x0f, 0x01, 0x00]),
        ("sidt [rax]", &[0x0f, 0x01, 0x08]),
        ("smsw eax", &[0x0f, 0x01, 0xe0]),
        ("lmsw ax", &[0x0f, 0x01, 0xf0]),
        ("sldt eax", &[0x0f, 0x00, 0xc0]),
        ("str eax", &[0x0f, 0x00, 0xc8]),
        ("lldt ax", &[0x0f, 0x00, 0xd0]),
        ("ltr ax", &[0x0f, 0x00, 0xd8]),
        ("invd", &[0x0f, 0x08]),
        ("insb", &[0x6c]),
        ("outsd", &[0x6f]),
        ("iretq", &[0x48, 0xcf]),
        ("sysretq", &[0x48, 0x0f, 0x07]),
        ("mov rax, cr1", &[0x0f, 0x20, 0xc8]),
    ];
    for (name, bytes) in table {
        assert_eq!(decode(bytes), None, "{name}");
    }
}

fn any_code() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(vec![
        0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x40, 0x41, 0x42, 0x44,
        0x48, 0x4d, 0x4f,
    ]);
    let opcode = prop::sample::select(vec![
        &[0xf4][..],
        &[0xfa],
        &[0xfb],
        &[0xe4],
        &[0xe5],
        &[0xe6],
        &[0xe7],
        &[0xec],
        &[0xed],
        &[0xee],
        &[0xef],
        &[0x0f, 0x01],
        &[0x0f, 0x06],
        &[0x0f, 0x09],
        &[0x0f, 0x20],
        &[0x0f, 0x21],
        &[0x0f, 0x22],
        &[0x0f, 0x23],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f],
        &[],
    ]);
    let prefixes = prop::collection::vec(prefix, 0..5);
    let tail = prop::collection::vec(any::<u8>(), 0..12);
    (prefixes, opcode, tail)
        .prop_map(|(prefixes, opcode, tail)| [&prefixes, opcode, &tail].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16384))]

    #[test]
    fn likely_bytes_agree(code in any_code()) {
        compare(&code);
    }

    #[test]
    fn random_bytes_agree(code in prop::collection::vec(any::<u8>(), 0..20)) {
        compare(&code);
    }
}

#[test]
fn int80_is_known_with_its_prefixes() {
    for (bytes, length) in [
        (&[0xcd, 0x80, 0x90][..], Some(2)),
        (&[0x66, 0xcd, 0x80], Some(3)),
        (&[0x2e, 0x67, 0x48, 0xcd, 0x80], Some(5)),
        (&[0xcd, 0x81], None),
        (&[0xcc, 0x80], None),
        (&[0x90, 0xcd, 0x80], None),
        (&[0xcd], None),
        (&[], None),
    ] {
        assert_eq!(lg_core::emulate::int80_length(bytes), length, "{bytes:x?}");
    }
    // An instruction has 15 bytes at most.
    let mut long = [0x66; 16];
    long[14..].copy_from_slice(&[0xcd, 0x80]);
    assert_eq!(lg_core::emulate::int80_length(&long), None);
}

#[test]
fn no_port_answers() {
    assert_eq!(Port::Immediate(0xfe).number(0x1234), 0xfe);
    assert_eq!(Port::Dx.number(0x1234), 0x1234);
    for number in 0..=u16::MAX {
        let expected = if (0x40..0x44).contains(&number) {
            0
        } else {
            u32::MAX
        };
        assert_eq!(read_port(number), expected, "port {number:#x}");
    }
}
