// SPDX-License-Identifier: GPL-2.0

use lg_core::irq::Pending;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

proptest! {
    /// Against a set of numbers, after each of any number of steps.
    #[test]
    fn behaves_like_a_set(steps in prop::collection::vec(any::<Option<u8>>(), 0..64)) {
        let pending = Pending::new();
        let mut model = BTreeSet::new();
        for raise in steps {
            match raise {
                Some(vector) => prop_assert_eq!(pending.set(vector), model.insert(vector)),
                None => prop_assert_eq!(pending.take_highest(), model.pop_last()),
            }
            prop_assert_eq!(pending.is_empty(), model.is_empty());
        }
    }
}

#[test]
fn every_vector_can_be_pending_at_once() {
    let pending = Pending::new();
    assert!((0..=u8::MAX).all(|vector| pending.set(vector)));
    assert!(!(0..=u8::MAX).any(|vector| pending.set(vector)));
    for vector in (0..=u8::MAX).rev() {
        assert_eq!(pending.take_highest(), Some(vector));
    }
    assert_eq!(pending.take_highest(), None);
}

/// Two devices raise while the vCPU takes: each raise that found its vector idle is delivered,
/// exactly once.
#[test]
fn no_raise_is_lost_between_threads() {
    const ROUNDS: usize = 200_000;
    let pending = Pending::new();
    let (raised, running) = (AtomicUsize::new(0), AtomicUsize::new(2));
    let mut taken = 0;
    thread::scope(|scope| {
        // In the same word, to be in each other's way.
        for vector in [0xc1u8, 0xfe] {
            let (pending, raised, running) = (&pending, &raised, &running);
            scope.spawn(move || {
                let mut fresh = 0;
                for _ in 0..ROUNDS {
                    match pending.set(vector) {
                        true => fresh += 1,
                        false => thread::yield_now(),
                    }
                }
                raised.fetch_add(fresh, Ordering::SeqCst);
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        loop {
            let last = running.load(Ordering::SeqCst) == 0;
            while pending.take_highest().is_some() {
                taken += 1;
            }
            if last {
                break;
            }
        }
    });
    assert_eq!(taken, raised.into_inner());
}
