// SPDX-License-Identifier: GPL-2.0
//! A vCPU's registers, as gdb numbers and sends them.

use gdbstub::arch::{Arch, Registers};
use lguest_abi::{
    lguest_regs, LGUEST_CS_KERNEL, LGUEST_CS_USER64, LGUEST_SS_KERNEL, LGUEST_SS_USER,
};

/// x86-64 as far as the module shows it: no FPU, no segments but CS and SS, the control registers
/// that matter.
pub enum X86_64 {}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = Regs;
    /// Of what length the instruction is that gdb replaces: always 1.
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(DESCRIPTION)
    }
}

/// What [`Regs`] sends, in its order. gdb insists on the whole of its feature "core"; what it does
/// not know it shows besides.
const DESCRIPTION: &str = r#"<?xml version="1.0"?>
<!DOCTYPE target SYSTEM "gdb-target.dtd">
<target version="1.0">
<architecture>i386:x86-64</architecture>
<feature name="org.gnu.gdb.i386.core">
<flags id="eflags" size="4">
<field name="CF" start="0" end="0"/><field name="PF" start="2" end="2"/>
<field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/>
<field name="SF" start="7" end="7"/><field name="TF" start="8" end="8"/>
<field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>
<field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/>
<field name="RF" start="16" end="16"/><field name="AC" start="18" end="18"/>
<field name="ID" start="21" end="21"/>
</flags>
<reg name="rax" bitsize="64" type="int64"/><reg name="rbx" bitsize="64" type="int64"/>
<reg name="rcx" bitsize="64" type="int64"/><reg name="rdx" bitsize="64" type="int64"/>
<reg name="rsi" bitsize="64" type="int64"/><reg name="rdi" bitsize="64" type="int64"/>
<reg name="rbp" bitsize="64" type="data_ptr"/><reg name="rsp" bitsize="64" type="data_ptr"/>
<reg name="r8" bitsize="64" type="int64"/><reg name="r9" bitsize="64" type="int64"/>
<reg name="r10" bitsize="64" type="int64"/><reg name="r11" bitsize="64" type="int64"/>
<reg name="r12" bitsize="64" type="int64"/><reg name="r13" bitsize="64" type="int64"/>
<reg name="r14" bitsize="64" type="int64"/><reg name="r15" bitsize="64" type="int64"/>
<reg name="rip" bitsize="64" type="code_ptr"/><reg name="eflags" bitsize="32" type="eflags"/>
<reg name="cs" bitsize="32" type="int32"/><reg name="ss" bitsize="32" type="int32"/>
<reg name="ds" bitsize="32" type="int32"/><reg name="es" bitsize="32" type="int32"/>
<reg name="fs" bitsize="32" type="int32"/><reg name="gs" bitsize="32" type="int32"/>
<reg name="st0" bitsize="80" type="i387_ext"/><reg name="st1" bitsize="80" type="i387_ext"/>
<reg name="st2" bitsize="80" type="i387_ext"/><reg name="st3" bitsize="80" type="i387_ext"/>
<reg name="st4" bitsize="80" type="i387_ext"/><reg name="st5" bitsize="80" type="i387_ext"/>
<reg name="st6" bitsize="80" type="i387_ext"/><reg name="st7" bitsize="80" type="i387_ext"/>
<reg name="fctrl" bitsize="32" type="int" group="float"/>
<reg name="fstat" bitsize="32" type="int" group="float"/>
<reg name="ftag" bitsize="32" type="int" group="float"/>
<reg name="fiseg" bitsize="32" type="int" group="float"/>
<reg name="fioff" bitsize="32" type="int" group="float"/>
<reg name="foseg" bitsize="32" type="int" group="float"/>
<reg name="fooff" bitsize="32" type="int" group="float"/>
<reg name="fop" bitsize="32" type="int" group="float"/>
</feature>
<feature name="org.gnu.gdb.i386.segments">
<reg name="fs_base" bitsize="64" type="int"/><reg name="gs_base" bitsize="64" type="int"/>
</feature>
<feature name="lg.control">
<reg name="cr2" bitsize="64" type="int64" group="system"/>
<reg name="cr3" bitsize="64" type="int64" group="system"/>
</feature>
</target>"#;

/// Bytes from DS to the end of the FPU's registers, which nobody tells us.
const UNKNOWN: usize = 4 * 4 + 8 * 10 + 8 * 4;

/// The registers of a vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Regs(pub lguest_regs);

impl Regs {
    /// The 64-bit ones that gdb may set, from RAX to RIP.
    fn settable(regs: &mut lguest_regs) -> [&mut u64; 17] {
        [
            &mut regs.rax,
            &mut regs.rbx,
            &mut regs.rcx,
            &mut regs.rdx,
            &mut regs.rsi,
            &mut regs.rdi,
            &mut regs.rbp,
            &mut regs.rsp,
            &mut regs.r8,
            &mut regs.r9,
            &mut regs.r10,
            &mut regs.r11,
            &mut regs.r12,
            &mut regs.r13,
            &mut regs.r14,
            &mut regs.r15,
            &mut regs.rip,
        ]
    }
}

impl Registers for Regs {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.0.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        let mut regs = self.0;
        let mut write = |bytes: &[u8]| bytes.iter().for_each(|&byte| write_byte(Some(byte)));
        for reg in Self::settable(&mut regs) {
            write(&reg.to_le_bytes());
        }
        write(&(regs.rflags as u32).to_le_bytes());
        // The selectors that the Guest's kernel pushes for its two modes.
        let (cs, ss) = if regs.user_mode != 0 {
            (LGUEST_CS_USER64, LGUEST_SS_USER)
        } else {
            (LGUEST_CS_KERNEL, LGUEST_SS_KERNEL)
        };
        write(&cs.to_le_bytes());
        write(&ss.to_le_bytes());
        (0..UNKNOWN).for_each(|_| write_byte(None));
        for reg in [regs.fs_base, regs.gs_base, regs.cr2, regs.cr3] {
            reg.to_le_bytes()
                .into_iter()
                .for_each(|byte| write_byte(Some(byte)));
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut rest = bytes;
        for reg in Self::settable(&mut self.0) {
            let (value, behind) = rest.split_first_chunk().ok_or(())?;
            (*reg, rest) = (u64::from_le_bytes(*value), behind);
        }
        let (rflags, _) = rest.split_first_chunk().ok_or(())?;
        self.0.rflags = u32::from_le_bytes(*rflags).into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(regs: &Regs) -> Vec<Option<u8>> {
        let mut bytes = Vec::new();
        regs.gdb_serialize(|byte| bytes.push(byte));
        bytes
    }

    /// The sum of what the description says.
    #[test]
    fn as_long_as_described() {
        let sizes = DESCRIPTION.split("bitsize=\"").skip(1);
        let bits = sizes.map(|rest| rest.split('"').next().unwrap().parse::<usize>().unwrap());
        assert_eq!(sent(&Regs::default()).len() * 8, bits.sum::<usize>());
    }

    #[test]
    fn where_gdb_looks() {
        let regs = Regs(lguest_regs {
            rbx: 0x1122,
            rip: 0x3344,
            user_mode: 1,
            gs_base: 0x5566,
            ..Default::default()
        });
        let bytes = sent(&regs);
        assert_eq!(bytes[8..10], [Some(0x22), Some(0x11)]);
        assert_eq!(bytes[16 * 8..16 * 8 + 2], [Some(0x44), Some(0x33)]);
        assert_eq!(bytes[17 * 8 + 4], Some(0x33));
        assert_eq!(bytes[17 * 8 + 12..17 * 8 + 12 + UNKNOWN], [None; UNKNOWN]);
        assert_eq!(bytes[17 * 8 + 12 + UNKNOWN + 8], Some(0x66));
        assert_eq!(regs.pc(), 0x3344);
    }

    proptest! {
        #[test]
        fn any_bytes_are_registers_or_too_few(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut regs = Regs::default();
            let taken = regs.gdb_deserialize(&bytes);
            prop_assert_eq!(taken.is_ok(), bytes.len() >= 17 * 8 + 4);
            if taken.is_ok() {
                let sent: Vec<_> = sent(&regs).into_iter().take(17 * 8 + 4).collect();
                let given: Vec<_> = bytes.iter().take(17 * 8 + 4).copied().map(Some).collect();
                prop_assert_eq!(sent, given);
            }
        }
    }
}
