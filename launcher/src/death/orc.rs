// SPDX-License-Identifier: GPL-2.0
//! A kernel's ORC tables (`linux:Documentation/arch/x86/orc-unwinder.rst`): for each piece of its code, where the
//! caller's stack pointer, frame pointer and return address are. `linux:arch/x86/include/asm/orc_types.h` has the
//! format, of Linux 6.4 and later.
//!
//! Like all of the file they are in, they may be anybody's. What makes no sense is no table, and a rule is only ever
//! one more guess about memory.

use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};
use object::LittleEndian;

/// The register that an address begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// RSP of this frame.
    Sp,
    /// What RSP points to.
    SpIndirect,
    /// RBP of this frame.
    Bp,
    /// What is at an offset from RBP.
    BpIndirect,
    /// RAX, RDX, RDI, R10 or R13, which code that changes stacks keeps it in: its offset in a `struct pt_regs`.
    Saved(u64),
}

/// The way to the frame pointer of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bp {
    /// It has not changed.
    Kept,
    /// It is saved at an offset from the caller's RSP,
    FromSp(i16),
    /// or from this frame's RBP.
    FromFrame(i16),
}

/// What is found at the caller's RSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The return address, right below.
    Call,
    /// A `struct pt_regs`.
    Regs,
    /// The last five words of one.
    RegsPartial,
}

/// The rule for a piece of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nobody called it.
    End,
    /// The way to its caller.
    Caller {
        /// The caller's RSP, as what it begins with,
        base: Base,
        /// and bytes on from there.
        offset: i16,
        /// The caller's RBP.
        bp: Bp,
        /// What is there.
        kind: Kind,
    },
}

/// The size of a rule in the file.
const RULE: usize = 6;

/// The tables of a kernel.
#[derive(Debug, Default)]
pub struct Orc {
    /// Where each rule begins to hold, in order.
    starts: Vec<u64>,
    rules: Vec<[u8; RULE]>,
}

impl Orc {
    /// Those in the bytes of an ELF file; empty if it has none that make sense.
    pub fn parse(elf: &[u8]) -> Self {
        tables(elf).unwrap_or_default()
    }

    /// Is there no rule at all?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rule for the code at `ip`.
    pub fn rule(&self, ip: u64) -> Option<Rule> {
        let after = self.starts.partition_point(|&start| start <= ip);
        let bytes = self.rules.get(after.checked_sub(1)?)?;
        decode(bytes)
    }
}

fn tables(elf: &[u8]) -> Option<Orc> {
    let header = FileHeader64::<LittleEndian>::parse(elf).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, elf).ok()?;
    // Older tables look alike, but for a bit or two.
    sections.section_by_name(endian, b".orc_header")?;
    let (_, ips) = sections.section_by_name(endian, b".orc_unwind_ip")?;
    let (_, rules) = sections.section_by_name(endian, b".orc_unwind")?;
    let (at, ips) = (ips.sh_addr(endian), ips.data(endian, elf).ok()?);
    let rules = rules.data(endian, elf).ok()?.chunks_exact(RULE);
    let rules: Vec<[u8; RULE]> = rules.filter_map(|rule| rule.try_into().ok()).collect();
    let start = |(index, distance): (u64, &[u8])| {
        let distance = i32::from_le_bytes(distance.try_into().expect("4 of them"));
        let place = at.wrapping_add(index * 4);
        place.wrapping_add_signed(distance.into())
    };
    let starts: Vec<u64> = (0..).zip(ips.chunks_exact(4)).map(start).collect();
    let whole = starts.is_sorted() && starts.len() == rules.len();
    whole.then_some(Orc { starts, rules })
}

/// The rule that six bytes stand for, if it can be followed.
fn decode(bytes: &[u8; RULE]) -> Option<Rule> {
    let [s0, s1, b0, b1, registers, flags] = *bytes;
    let kind = match flags & 7 {
        1 => return Some(Rule::End),
        2 => Kind::Call,
        3 => Kind::Regs,
        4 => Kind::RegsPartial,
        _ => return None,
    };
    let base = match registers & 15 {
        1 => Base::Saved(80),
        2 => Base::Saved(96),
        3 => Base::Sp,
        4 => Base::Bp,
        5 => Base::Saved(112),
        6 => Base::Saved(56),
        7 => Base::Saved(16),
        9 => Base::SpIndirect,
        10 => Base::BpIndirect,
        _ => return None,
    };
    let bp_offset = i16::from_le_bytes([b0, b1]);
    let bp = match registers >> 4 {
        0 => Bp::Kept,
        4 => Bp::FromFrame(bp_offset),
        8 => Bp::FromSp(bp_offset),
        _ => return None,
    };
    Some(Rule::Caller {
        base,
        offset: i16::from_le_bytes([s0, s1]),
        bp,
        kind,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tables with these rules.
    pub(in crate::death) fn orc(rules: &[(u64, [u8; RULE])]) -> Orc {
        Orc {
            starts: rules.iter().map(|(start, _)| *start).collect(),
            rules: rules.iter().map(|(_, rule)| *rule).collect(),
        }
    }

    #[test]
    fn rules_hold_up_to_the_next() {
        let orc = orc(&[
            (0x1000, [8, 0, 0, 0, 0x03, 2]),
            (0x1001, [16, 0, 0xf0, 0xff, 0x83, 2]),
            (0x2000, [0, 0, 0, 0, 0, 0]),
        ]);
        let caller = |offset, bp| {
            Some(Rule::Caller {
                base: Base::Sp,
                offset,
                bp,
                kind: Kind::Call,
            })
        };
        assert_eq!(orc.rule(0xfff), None);
        assert_eq!(orc.rule(0x1000), caller(8, Bp::Kept));
        assert_eq!(orc.rule(0x1fff), caller(16, Bp::FromSp(-16)));
        assert_eq!(orc.rule(u64::MAX), None);
        assert_eq!(Orc::default().rule(0), None);
    }

    #[test]
    fn bytes_and_their_meaning() {
        let caller = |bytes| match decode(&bytes) {
            Some(Rule::Caller { base, kind, .. }) => Some((base, kind)),
            _ => None,
        };
        assert_eq!(decode(&[0, 0, 0, 0, 0, 1]), Some(Rule::End));
        assert_eq!(caller([0, 0, 0, 0, 0x03, 3]), Some((Base::Sp, Kind::Regs)));
        assert_eq!(
            caller([0, 0, 0, 0, 0x07, 4]),
            Some((Base::Saved(16), Kind::RegsPartial))
        );
        // The bit behind the kind is of no interest.
        assert_eq!(
            caller([0, 0, 0, 0, 0x0a, 10]),
            Some((Base::BpIndirect, Kind::Call))
        );
        for bad in [
            [0, 0, 0, 0, 0x03, 5],
            [0, 0, 0, 0, 0x0b, 2],
            [0, 0, 0, 0, 0x13, 2],
        ] {
            assert_eq!(decode(&bad), None);
        }
    }

    proptest! {
        #[test]
        fn any_file_is_read(bytes: Vec<u8>, ip: u64) {
            Orc::parse(&bytes).rule(ip);
        }
    }
}
