// SPDX-License-Identifier: GPL-2.0
//! The Guest's memory as gdb sees it: by virtual address, and without the breakpoints in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{self, Access, TableMemory};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{Memory, PAGE};

/// INT3.
const BREAKPOINT: u8 = 0xcc;

/// The Guest's page tables, for the walker.
pub struct Tables<'a>(pub &'a Memory);

impl TableMemory for Tables<'_> {
    fn read_pte(&self, at: Gpa) -> Option<u64> {
        self.0.load(GuestAddress(at.get()), Ordering::Relaxed).ok()
    }

    /// gdb's looking leaves no marks.
    fn update_pte(&self, _: Gpa, _: u64, _: u64) -> bool {
        false
    }
}

/// An INT3 of ours.
struct Breakpoint {
    /// The bytes that it has replaced.
    byte: u8,
    /// The virtual addresses at which it is wanted.
    wanted: BTreeSet<u64>,
}

/// RAM, and the breakpoints in it by physical address: a byte has one, however many names it has.
pub struct Debugged {
    memory: Memory,
    breakpoints: BTreeMap<u64, Breakpoint>,
}

impl Debugged {
    /// Without breakpoints.
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            breakpoints: BTreeMap::new(),
        }
    }

    /// Where `gva` is under the tables at `cr3`, whoever may use it there. `None` if it is not
    /// mapped.
    fn translate(&self, cr3: u64, gva: u64) -> Option<u64> {
        let root = Gpa::new(cr3 & paging::ADDR);
        let gva = Gva::new(gva);
        let there = paging::walk_quiet(&Tables(&self.memory), root, gva, Access::default()).ok()?;
        Some(there.gpa.get() | gva.offset())
    }

    /// Reads up to the first byte that is not there; says how many.
    pub fn read(&self, cr3: u64, gva: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        while done < data.len() {
            let at = gva.wrapping_add(done as u64);
            let len = (data.len() - done).min((PAGE - at % PAGE) as usize);
            let piece = &mut data[done..done + len];
            let Some(gpa) = self.translate(cr3, at) else {
                break;
            };
            if self.memory.read_slice(piece, GuestAddress(gpa)).is_err() {
                break;
            }
            for (&at, breakpoint) in self.breakpoints.range(gpa..gpa + len as u64) {
                match byte_at(piece, gpa, at) {
                    Some(byte) if *byte == BREAKPOINT => *byte = breakpoint.byte,
                    // The Guest has put something else there, which shows.
                    _ => {}
                }
            }
            done += len;
        }
        done
    }

    /// Writes all of `data`, also where the Guest may not; `false` if it is not all there.
    pub fn write(&mut self, cr3: u64, gva: u64, data: &[u8]) -> bool {
        let mut done = 0;
        while done < data.len() {
            let at = gva.wrapping_add(done as u64);
            let len = (data.len() - done).min((PAGE - at % PAGE) as usize);
            let mut piece = data[done..done + len].to_vec();
            let Some(gpa) = self.translate(cr3, at) else {
                return false;
            };
            for (&at, breakpoint) in self.breakpoints.range_mut(gpa..gpa + len as u64) {
                if let Some(byte) = byte_at(&mut piece, gpa, at) {
                    breakpoint.byte = std::mem::replace(byte, BREAKPOINT);
                }
            }
            if self.memory.write_slice(&piece, GuestAddress(gpa)).is_err() {
                return false;
            }
            done += len;
        }
        true
    }

    /// Is there a breakpoint of ours at `gva`?
    pub fn is_breakpoint(&self, gva: u64) -> bool {
        let mut all = self.breakpoints.values();
        all.any(|breakpoint| breakpoint.wanted.contains(&gva))
    }

    /// Puts a breakpoint at `gva`; `false` if nothing is mapped there.
    pub fn insert(&mut self, cr3: u64, gva: u64) -> bool {
        let mut byte = [0];
        let gpa = match self.translate(cr3, gva) {
            // Under a breakpoint, it is what that has replaced.
            Some(gpa) if self.read(cr3, gva, &mut byte) == 1 => gpa,
            _ => return false,
        };
        let at = GuestAddress(gpa);
        if self.memory.write_slice(&[BREAKPOINT], at).is_err() {
            return false;
        }
        let [byte] = byte;
        let wanted = BTreeSet::new();
        let new = Breakpoint { byte, wanted };
        let breakpoint = self.breakpoints.entry(gpa).or_insert(new);
        breakpoint.byte = byte;
        breakpoint.wanted.insert(gva);
        true
    }

    /// Takes it away again; `false` if there was none.
    pub fn remove(&mut self, gva: u64) -> bool {
        let mut removed = false;
        let memory = &self.memory;
        // More than one, if page tables have changed in between.
        self.breakpoints.retain(|&gpa, breakpoint| {
            removed |= breakpoint.wanted.remove(&gva);
            if breakpoint.wanted.is_empty() {
                restore(memory, gpa, breakpoint.byte);
            }
            !breakpoint.wanted.is_empty()
        });
        removed
    }

    /// Takes all of them away.
    pub fn remove_all(&mut self) {
        for (gpa, Breakpoint { byte, .. }) in std::mem::take(&mut self.breakpoints) {
            restore(&self.memory, gpa, byte);
        }
    }
}

/// Puts `byte` back where an INT3 of ours is. The Guest may have put something else there meanwhile: a
/// program, where one was before.
fn restore(memory: &Memory, gpa: u64, byte: u8) {
    let at = GuestAddress(gpa);
    if memory
        .read_obj::<u8>(at)
        .is_ok_and(|there| there == BREAKPOINT)
    {
        let _ = memory.write_obj(byte, at);
    }
}

/// The byte of `piece`, which lies at `start`, that lies at `at`.
fn byte_at(piece: &mut [u8], start: u64, at: u64) -> Option<&mut u8> {
    piece.get_mut(usize::try_from(at.checked_sub(start)?).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CR3: u64 = 0x1000;
    /// Two pages that are neighbours here and not in RAM, and a second name of the first.
    const CODE: u64 = 0xffff_ffff_8000_0000;
    const ALIAS: u64 = CODE + 0x10_0000;

    /// RAM with tables that map the pages above, read-only.
    fn debugged() -> Debugged {
        let memory = crate::memory::create(4 << 20).unwrap();
        let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
        put(CR3 + 511 * 8, 0x2001);
        put(0x2000 + 510 * 8, 0x3001);
        put(0x3000, 0x4001);
        put(0x4000, 0x9001);
        put(0x4008, 0x7001);
        put(0x4000 + 256 * 8, 0x9001);
        Debugged::new(memory)
    }

    fn read<const N: usize>(debugged: &Debugged, gva: u64) -> [u8; N] {
        let mut data = [0; N];
        assert_eq!(debugged.read(CR3, gva, &mut data), N);
        data
    }

    fn raw(debugged: &Debugged, gpa: u64) -> u8 {
        debugged.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    #[test]
    fn pages_lie_where_the_tables_say() {
        let mut debugged = debugged();
        assert!(debugged.write(CR3, CODE + 0xffe, &[1, 2, 3, 4]));
        assert_eq!(read(&debugged, CODE + 0xffe), [1, 2, 3, 4]);
        let bytes = [0x9ffe, 0x9fff, 0x7000, 0x7001].map(|gpa| raw(&debugged, gpa));
        assert_eq!(bytes, [1, 2, 3, 4]);
        // The page behind is not there.
        assert_eq!(debugged.read(CR3, CODE + 0x1fff, &mut [0; 2]), 1);
        assert!(!debugged.write(CR3, CODE + 0x1fff, &[0; 2]));
        assert_eq!(debugged.read(CR3, 0, &mut [0; 2]), 0);
        assert_eq!(debugged.read(CR3, u64::MAX, &mut [0; 2]), 0);
    }

    #[test]
    fn breakpoints_do_not_show() {
        let mut debugged = debugged();
        debugged.write(CR3, CODE, &[0x90, 0x91, 0x92]);
        assert!(debugged.insert(CR3, CODE + 1));
        assert!(!debugged.insert(CR3, CODE + 0x2000));
        assert_eq!(read(&debugged, CODE), [0x90, 0x91, 0x92]);
        assert_eq!(raw(&debugged, 0x9001), BREAKPOINT);
        // What is written over one lies under it.
        debugged.write(CR3, CODE, &[0x80, 0x81, 0x82]);
        assert_eq!(raw(&debugged, 0x9001), BREAKPOINT);
        assert!(debugged.remove(CODE + 1));
        assert_eq!(raw(&debugged, 0x9001), 0x81);
        assert!(!debugged.remove(CODE + 1));
    }

    #[test]
    fn one_byte_under_two_names() {
        let mut debugged = debugged();
        debugged.write(CR3, CODE, &[0x90]);
        assert!(debugged.insert(CR3, CODE) && debugged.insert(CR3, ALIAS));
        // What is written over both lies under both, and is read by either name.
        debugged.write(CR3, ALIAS, &[0x91]);
        assert_eq!(raw(&debugged, 0x9000), BREAKPOINT);
        assert_eq!(read(&debugged, CODE), [0x91]);
        assert_eq!(read(&debugged, ALIAS), [0x91]);
        assert!(debugged.is_breakpoint(CODE) && debugged.is_breakpoint(ALIAS));
        assert!(debugged.remove(CODE));
        assert!(!debugged.is_breakpoint(CODE) && debugged.is_breakpoint(ALIAS));
        assert_eq!(raw(&debugged, 0x9000), BREAKPOINT);
        assert_eq!(read(&debugged, ALIAS), [0x91]);
        assert!(debugged.remove(ALIAS) && !debugged.remove(ALIAS));
        assert_eq!(raw(&debugged, 0x9000), 0x91);
    }

    #[test]
    fn a_name_that_moves_leaves_nothing_behind() {
        let mut debugged = debugged();
        debugged.write(CR3, CODE, &[0x90]);
        assert!(debugged.insert(CR3, CODE));
        let other = debugged.translate(CR3, CODE + 0x1000).unwrap();
        debugged
            .memory
            .write_obj(other | 1, GuestAddress(0x4000))
            .unwrap();
        assert!(debugged.insert(CR3, CODE));
        assert!(debugged.remove(CODE));
        assert_eq!([0x9000, other].map(|gpa| raw(&debugged, gpa)), [0x90, 0]);
    }

    #[test]
    fn what_the_guest_wrote_over_a_breakpoint_stays() {
        let mut debugged = debugged();
        debugged.insert(CR3, CODE);
        debugged
            .memory
            .write_obj(7u8, GuestAddress(0x9000))
            .unwrap();
        assert_eq!(read(&debugged, CODE), [7]);
        debugged.remove_all();
        assert_eq!(raw(&debugged, 0x9000), 7);
    }

    proptest! {
        /// Any tables, any address: something or nothing, and never out of RAM.
        #[test]
        fn hostile_tables(entries in prop::collection::vec((0u64..1024, any::<u64>()), 1..40), cr3: u64, gva: u64) {
            let memory = crate::memory::create(4 << 20).unwrap();
            for (slot, value) in entries {
                memory.write_obj(value, GuestAddress(slot * 4096 + slot % 512 * 8)).unwrap();
            }
            let mut debugged = Debugged::new(memory);
            for cr3 in [cr3, cr3 % (4 << 20)] {
                let mut data = [0; 64];
                prop_assert!(debugged.read(cr3, gva, &mut data) <= 64);
                let _ = debugged.write(cr3, gva, &data);
                if debugged.insert(cr3, gva) {
                    prop_assert!(debugged.remove(gva));
                }
            }
        }
    }
}
