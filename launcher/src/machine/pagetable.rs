// SPDX-License-Identifier: GPL-2.0
//! What an address is in page tables: the Guest's own, entry by entry, beside those that the CPU walks for it; and what
//! would happen there.

#![forbid(unsafe_code)]

use std::fmt::{self, Display};

use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{self, error, Access, TableMemory, WalkError};
use lguest_abi::{LGUEST_MONITOR_CODE, LGUEST_MONITOR_FIRST, LGUEST_SHARED_VA};
use serde::{Deserialize, Serialize};

use crate::machine::module::Way;

/// The levels of the Guest's tables, whatever the Host's are.
const LEVELS: u8 = 4;
/// The top-level entry behind which the switcher is, on a Host of so many levels too.
const SWITCHER_SLOT: usize = 271;
/// The pages of the slot of shared pages that are mapped, one for each vCPU.
const SHARED_PAGES: u64 = lguest_abi::LGUEST_MAX_VCPUS as u64;

/// The Guest's two modes, in the order of everything here.
const MODES: [&str; 2] = ["kernel mode", "user mode"];
/// The accesses, likewise.
const ACCESSES: [&str; 3] = ["read", "write", "fetch"];

/// An address in the tables of a Guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageTable {
    gva: u64,
    cr3: u64,
    /// From the top, up to the first that leads no further.
    entries: Vec<Entry>,
    /// If it is known.
    shadow: Option<Shadow>,
    /// For each mode a read, a write and a fetch.
    outcomes: [[Outcome; 3]; 2],
}

/// The way in the tables that the CPU walks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shadow {
    levels: usize,
    /// For kernel mode and user mode.
    ways: [Way; 2],
}

impl Shadow {
    /// The levels that a way has room for.
    fn levels(&self) -> usize {
        self.levels.min(self.ways[0].len())
    }
}

/// An entry of the Guest's tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    level: u8,
    /// The table that it is in.
    table: u64,
    index: usize,
    /// None outside of RAM.
    entry: Option<u64>,
}

/// What comes of an access.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// The CPU does it by itself. The address is not known where the Guest's tables say something else by now.
    Through(Option<u64>),
    /// It is an exit, at which the shadow is filled.
    Fills {
        gpa: u64,
        /// Bits that are set in the Guest's entries, as the CPU would.
        marks: u64,
    },
    /// It is an exit to lg, for there is no RAM.
    Device(u64),
    /// The Guest gets #PF.
    Fault(u32),
    /// The Guest gets #GP.
    Protection,
    /// The Guest is killed.
    Killed,
    /// The page that Guest and Host share, which is mapped when it is missed.
    Shared,
}

impl PageTable {
    /// What `gva` is in the tables at `cr3` in `memory`.
    pub fn look(memory: &impl TableMemory, cr3: u64, gva: u64) -> Self {
        let (root, address) = (Gpa::new(cr3 & paging::ADDR), Gva::new(gva));
        let entries = entries(memory, root, address);
        let outcome = |user, write, fetch| {
            let access = Access { write, fetch, user };
            let found = paging::walk_quiet(memory, root, address, access);
            special(address, access).unwrap_or_else(|| match found {
                Ok(page) => {
                    let gpa = page.gpa.get() | address.offset();
                    match memory.read_pte(page.gpa) {
                        Some(_) => Outcome::Fills {
                            gpa,
                            marks: marks(&entries, write),
                        },
                        None => Outcome::Device(gpa),
                    }
                }
                Err(WalkError::Fault(code)) => Outcome::Fault(code),
                Err(WalkError::NotCanonical) => Outcome::Protection,
                Err(WalkError::TableOutside(_)) => Outcome::Killed,
                Err(WalkError::Contended) => unreachable!("nothing is marked"),
            })
        };
        let of_mode = |user| {
            let read = outcome(user, false, false);
            [read, outcome(user, true, false), outcome(user, false, true)]
        };
        Self {
            gva,
            cr3: root.get(),
            outcomes: [of_mode(false), of_mode(true)],
            entries,
            shadow: None,
        }
    }

    /// The same, with the shadow's ways for kernel mode and user mode on a Host of so many levels.
    pub fn beside(mut self, ways: [Way; 2], levels: u32) -> Self {
        let shadow = Shadow {
            levels: levels as usize,
            ways,
        };
        let levels = shadow.levels();
        for (outcomes, way) in self.outcomes.iter_mut().zip(&ways) {
            for (access, outcome) in outcomes.iter_mut().enumerate() {
                if permits(&way[..levels], access) {
                    let gpa = match outcome {
                        Outcome::Fills { gpa, .. } => Some(*gpa),
                        _ => None,
                    };
                    *outcome = Outcome::Through(gpa);
                }
            }
        }
        self.shadow = Some(shadow);
        self
    }
}

/// The entries on the way, up to the first that leads no further.
fn entries(memory: &impl TableMemory, root: Gpa, gva: Gva) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut table = root.get();
    for level in (1..=LEVELS).rev() {
        let index = gva.index(level);
        let entry = memory.read_pte(Gpa::new(table | ((index as u64) << 3)));
        entries.push(Entry {
            level,
            table,
            index,
            entry,
        });
        match entry {
            Some(entry) if entry & paging::P != 0 && !maps(entry, level) => {
                table = entry & paging::ADDR;
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

/// The bits that a write or another access sets in the entries on the way, and that are not set in all of them.
fn marks(entries: &[Entry], write: bool) -> u64 {
    let values = entries.iter().filter_map(|entry| entry.entry);
    let all = values.clone().fold(!0, |all, entry| all & entry);
    let leaf = values.last().unwrap_or(0);
    let dirty = if write { !leaf & paging::D } else { 0 };
    !all & paging::A | dirty
}

/// What lg.ko does at an address of which the Guest's tables have no say.
fn special(gva: Gva, access: Access) -> Option<Outcome> {
    if access.user || !gva.is_canonical() {
        return None;
    }
    let behind = gva.page().get().wrapping_sub(LGUEST_SHARED_VA as u64) >> 12;
    match gva.index(LEVELS) {
        SWITCHER_SLOT => Some(Outcome::Killed),
        _ if behind < SHARED_PAGES && access.fetch => Some(Outcome::Fault(error::P | error::I)),
        _ if behind < SHARED_PAGES => Some(Outcome::Shared),
        _ => None,
    }
}

/// Does the CPU get to the end of this way, with all rights for this access? The Guest always runs as a user.
fn permits(way: &[u64], access: usize) -> bool {
    let needed = paging::P | paging::U | if access == 1 { paging::W } else { 0 };
    let refused = if access == 2 { paging::NX } else { 0 };
    for (left, entry) in way
        .iter()
        .enumerate()
        .map(|(i, entry)| (way.len() - i, entry))
    {
        if entry & needed != needed || entry & refused != 0 {
            return false;
        }
        if left > 1 && entry & paging::PS != 0 {
            return true;
        }
    }
    true
}

/// The flags of a present entry in words; of one that does not map a page, those that the CPU looks at.
fn flags(entry: u64, page: bool, level: u8) -> String {
    let names = [
        (paging::P, "present", true),
        (paging::W, "writable", true),
        (paging::U, "user", true),
        (paging::PWT, "write-through", true),
        (paging::PCD, "uncached", true),
        (paging::A, "accessed", true),
        (paging::D, "dirty", page),
        (paging::PS, if level == 1 { "PAT" } else { "huge" }, page),
        (paging::G, "global", page),
        (paging::NX, "no execute", true),
    ];
    let set = names
        .iter()
        .filter(|(bit, _, here)| *here && entry & bit != 0);
    let set: Vec<_> = set.map(|(_, name, _)| *name).collect();
    set.join(", ")
}

/// The bits of an error code in words.
fn fault(code: u32) -> String {
    let name = |bit, set, clear| if code & bit != 0 { set } else { clear };
    let access = match (code & error::W != 0, code & error::I != 0) {
        (_, true) => "fetch",
        (true, _) => "write",
        (false, _) => "read",
    };
    let what = match code & error::RSVD != 0 {
        true => "a reserved bit is set",
        false => name(error::P, "not allowed", "not present"),
    };
    format!("{what}, {access}, {}", name(error::U, "user", "kernel"))
}

impl Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self {
            level,
            table,
            index,
            entry,
        } = self;
        // Whoever has sent it may have made it up.
        let at = table.wrapping_add((index as u64).wrapping_mul(8));
        let Some(entry) = entry else {
            return write!(f, "{at:#x}: not in the guest's RAM");
        };
        write!(f, "{at:#x}: {entry:#x}, ")?;
        if entry & paging::P == 0 {
            return write!(f, "not present");
        }
        let page = maps(entry, level);
        let address = entry & paging::ADDR;
        match page {
            // Bit 12 is no address there.
            true if (2..LEVELS).contains(&level) => {
                let address = address & !((1 << (12 + 9 * (level - 1))) - 1);
                write!(f, "page {address:#x}: ")?;
            }
            true => write!(f, "page {address:#x}: ")?,
            false => write!(f, "table {address:#x}: ")?,
        }
        write!(f, "{}", flags(entry, page, level))
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Through(Some(gpa)) => write!(f, "goes through to {gpa:#x}"),
            Self::Through(None) => {
                write!(
                    f,
                    "goes through, for the shadow has it and nothing was flushed"
                )
            }
            Self::Fills { gpa, marks } => {
                let bits = match (marks & paging::A != 0, marks & paging::D != 0) {
                    (true, true) => "sets accessed and dirty, and ",
                    (true, false) => "sets accessed, and ",
                    (false, true) => "sets dirty, and ",
                    (false, false) => "",
                };
                write!(f, "exit: lg.ko {bits}fills the shadow, for {gpa:#x}")
            }
            Self::Device(gpa) => {
                write!(f, "exit: {gpa:#x} is not RAM, so it is for lg's devices")
            }
            Self::Fault(code) => {
                let bits = fault(code);
                write!(f, "exit: the guest gets #PF, error {code:#x} ({bits})")
            }
            Self::Protection => write!(f, "the guest gets #GP: not canonical"),
            Self::Killed => write!(f, "exit: the guest is killed"),
            Self::Shared => write!(f, "exit: lg.ko maps the page that guest and host share"),
        }
    }
}

impl Display for PageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gva, cr3, .. } = self;
        writeln!(
            f,
            "{gva:#x}, in the guest's tables at {cr3:#x}, and in the shadow:"
        )?;
        let slot = Gva::new(*gva).index(LEVELS) as u32;
        if (LGUEST_MONITOR_FIRST..=LGUEST_MONITOR_CODE).contains(&slot) {
            let whose = "(a monitor's, as a kernel by Xen's ABI has one, has tables of its own)";
            writeln!(f, "{whose}")?;
        }
        let levels = self.shadow.as_ref().map_or(0, Shadow::levels);
        for level in (1..=levels.max(LEVELS.into()) as u8).rev() {
            self.level(f, level, levels)?;
        }
        writeln!(f, "what would happen:")?;
        for (mode, outcomes) in MODES.iter().zip(&self.outcomes) {
            for (access, outcome) in ACCESSES.iter().zip(outcomes) {
                writeln!(f, "  {mode:<11}  {access:<5}  {outcome}")?;
            }
        }
        Ok(())
    }
}

impl PageTable {
    /// A level: the Guest's entry, and those of the shadow, as far as they go.
    fn level(&self, f: &mut fmt::Formatter<'_>, level: u8, levels: usize) -> fmt::Result {
        let guest = self.entries.iter().find(|entry| entry.level == level);
        let entry = |way: &Way| {
            let here = levels.checked_sub(level.into())?;
            let leads =
                |&(_, entry): &(usize, &u64)| entry & paging::P != 0 && entry & paging::PS == 0;
            let above = way.iter().enumerate().take(here);
            above.clone().all(|entry| leads(&entry)).then(|| way[here])
        };
        let shadow = self.shadow.as_ref();
        let shadow = shadow.map(|shadow| shadow.ways.each_ref().map(entry));
        let shadow = shadow.filter(|entries| entries.iter().any(Option::is_some));
        if guest.is_none() && shadow.is_none() {
            return Ok(());
        }
        match guest {
            Some(entry) => writeln!(f, "  level {level}, index {}", entry.index)?,
            None => writeln!(f, "  level {level}")?,
        }
        if let Some(entry) = guest {
            writeln!(f, "    guest's entry at {entry}")?;
        }
        for (mode, entry) in MODES.iter().zip(shadow.into_iter().flatten()) {
            let words = match entry {
                None => continue,
                Some(entry) if entry & paging::P == 0 => "not present".into(),
                Some(entry) => flags(entry, level == 1 || entry & paging::PS != 0, level),
            };
            writeln!(f, "    shadow, {mode}: {words}")?;
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

    /// Tables at 0x1000 that map 0x40_2000 to 0x7000, for reading in both modes, 0x60_0000 as a large page and
    /// 0x80_0000 to a device.
    fn ram() -> Ram {
        let table = paging::P | paging::W | paging::U | paging::A;
        Ram(HashMap::from([
            (0x1000, 0x2000 | table),
            (0x2000, 0x3000 | table),
            (0x3010, 0x4000 | table),
            (0x3018, 0x80_0000 | paging::P | paging::W | paging::PS),
            (0x3020, (1 << 31) | table | paging::D | paging::PS),
            (0x4010, 0x7000 | paging::P | paging::U | paging::NX),
            (0x1ff8, (1 << 40) | table),
        ]))
    }

    fn lines(table: PageTable) -> Vec<String> {
        // As it comes over a socket.
        let table = serde_json::to_string(&table).unwrap();
        let table: PageTable = serde_json::from_str(&table).unwrap();
        table.to_string().lines().map(str::to_owned).collect()
    }

    fn look(gva: u64) -> Vec<String> {
        lines(PageTable::look(&ram(), 0x1000, gva))
    }

    #[test]
    fn a_page_is_found() {
        let lines = look(0x40_2008);
        assert_eq!(lines.len(), 1 + 4 * 2 + 1 + 6);
        assert_eq!(lines[1], "  level 4, index 0");
        assert_eq!(
            lines[2],
            "    guest's entry at 0x1000: 0x2027, table 0x2000: present, writable, user, accessed"
        );
        assert_eq!(lines[7], "  level 1, index 2");
        assert_eq!(
            lines[8],
            "    guest's entry at 0x4010: 0x8000000000007005, page 0x7000: present, user, no execute"
        );
        assert_eq!(
            lines[10..],
            [
                "  kernel mode  read   exit: lg.ko sets accessed, and fills the shadow, for 0x7008",
                "  kernel mode  write  exit: the guest gets #PF, error 0x3 (not allowed, write, kernel)",
                "  kernel mode  fetch  exit: the guest gets #PF, error 0x11 (not allowed, fetch, kernel)",
                "  user mode    read   exit: lg.ko sets accessed, and fills the shadow, for 0x7008",
                "  user mode    write  exit: the guest gets #PF, error 0x7 (not allowed, write, user)",
                "  user mode    fetch  exit: the guest gets #PF, error 0x15 (not allowed, fetch, user)",
            ]
        );
    }

    #[test]
    fn large_pages_and_dead_ends() {
        let large = look(0x60_1234);
        assert_eq!(
            large[6],
            "    guest's entry at 0x3018: 0x800083, page 0x800000: present, writable, huge"
        );
        let write = "  kernel mode  write  exit: lg.ko sets accessed and dirty, and fills the shadow, for 0x801234";
        assert_eq!(large[9], write);
        let device = look(0x80_0010);
        assert!(
            device[8].ends_with("0x80000010 is not RAM, so it is for lg's devices"),
            "{device:?}"
        );
        let absent = look(0x123_4567_8000);
        assert!(absent[2].ends_with("0x0, not present"), "{absent:?}");
        assert!(
            absent[4].ends_with("error 0x0 (not present, read, kernel)"),
            "{absent:?}"
        );
        let outside = look(0xffff_ffff_8000_0000);
        assert!(
            outside[4].ends_with("not in the guest's RAM"),
            "{outside:?}"
        );
        assert!(
            outside[6].ends_with("read   exit: the guest is killed"),
            "{outside:?}"
        );
        let not_canonical = look(1 << 47);
        let protection = "  kernel mode  read   the guest gets #GP: not canonical";
        assert!(
            not_canonical.iter().any(|line| line == protection),
            "{not_canonical:?}"
        );
    }

    #[test]
    fn places_of_lgs_own() {
        let shared = look(LGUEST_SHARED_VA as u64 + 8);
        let starts = |line: &str| shared.iter().any(|found| found.starts_with(line));
        assert!(
            starts("  kernel mode  read   exit: lg.ko maps the page that"),
            "{shared:?}"
        );
        assert!(
            starts("  kernel mode  fetch  exit: the guest gets #PF, error 0x11"),
            "{shared:?}"
        );
        assert!(shared[1].contains("monitor"), "{shared:?}");
        let switcher = look(0xffff_8780_0000_0000);
        assert!(
            switcher.contains(&"  kernel mode  write  exit: the guest is killed".to_string()),
            "{switcher:?}"
        );
    }

    #[test]
    fn the_shadow_is_beside_it() {
        let leaf = paging::P | paging::U | paging::A;
        let way = [leaf | paging::W, leaf, leaf, leaf | paging::NX, 0];
        let table = PageTable::look(&ram(), 0x1000, 0x40_2008);
        let lines = lines(table.beside([way, [0; 5]], 4));
        assert_eq!(
            lines[3..5],
            [
                "    shadow, kernel mode: present, writable, user, accessed",
                "    shadow, user mode: not present",
            ]
        );
        let last = "    shadow, kernel mode: present, user, accessed, no execute";
        assert_eq!(lines[13], last);
        assert_eq!(lines[14], "what would happen:");
        assert_eq!(lines[15], "  kernel mode  read   goes through to 0x7008");
        assert!(lines[16].contains("#PF, error 0x3"), "{lines:?}");
        assert!(lines[18].contains("fills the shadow"), "{lines:?}");
    }

    #[test]
    fn a_host_of_five_levels_has_one_more() {
        let leaf = paging::P | paging::U | paging::A | paging::W;
        let table = PageTable::look(&ram(), 0x1000, 0x60_1234);
        let lines = lines(table.beside([[leaf; 5], [leaf, leaf, leaf, leaf, 0]], 5));
        assert_eq!(lines[1], "  level 5");
        assert_eq!(
            lines[2],
            "    shadow, kernel mode: present, writable, user, accessed"
        );
        // The shadow has small pages only.
        assert!(lines.iter().any(|line| line == "  level 1"), "{lines:?}");
        assert!(lines.contains(&"  kernel mode  write  goes through to 0x801234".to_string()));
        assert!(lines.contains(&"    shadow, user mode: not present".to_string()));
    }

    #[test]
    fn what_was_not_flushed_goes_through() {
        let leaf = paging::P | paging::U;
        let table = PageTable::look(&ram(), 0x1000, 0x123_4567_8000);
        let lines = lines(table.beside([[leaf; 5], [0; 5]], 4));
        assert!(
            lines.contains(
                &"  kernel mode  read   goes through, for the shadow has it and nothing was flushed"
                    .to_string()
            ),
            "{lines:?}"
        );
    }
}
