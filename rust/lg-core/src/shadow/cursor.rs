// SPDX-License-Identifier: GPL-2.0

//! The way down from a table of level 4: finding, making and dropping what it leads to.

use super::super::addr::Gva;
use super::super::paging::{PageSize, ADDR, P};
use super::entry::{flags, mark, set_flags};
use super::sleep::wake;
use super::stock::{Refused, Stock};
use super::table::{List, Table, LARGE, OWNED};
use core::ops::Range;

/// The tables that were dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    Nothing,
    /// One entry of level 1.
    Leaf,
    /// An entry above level 1, with all below.
    Tables,
}

/// The table below entry `i`, made of `stock` if there is none, and woken if it sleeps. The entry gets `flags` in
/// any case.
pub(super) fn make_child<'a, T: Table>(
    table: &'a mut T,
    i: usize,
    flags: u64,
    stock: &mut Stock<T>,
) -> Result<&'a mut T, Refused> {
    let entry = table.get(i);
    if entry & OWNED == 0 {
        // A link of this entry's to a table of somebody else's goes: a split begins.
        let child = stock.take()?;
        mark(table, i);
        table.set(i, 0);
        table.attach(i, child, flags);
    } else if entry & P == 0 {
        wake(table, i, flags, &mut stock.retired);
    } else if entry & flags != flags {
        set_flags(table, i, (entry & !(ADDR | OWNED)) | flags);
    }
    table.child(i).ok_or(Refused::Stale)
}

/// The table of level 1 that covers `gva`, for a page of `size`. If it sleeps, `refresh` makes its entries true
/// again.
pub(super) fn make_leaf_table<'a, T: Table>(
    level4: &'a mut T,
    gva: Gva,
    size: PageSize,
    stock: &mut Stock<T>,
    refresh: impl FnOnce(&mut T),
) -> Result<&'a mut T, Refused> {
    let mut table = level4;
    for level in [4, 3] {
        table = make_child(table, gva.index(level), flags(level, size), stock)?;
    }
    let (i, flags) = (gva.index(2), flags(2, size));
    if table.get(i) & (OWNED | P) == OWNED {
        if let Some(mut child) = table.detach(i) {
            refresh(&mut *child);
            table.attach(i, child, flags);
        }
    }
    make_child(table, i, flags, stock)
}

/// Drops entry `i`, with what it owns.
fn drop_entry<T: Table>(table: &mut T, i: usize, to: &mut T::List) {
    match table.detach(i) {
        Some(child) => to.push(child),
        None => table.set(i, 0),
    }
}

/// Drops the page that `gva` is in, whatever its size, and perhaps small ones where a large one has
/// been. What sleeps needs no such thing.
pub(super) fn drop_page<T: Table>(level4: &mut T, gva: Gva, to: &mut T::List) -> Gone {
    let mut table = level4;
    for level in [4, 3, 2] {
        let i = gva.index(level);
        if table.get(i) & P == 0 {
            return Gone::Nothing;
        }
        if table.get(i) & LARGE != 0 {
            drop_entry(table, i, to);
            return Gone::Tables;
        }
        let Some(child) = table.child(i) else {
            return Gone::Nothing;
        };
        table = child;
    }
    if table.get(gva.index(1)) == 0 {
        return Gone::Nothing;
    }
    table.set(gva.index(1), 0);
    Gone::Leaf
}

/// Drops a range of entries, with what they own; says whether there was anything. Takes some
/// instructions for each entry that is used, and none for what is below it.
pub(super) fn clear<T: Table>(table: &mut T, range: Range<usize>, to: &mut T::List) -> bool {
    let mut any = false;
    let mut left = table.groups();
    let mut used = left;
    while left != 0 {
        let group = left.trailing_zeros() as usize;
        left &= left - 1;
        let mut empty = true;
        for i in group * 8..group * 8 + 8 {
            if table.get(i) == 0 {
                continue;
            }
            if range.contains(&i) {
                drop_entry(table, i, to);
                any = true;
            } else {
                empty = false;
            }
        }
        if empty {
            used &= !(1 << group);
        }
    }
    table.set_groups(used);
    any
}
