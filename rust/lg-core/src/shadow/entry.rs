// SPDX-License-Identifier: GPL-2.0

//! One entry of a table, and what goes with it.

use super::super::paging::{PageSize, P};
use super::table::{Table, LARGE, OWNED, TABLE};

/// Notes that entry `i` may be other than 0 from now on.
pub(super) fn mark<T: Table>(table: &mut T, i: usize) {
    let groups = table.groups() | (1 << (i / 8 % 64));
    table.set_groups(groups);
}

/// Makes entry `i`, which owns nothing, `entry`; says whether that is a change.
pub(super) fn put<T: Table>(table: &mut T, i: usize, entry: u64) -> bool {
    let changed = table.get(i) != entry;
    if changed {
        if entry != 0 {
            mark(table, i);
        }
        table.set(i, entry);
    }
    changed
}

/// An entry for another table that leads where entry `i` does, without owning it.
pub(super) fn link<T: Table>(table: &T, i: usize) -> u64 {
    let entry = table.get(i);
    if entry & P == 0 {
        return 0;
    }
    entry & !OWNED
}

/// The indices of the entries that may be other than 0.
pub(super) fn used<T: Table>(table: &T) -> impl Iterator<Item = usize> {
    let mut left = table.groups();
    core::iter::from_fn(move || {
        let group = left.trailing_zeros() as usize;
        left &= left.checked_sub(1)?;
        Some(group * 8..group * 8 + 8)
    })
    .flatten()
}

/// Gives entry `i` these flags, whatever it has.
pub(super) fn set_flags<T: Table>(table: &mut T, i: usize, flags: u64) {
    if let Some(child) = table.detach(i) {
        table.attach(i, child, flags);
    }
}

/// The flags of an entry of `level` on the way to a page of `size`.
pub(super) const fn flags(level: u8, size: PageSize) -> u64 {
    match (level, size) {
        (3, PageSize::Size1G) | (2, PageSize::Size2M) => TABLE | LARGE,
        _ => TABLE,
    }
}
