// SPDX-License-Identifier: GPL-2.0

use lg_core::tags::{Generations, Now, Slots, Tags, FIRST, SLOTS};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// The tags, and which of the two were forgotten: kernel mode's, user mode's.
fn tags<const N: usize>(slots: &mut Slots<N>, now: &Now, hint: &mut Tags) -> (Tags, [bool; 2]) {
    let mut forgotten = BTreeSet::new();
    let tags = slots.tags(now, hint, |pcid| assert!(forgotten.insert(pcid)));
    let of = [false, true].map(|user| forgotten.remove(&tags.pcid(user)));
    assert!(forgotten.is_empty(), "of somebody else");
    (tags, of)
}

#[test]
fn linux_has_none_of_them_and_none_is_twice() {
    let generations = Generations::<SLOTS>::new(1);
    let mut slots = Slots::<SLOTS>::new();
    let mut all = BTreeSet::new();
    for seat in 0..SLOTS {
        let (of, forgotten) = tags(&mut slots, &generations.now(seat), &mut Tags::default());
        assert_eq!(forgotten, [true, true]);
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
    let mut at = |generations: &Generations<2>, seat| {
        let now = generations.now(seat);
        tags(&mut slots, &now, &mut hint).1
    };
    assert_eq!(at(&generations, 0), [true, true]);
    assert_eq!(at(&generations, 1), [true, true]);
    assert_eq!(at(&generations, 0), [false, false]);
    generations.move_upper();
    assert_eq!(at(&generations, 0), [true, false]);
    assert_eq!(at(&generations, 0), [false, false]);
    generations.move_lower(1);
    assert_eq!(at(&generations, 0), [false, false]);
    assert_eq!(at(&generations, 1), [true, true]);
    assert_eq!(at(&generations, 1), [false, false]);
    // Another VM has the same seats.
    let other = Generations::<2>::new(2);
    assert_eq!(at(&other, 1), [true, true]);
    assert_eq!(at(&generations, 1), [false, false]);
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
    assert_eq!(tags(&mut slots, &now, &mut hint).1, [true, true]);
    let now = generations.now(0);
    assert_eq!(tags(&mut slots, &now, &mut hint).1, [true, true]);
}

proptest! {
    /// Against a model: a tag is forgotten if, and only if, it was another's, or something below it is gone since.
    #[test]
    fn nothing_older_is_used(steps in prop::collection::vec((0..8u8, 0..3usize, 0..2u64, 0..8usize), 0..200)) {
        const VMS: [u64; 2] = [1, 2];
        let generations = VMS.map(Generations::<3>::new);
        let mut slots = Slots::<4>::new();
        // The last hint may be of any CPU.
        let mut hints = [Tags::default(); 8];
        // By PCID: of whom it is, and how often what is below it had gone.
        let mut under = BTreeMap::<u16, (u64, usize, [u64; 2])>::new();
        let mut gone = BTreeMap::<(u64, usize), [u64; 2]>::new();
        for (what, seat, vm, hint) in steps {
            let of = &generations[vm as usize];
            match what {
                0 => {
                    of.move_upper();
                    (0..3).for_each(|seat| gone.entry((vm, seat)).or_default()[0] += 1);
                }
                1 => {
                    of.move_lower(seat);
                    gone.entry((vm, seat)).or_default()[1] += 1;
                }
                _ => {
                    let now = of.now(seat);
                    let (tags, forgotten) = tags(&mut slots, &now, &mut hints[hint]);
                    let [upper, lower] = gone.get(&(vm, seat)).copied().unwrap_or_default();
                    for (user, forgotten) in [false, true].into_iter().zip(forgotten) {
                        let seen = if user { [0, lower] } else { [upper, lower] };
                        let old = under.insert(tags.pcid(user), (vm, seat, seen));
                        prop_assert_eq!(forgotten, old != Some((vm, seat, seen)));
                    }
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
            tags(&mut slots, &generations.now(seat), &mut Tags::default())
        };
        let first: Vec<_> = order.iter().map(|&seat| at(seat).0).collect();
        let (new, forgotten) = at(4);
        prop_assert_eq!((new, forgotten), (first[0], [true, true]));
        for n in 1..4 {
            prop_assert_eq!(at(order[n]), (first[n], [false, false]));
        }
    }
}
