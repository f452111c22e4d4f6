// SPDX-License-Identifier: GPL-2.0

use lg_core::addr::Gva;
use lg_core::tags::{Forget, Generations, Slots, Tags, FIRST, ONE_BY_ONE, SLOTS};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// The tags at a seat, and what of the two was forgotten: kernel mode's, user mode's. Nothing, pages, or all.
fn tags<const N: usize, const M: usize>(
    slots: &mut Slots<N>,
    generations: &Generations<M>,
    seat: usize,
    hint: &mut Tags,
) -> (Tags, [Option<Vec<u64>>; 2]) {
    let now = generations.now(seat);
    let mut forgotten = BTreeMap::<u16, Option<Vec<u64>>>::new();
    let tags = slots.tags(generations, &now, hint, |what| match what {
        Forget::All(pcid) => assert_eq!(forgotten.insert(pcid, None), None),
        Forget::Page(pcid, gva) => {
            let pages = forgotten.entry(pcid).or_insert(Some(Vec::new()));
            pages.as_mut().expect("all is forgotten").push(gva);
        }
    });
    let of = [false, true].map(|user| forgotten.remove(&tags.pcid(user)).unwrap_or(Some(vec![])));
    assert!(forgotten.is_empty(), "of somebody else");
    (tags, of)
}

/// Nothing was forgotten.
const NOTHING: Option<Vec<u64>> = Some(Vec::new());
const ALL: Option<Vec<u64>> = None;

#[test]
fn linux_has_none_of_them_and_none_is_twice() {
    let generations = Generations::<SLOTS>::new(1);
    let mut slots = Slots::<SLOTS>::new();
    let mut all = BTreeSet::new();
    for seat in 0..SLOTS {
        let (of, forgotten) = tags(&mut slots, &generations, seat, &mut Tags::default());
        assert_eq!(forgotten, [ALL, ALL]);
        all.extend([of.pcid(false), of.pcid(true)]);
    }
    assert_eq!(all.len(), 2 * SLOTS);
    assert!(all.iter().all(|pcid| (0x900..0x1000).contains(pcid)));
    assert_eq!(all.first(), Some(&FIRST));
}

/// SDM, "Process-Context Identifiers": the PCID is bits 0 to 11 of CR3, bit 63 keeps what is cached.
#[test]
fn cr3_is_root_and_tag() {
    let tags = Tags::default();
    assert_eq!(tags.cr3(0x1234_5000, false), (1 << 63) | 0x1234_5900);
    assert_eq!(tags.cr3(0x1234_5000, true), (1 << 63) | 0x1234_5901);
}

#[test]
fn what_is_gone_is_forgotten_once() {
    let generations = Generations::<2>::new(1);
    let mut slots = Slots::<4>::new();
    let mut hint = Tags::default();
    let mut at =
        |generations: &Generations<2>, seat| tags(&mut slots, generations, seat, &mut hint).1;
    assert_eq!(at(&generations, 0), [ALL, ALL]);
    assert_eq!(at(&generations, 1), [ALL, ALL]);
    assert_eq!(at(&generations, 0), [NOTHING, NOTHING]);
    generations.move_upper();
    assert_eq!(at(&generations, 0), [ALL, NOTHING]);
    assert_eq!(at(&generations, 0), [NOTHING, NOTHING]);
    generations.move_lower(1);
    assert_eq!(at(&generations, 0), [NOTHING, NOTHING]);
    assert_eq!(at(&generations, 1), [ALL, ALL]);
    assert_eq!(at(&generations, 1), [NOTHING, NOTHING]);
    // Another VM has the same seats.
    let other = Generations::<2>::new(2);
    assert_eq!(at(&other, 1), [ALL, ALL]);
    assert_eq!(at(&generations, 1), [NOTHING, NOTHING]);
}

#[test]
fn a_few_pages_are_forgotten_one_by_one() {
    let generations = Generations::<2>::new(1);
    let mut slots = Slots::<4>::new();
    let mut at = |seat| tags(&mut slots, &generations, seat, &mut Tags::default()).1;
    at(0);
    at(1);
    generations.move_page(Some(0), Gva::new(0x1234));
    // INVPCID wants a canonical address, and a Guest flushes what it likes.
    generations.move_page(None, Gva::new(0x8000_0000_0000));
    let upper = 0xffff_8000_0000_0000;
    assert_eq!(at(0), [Some(vec![0x1000, upper]), Some(vec![0x1000])]);
    assert_eq!(at(0), [NOTHING, NOTHING]);
    assert_eq!(at(1), [Some(vec![upper]), NOTHING]);
    // All is, where not each is known.
    generations.move_page(Some(0), Gva::new(0x1000));
    generations.move_lower(0);
    assert_eq!(at(0), [ALL, ALL]);
    // Those of the upper half are kernel mode's only.
    generations.move_page(Some(0), Gva::new(0x1000));
    generations.move_upper();
    assert_eq!(at(0), [ALL, Some(vec![0x1000])]);
    for n in 0..=ONE_BY_ONE as u64 {
        generations.move_page(Some(1), Gva::new(n << 12));
    }
    assert_eq!(at(1), [ALL, ALL]);
    // Notes are used again.
    generations.move_page(Some(1), Gva::new(0x5000));
    for n in 0..31 {
        generations.move_page(Some(0), Gva::new(n << 12));
    }
    assert_eq!(at(1)[1], Some(vec![0x5000]));
    generations.move_page(Some(1), Gva::new(0x6000));
    for n in 0..32 {
        generations.move_page(Some(0), Gva::new(n << 12));
    }
    assert_eq!(at(1), [ALL, ALL]);
}

/// What is looked up is no newer than what is forgotten for it: who looks before something is gone forgets it the
/// next time.
#[test]
fn what_goes_in_between_is_forgotten_later() {
    let generations = Generations::<1>::new(1);
    let mut slots = Slots::<1>::new();
    let mut hint = Tags::default();
    let now = generations.now(0);
    generations.move_lower(0);
    slots.tags(&generations, &now, &mut hint, |_| {});
    let (_, forgotten) = tags(&mut slots, &generations, 0, &mut hint);
    assert_eq!(forgotten, [ALL, ALL]);
}

proptest! {
    /// Against a model: of what is below a tag, that is forgotten that is gone since; or more, if the tag was another's, or
    /// somebody has not said what went.
    #[test]
    fn nothing_older_is_used(steps in prop::collection::vec((0..10u8, 0..3usize, 0..2u64, 0..8usize), 0..200)) {
        const VMS: [u64; 2] = [1, 2];
        let generations = VMS.map(Generations::<3>::new);
        let mut slots = Slots::<4>::new();
        // The last hint may be of any CPU.
        let mut hints = [Tags::default(); 8];
        // By PCID: of whom it is, and what it may know that is gone. `None` is anything.
        let mut old = BTreeMap::<u16, ((u64, usize), BTreeSet<Option<u64>>)>::new();
        let mut page = 0;
        for (what, seat, vm, hint) in steps {
            let of = &generations[vm as usize];
            let (half, gone) = match what {
                0 => {
                    of.move_upper();
                    (None, None)
                }
                1 => {
                    of.move_lower(seat);
                    (Some(seat), None)
                }
                2 | 3 => {
                    page += 0x1000;
                    let half = (what == 2).then_some(seat);
                    of.move_page(half, Gva::new(page));
                    (half, Some(page))
                }
                _ => {
                    let owner = (VMS[vm as usize], seat);
                    let (tags, forgotten) = tags(&mut slots, of, seat, &mut hints[hint]);
                    for (user, forgotten) in [false, true].into_iter().zip(forgotten) {
                        let all = forgotten.is_none();
                        let before = old.insert(tags.pcid(user), (owner, BTreeSet::new()));
                        let Some((before, mut known)) = before.filter(|before| before.0 == owner) else {
                            prop_assert!(all);
                            continue;
                        };
                        prop_assert_eq!(before, owner);
                        for page in forgotten.unwrap_or_default() {
                            prop_assert!(known.remove(&Some(page)), "in vain");
                        }
                        prop_assert!(all || known.is_empty(), "{:?} are still known", known);
                        prop_assert!(!all || !known.is_empty(), "in vain");
                    }
                    continue;
                }
            };
            for (&pcid, (owner, known)) in &mut old {
                let user = pcid & 1 != 0;
                if owner.0 == VMS[vm as usize] && half.map_or(!user, |half| half == owner.1) {
                    known.insert(gone);
                }
            }
        }
    }

    /// A fifth context gets the tags of the one, of four, that was used longest ago.
    #[test]
    fn the_least_recent_gives_way(order in Just((0..4usize).collect::<Vec<_>>()).prop_shuffle()) {
        let generations = Generations::<5>::new(1);
        let mut slots = Slots::<4>::new();
        let mut at = |seat: usize| {
            tags(&mut slots, &generations, seat, &mut Tags::default())
        };
        let first: Vec<_> = order.iter().map(|&seat| at(seat).0).collect();
        let (new, forgotten) = at(4);
        prop_assert_eq!((new, forgotten), (first[0], [ALL, ALL]));
        for n in 1..4 {
            prop_assert_eq!(at(order[n]), (first[n], [NOTHING, NOTHING]));
        }
    }
}
