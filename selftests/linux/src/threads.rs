// SPDX-License-Identifier: GPL-2.0
//! Threads: many, short-lived, waiting for each other by futex.

use crate::sys::{check, spawn, wait, Map};
use crate::Test;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{mpsc, Arc, Barrier, Condvar, Mutex};
use std::thread;

pub(crate) const TESTS: &[Test] = &[
    ("500 threads, one after the other", one_after_the_other),
    ("a mutex", mutex),
    ("a condition variable", condition),
    ("a barrier", barrier),
    ("channels", channels),
    ("thread-local storage", thread_local),
    ("a futex between processes", futex_between_processes),
];

fn one_after_the_other() {
    let sum: u64 = (0..500)
        .map(|i| thread::spawn(move || i).join().unwrap())
        .sum();
    assert_eq!(sum, 499 * 500 / 2);
}

fn mutex() {
    let total = Mutex::new(0u64);
    let unlocked = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for i in 0..5000 {
                    *total.lock().unwrap() += 1;
                    unlocked.fetch_add(1, SeqCst);
                    if i % 100 == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(
        (*total.lock().unwrap(), unlocked.load(SeqCst)),
        (40_000, 40_000)
    );
}

/// Two threads take turns 5000 times.
fn condition() {
    let turn = Arc::new((Mutex::new(0u32), Condvar::new()));
    let other = turn.clone();
    let play = |pair: &(Mutex<u32>, Condvar), odd: u32| {
        for _ in 0..5000 {
            let mut turn = pair
                .1
                .wait_while(pair.0.lock().unwrap(), |turn| *turn % 2 != odd)
                .unwrap();
            *turn += 1;
            pair.1.notify_one();
        }
    };
    let thread = thread::spawn(move || play(&other, 1));
    play(&turn, 0);
    thread.join().unwrap();
    assert_eq!(*turn.0.lock().unwrap(), 10_000);
}

fn barrier() {
    let barrier = Barrier::new(6);
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for round in 0..200 {
                    rounds.fetch_add(1, SeqCst);
                    barrier.wait();
                    assert_eq!(rounds.load(SeqCst), (round + 1) * 6, "everybody is here");
                    barrier.wait();
                }
            });
        }
    });
}

fn channels() {
    let (first, mut input) = mpsc::sync_channel::<u64>(1);
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let (output, next) = mpsc::sync_channel(1);
            let from = std::mem::replace(&mut input, next);
            thread::spawn(move || {
                from.into_iter()
                    .for_each(|value| output.send(value + 1).unwrap())
            })
        })
        .collect();
    let feeder = thread::spawn(move || (0..2000).for_each(|value| first.send(value).unwrap()));
    assert!((5..2005).eq(input.into_iter()));
    feeder.join().unwrap();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

fn thread_local() {
    thread_local!(static MINE: Cell<u64> = const { Cell::new(0) });
    thread::scope(|scope| {
        for id in 1..20 {
            scope.spawn(move || {
                MINE.set(id);
                for _ in 0..500 {
                    thread::yield_now();
                    assert_eq!(MINE.get(), id);
                }
            });
        }
    });
    assert_eq!(MINE.get(), 0);
}

/// A word in shared memory on which one process sleeps and another wakes it.
fn futex_between_processes() {
    let map = Map::shared(4096);
    let word = map.start().cast::<u32>();
    let futex = |operation: i32, value: u32| {
        // SAFETY: a word of shared memory.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word,
                operation,
                value,
                std::ptr::null::<libc::timespec>(),
            )
        }
    };
    let child = spawn(|| {
        for turn in 0..1000 {
            while map.get(0) as u32 == turn {
                futex(libc::FUTEX_WAIT, turn);
            }
        }
        0
    });
    for turn in 1..=1000 {
        map.set(0, turn);
        check("FUTEX_WAKE", futex(libc::FUTEX_WAKE, 1));
        thread::yield_now();
    }
    assert_eq!(wait(child), 0);
}
