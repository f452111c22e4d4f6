// SPDX-License-Identifier: GPL-2.0

//! What the shadow needs of whoever has memory: tables of 512 entries, each of which may own the
//! tables below it.
//!
//! The Host kernel has one implementation, on pages that the processor walks; the tests have
//! another, which knows each table that is alive.

use super::super::addr::Hpa;
use super::super::paging::{A, P, U, W};
use core::ops::DerefMut;

/// An entry that leads to a table. What may be done is said by the entry of level 1.
pub const TABLE: u64 = P | W | U | A;
/// Software bit of an entry: the table it leads to belongs to the table that the entry is in.
pub const OWNED: u64 = 1 << 52;
/// Software bit of an entry that leads to a table: something below is a part of a page of the
/// Guest's which is as large as all that this entry covers (SDM, "Operations that Invalidate TLBs":
/// a processor may hold such a page as parts, but INVLPG of one address drops them all).
pub(super) const LARGE: u64 = 1 << 53;
/// Software bits of an entry whose table sleeps: how often it was left asleep. [`ONCE`] is one time.
pub(super) const LEFT_ASLEEP: u64 = 3 << 54;
/// See [`LEFT_ASLEEP`].
pub(super) const ONCE: u64 = 1 << 54;

/// One table, empty when it is made. Indices are taken modulo 512.
pub trait Table: Sized {
    /// A table that no entry owns.
    type Owned: DerefMut<Target = Self>;
    /// Tables that are put aside.
    type List: List<Self::Owned>;

    /// The address at which the processor finds the table.
    fn hpa(&self) -> Hpa;

    /// Entry `i`.
    fn get(&self, i: usize) -> u64;

    /// Makes entry `i`, which owns nothing, a leaf, a link to a table that somebody else owns, or
    /// nothing (0). [`OWNED`] is ignored.
    fn set(&mut self, i: usize, entry: u64);

    /// Makes entry `i`, which owns nothing, the owner of `child`. `flags` are the entry's other bits
    /// than the address and [`OWNED`]. Without [`P`] the processor does not get there, and must not guess from
    /// the entry where that is (L1TF).
    fn attach(&mut self, i: usize, child: Self::Owned, flags: u64);

    /// Takes the table that entry `i` owns, if it owns one. The entry is 0 then.
    fn detach(&mut self, i: usize) -> Option<Self::Owned>;

    /// The table that entry `i` owns, if it owns one.
    fn child(&mut self, i: usize) -> Option<&mut Self>;

    /// A word that goes with the table; 0 when it is made. The shadow notes in bit `n` whether one of
    /// the entries from `8 * n` to `8 * n + 7` may be other than 0: most tables are nearly empty, and
    /// flushes are frequent, so emptying one must not take 512 steps.
    fn groups(&self) -> u64;

    /// Changes that word.
    fn set_groups(&mut self, groups: u64);
}

/// Tables that are put aside. No operation takes longer for a longer list.
pub trait List<T> {
    /// An empty one.
    fn new() -> Self;

    /// Puts one table in.
    fn push(&mut self, table: T);

    /// Takes out one of them, if there is one.
    fn pop(&mut self) -> Option<T>;

    /// Puts in all that `other` has.
    fn append(&mut self, other: Self);

    /// Says whether there is none.
    fn is_empty(&self) -> bool;
}
