// SPDX-License-Identifier: GPL-2.0
//! What an address is in page tables: the Guest's own, entry by entry, beside those that the CPU walks for it; and what
//! would happen there.

#![forbid(unsafe_code)]

use std::fmt::{self, Display};

use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{self, Access, TableMemory, WalkError};

/// The entries of the shadow for one of the Guest's modes, from the top. 0 ends it.
pub type Way = [u64; 5];

/// The levels of the Guest's tables, whatever the Host's are.
const LEVELS: u8 = 4;

/// An address in the tables of a Guest.
#[derive(Debug)]
pub struct PageTable {
    gva: Gva,
    root: Gpa,
    /// Where each entry is, and what it is. None is outside of RAM.
    entries: Vec<(Gpa, Option<u64>)>,
    /// For kernel mode and user mode; in each for a read, a write and a fetch.
    outcomes: [[Result<u64, WalkError>; 3]; 2],
    /// For kernel mode and user mode, if they are known.
    shadow: Option<[Way; 2]>,
    /// The levels of the shadow's tables.
    shadow_levels: usize,
}

impl PageTable {
    /// What `gva` is in the tables at `cr3` in `memory`, and in the shadow.
    pub fn look(memory: &impl TableMemory, cr3: u64, gva: u64) -> Self {
        let (root, gva) = (Gpa::new(cr3 & paging::ADDR), Gva::new(gva));
        let outcome = |user, write, fetch| {
            let access = Access { write, fetch, user };
            let found = paging::walk_quiet(memory, root, gva, access);
            found.map(|page| page.gpa.get() | gva.offset())
        };
        let of_mode = |user| {
            let read = outcome(user, false, false);
            [read, outcome(user, true, false), outcome(user, false, true)]
        };
        Self {
            gva,
            root,
            entries: entries(memory, root, gva),
            outcomes: [of_mode(false), of_mode(true)],
            shadow: None,
            shadow_levels: 0,
        }
    }

    /// The same, with the shadow's ways for kernel mode and user mode on a Host of so many levels.
    pub fn beside(self, shadow: [Way; 2], levels: u32) -> Self {
        Self {
            shadow: Some(shadow),
            shadow_levels: (levels as usize).min(shadow[0].len()),
            ..self
        }
    }
}

/// The entries on the way, up to the first that leads no further.
fn entries(memory: &impl TableMemory, root: Gpa, gva: Gva) -> Vec<(Gpa, Option<u64>)> {
    let mut entries = Vec::new();
    let mut table = root;
    for level in (1..=LEVELS).rev() {
        let at = Gpa::new(table.get() | ((gva.index(level) as u64) << 3));
        let entry = memory.read_pte(at);
        entries.push((at, entry));
        match entry {
            Some(entry) if entry & paging::P != 0 && !maps(entry, level) => {
                table = Gpa::new(entry & paging::ADDR);
            }
            _ => break,
        }
    }
    entries
}

/// Does a present entry of this level map a page?
fn maps(entry: u64, level: u8) -> bool {
    level == 1 || entry & paging::PS != 0 && level < LEVELS
}

/// The flags of an entry of this level, by the names of the manual.
fn flags(entry: u64, level: u8) -> String {
    let large = if level == 1 { "PAT" } else { "PS" };
    let names = [
        (paging::P, "P"),
        (paging::W, "W"),
        (paging::U, "U"),
        (paging::PWT, "PWT"),
        (paging::PCD, "PCD"),
        (paging::A, "A"),
        (paging::D, "D"),
        (paging::PS, large),
        (paging::G, "G"),
        (paging::NX, "NX"),
    ];
    let set = names.iter().filter(|(bit, _)| entry & bit != 0);
    let set: Vec<_> = set.map(|(_, name)| *name).collect();
    set.join(" ")
}

fn outcome(outcome: &Result<u64, WalkError>) -> String {
    match outcome {
        Ok(gpa) => format!("{gpa:#x}"),
        Err(WalkError::Fault(code)) => format!("#PF, error {code:#x}"),
        Err(WalkError::NotCanonical) => "#GP".into(),
        Err(WalkError::TableOutside(_)) => "killed".into(),
        Err(WalkError::Contended) => "it changes".into(),
    }
}

impl Display for PageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gva, root, .. } = self;
        writeln!(
            f,
            "{gva} in the tables at {root}, which are the guest's own:"
        )?;
        for ((at, entry), level) in self.entries.iter().zip((1..=LEVELS).rev()) {
            let index = gva.index(level);
            write!(f, "  level {level}, entry {index:3} at {at}: ")?;
            match *entry {
                None => writeln!(f, "not in RAM")?,
                Some(entry) if entry & paging::P == 0 => writeln!(f, "{entry:#x}, not present")?,
                Some(entry) => {
                    let what = if maps(entry, level) { "page" } else { "table" };
                    let address = entry & paging::ADDR;
                    writeln!(f, "{what} {address:#x} {}", flags(entry, level))?;
                }
            }
        }
        writeln!(f, "what they make of it:")?;
        for (mode, outcomes) in ["kernel", "user"].iter().zip(&self.outcomes) {
            let [read, write, fetch] = outcomes.each_ref().map(outcome);
            writeln!(
                f,
                "  {mode:<6} mode: read {read}; write {write}; fetch {fetch}"
            )?;
        }
        let Some(shadow) = &self.shadow else {
            return Ok(());
        };
        writeln!(
            f,
            "the shadow, which the CPU walks and lg.ko fills when it faults:"
        )?;
        for (mode, way) in ["kernel", "user"].iter().zip(shadow) {
            write!(f, "  {mode:<6} mode:")?;
            for (&entry, level) in way.iter().zip((1..=self.shadow_levels as u8).rev()) {
                if entry & paging::P == 0 {
                    write!(f, " level {level}: nothing yet")?;
                    break;
                }
                write!(f, " level {level}: {};", flags(entry, level))?;
                if level > 1 && entry & paging::PS != 0 {
                    break;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Ram(HashMap<u64, u64>);

    impl TableMemory for Ram {
        fn read_pte(&self, at: Gpa) -> Option<u64> {
            (at.get() < 1 << 30).then(|| self.0.get(&at.get()).copied().unwrap_or(0))
        }

        fn update_pte(&self, _: Gpa, _: u64, _: u64) -> bool {
            unreachable!("looking changes nothing")
        }
    }

    /// Tables at 0x1000 that map 0x40_2000 to 0x7000, for reading in both modes, and 0x60_0000 as a large page.
    fn ram() -> Ram {
        let table = paging::P | paging::W | paging::U | paging::A;
        Ram(HashMap::from([
            (0x1000, 0x2000 | table),
            (0x2000, 0x3000 | table),
            (0x3010, 0x4000 | table),
            (0x3018, 0x80_0000 | paging::P | paging::W | paging::PS),
            (0x4010, 0x7000 | paging::P | paging::U | paging::NX),
            (0x1ff8, (1 << 40) | table),
        ]))
    }

    fn lines(gva: u64) -> Vec<String> {
        let text = PageTable::look(&ram(), 0x1000, gva).to_string();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_page_is_found() {
        let lines = lines(0x40_2008);
        assert_eq!(lines.len(), 1 + 4 + 1 + 2);
        assert_eq!(
            lines[1],
            "  level 4, entry   0 at 0x1000: table 0x2000 P W U A"
        );
        assert_eq!(
            lines[4],
            "  level 1, entry   2 at 0x4010: page 0x7000 P U NX"
        );
        assert_eq!(
            lines[6],
            "  kernel mode: read 0x7008; write #PF, error 0x3; fetch #PF, error 0x11"
        );
        assert_eq!(
            lines[7],
            "  user   mode: read 0x7008; write #PF, error 0x7; fetch #PF, error 0x15"
        );
    }

    #[test]
    fn large_pages_and_dead_ends() {
        let large = lines(0x60_1234);
        assert_eq!(
            large[3],
            "  level 2, entry   3 at 0x3018: page 0x800000 P W PS"
        );
        assert!(
            large[5].starts_with("  kernel mode: read 0x801234; write 0x801234"),
            "{large:?}"
        );
        let absent = lines(0x123_4567_8000);
        assert!(absent[1].ends_with("0x0, not present"), "{absent:?}");
        let outside = lines(0xffff_ffff_8000_0000);
        assert!(outside[2].ends_with("not in RAM"), "{outside:?}");
        assert!(outside[4].contains("read killed"), "{outside:?}");
        let not_canonical = lines(1 << 47);
        assert!(
            not_canonical.iter().any(|line| line.contains("read #GP")),
            "{not_canonical:?}"
        );
    }

    #[test]
    fn the_shadow_is_beside_it() {
        let leaf = paging::P | paging::U | paging::A;
        let way = [leaf | paging::W, leaf, leaf, leaf | paging::NX, 0];
        let table = PageTable::look(&ram(), 0x1000, 0x40_2008);
        let text = table.beside([way, [0; 5]], 4).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[9],
            "  kernel mode: level 4: P W U A; level 3: P U A; level 2: P U A; level 1: P U A NX;"
        );
        assert_eq!(lines[10], "  user   mode: level 4: nothing yet");
    }
}
