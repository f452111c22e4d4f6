// SPDX-License-Identifier: GPL-2.0

//! CPUs that tag what they cache, and forget nothing of it unless they are told to.

use crate::memory::Found;
use lg_core::tags::{Forget, Generations, Now, Slots, Tags};
use std::collections::BTreeMap;

/// Pairs of tags on each: fewer than there are contexts.
const PAIRS: usize = 3;

/// A command that is left out, to see it fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    /// The tag of user mode stays as it is when something of the lower half is gone.
    LowerForUser,
    /// That of kernel mode does.
    LowerForKernel,
    /// That of kernel mode stays as it is when something of the upper half is gone.
    Upper,
    /// A pair of tags that is given to another context stays as it is.
    Another,
    /// The same for another VM's.
    AnotherVm,
    /// Pages of the tag of user mode that go one by one stay.
    PageForUser,
    /// Pages of that of kernel mode do.
    PageForKernel,
}

/// The reasons why something was forgotten, and how often nothing was.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Told {
    pub(crate) nothing: usize,
    pub(crate) upper: usize,
    pub(crate) lower: usize,
    pub(crate) another: usize,
    pub(crate) pages: usize,
}

#[derive(Default)]
pub(crate) struct Cpu {
    slots: Slots<PAIRS>,
    /// Whose each pair of tags is: which VM's, in which seat.
    owners: BTreeMap<u16, (u64, usize)>,
    /// By PCID and page: all that was ever found there.
    tlb: BTreeMap<(u16, u64), Vec<Found>>,
    /// By PCID, the table's level, and the first address that it translates.
    structures: BTreeMap<(u16, u8, u64), Vec<Found>>,
    pub(crate) told: Told,
}

fn add<K: Ord>(to: &mut BTreeMap<K, Vec<Found>>, key: K, found: Found) {
    let all = to.entry(key).or_default();
    if !all.contains(&found) {
        all.push(found);
    }
}

impl Cpu {
    /// A vCPU of `owner` is about to be in the Guest on this CPU.
    pub(crate) fn tags<const N: usize>(
        &mut self,
        owner: (u64, usize),
        (generations, now): (&Generations<N>, &Now),
        hint: &mut Tags,
        fault: Fault,
    ) -> Tags {
        let mut commands = Vec::new();
        let tags = self
            .slots
            .tags(generations, now, hint, |what| commands.push(what));
        assert_eq!(*hint, tags);
        let (kernel, user) = (tags.pcid(false), tags.pcid(true));
        let before = self.owners.insert(kernel, owner);
        let another = before.is_some_and(|before| before != owner);
        let another_vm = before.is_some_and(|before| before.0 != owner.0);
        let lower = commands.contains(&Forget::All(user));
        let all = commands.contains(&Forget::All(kernel));
        let count = match (another, lower, all, commands.is_empty()) {
            (true, ..) => &mut self.told.another,
            (_, true, ..) => &mut self.told.lower,
            (_, _, true, _) => &mut self.told.upper,
            (_, _, _, true) => &mut self.told.nothing,
            _ => &mut self.told.pages,
        };
        *count += 1;
        for command in commands {
            let left_out = match (fault, command) {
                (Fault::LowerForUser, Forget::All(pcid)) => !another && pcid == user,
                (Fault::LowerForKernel, Forget::All(pcid)) => !another && lower && pcid == kernel,
                (Fault::Upper, Forget::All(_)) => !lower,
                (Fault::Another, _) => another && !another_vm,
                (Fault::AnotherVm, _) => another_vm,
                (Fault::PageForUser, Forget::Page(pcid, _)) => pcid == user,
                (Fault::PageForKernel, Forget::Page(pcid, _)) => pcid == kernel,
                _ => false,
            };
            match command {
                _ if left_out => {}
                Forget::All(pcid) => self.forget(pcid),
                Forget::Page(pcid, gva) => drop(self.tlb.remove(&(pcid, gva))),
            }
        }
        tags
    }

    /// INVPCID of type 1.
    fn forget(&mut self, pcid: u16) {
        self.tlb.retain(|&(of, _), _| of != pcid);
        self.structures.retain(|&(of, ..), _| of != pcid);
    }

    /// It was off, or asleep, or the Host has flushed everything.
    pub(crate) fn forget_all(&mut self) {
        self.tlb.clear();
        self.structures.clear();
    }

    pub(crate) fn cache(&mut self, pcid: u16, page: u64, found: Found) {
        add(&mut self.tlb, (pcid, page), found);
    }

    pub(crate) fn remember(&mut self, pcid: u16, level: u8, first: u64, table: Found) {
        add(&mut self.structures, (pcid, level, first), table);
    }

    /// The pages that it may use under a tag.
    pub(crate) fn cached(&self, pcid: u16) -> impl Iterator<Item = (u64, Found)> + '_ {
        let of = self.tlb.range((pcid, 0)..=(pcid, u64::MAX));
        of.flat_map(|(&(_, page), all)| all.iter().map(move |&found| (page, found)))
    }

    /// The tables that it may go on from under a tag.
    pub(crate) fn remembered(&self, pcid: u16) -> impl Iterator<Item = (u8, u64, Found)> + '_ {
        let of = self
            .structures
            .range((pcid, 0, 0)..=(pcid, u8::MAX, u64::MAX));
        of.flat_map(|(&(_, level, first), all)| all.iter().map(move |&table| (level, first, table)))
    }
}
