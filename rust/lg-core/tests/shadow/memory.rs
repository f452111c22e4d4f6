// SPDX-License-Identifier: GPL-2.0

//! The Host's memory, with tables in it that know whether they are alive, and the processor that
//! walks them.

use lg_core::addr::{Gva, Hpa};
use lg_core::paging::{A, ADDR, NX, P, U, W};
use lg_core::shadow::{List, Table, OWNED};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

struct Page {
    hpa: u64,
    entries: Vec<Cell<u64>>,
    groups: Cell<u64>,
    /// It is in a list: nothing may lead to it.
    put_aside: Cell<bool>,
}

/// All pages that there ever were, by their number; an address is never used twice. None is at 0.
#[derive(Clone, Default)]
pub(crate) struct Host(Rc<RefCell<Vec<Option<Rc<Page>>>>>);

impl Host {
    pub(crate) fn table(&self) -> Box<Tree> {
        let mut pages = self.0.borrow_mut();
        if pages.is_empty() {
            pages.push(None);
        }
        let page = Rc::new(Page {
            hpa: pages.len() as u64 * 4096,
            entries: vec![Cell::new(0); 512],
            groups: Cell::new(0),
            put_aside: Cell::new(false),
        });
        pages.push(Some(page.clone()));
        drop(pages);
        Box::new(Tree {
            page,
            children: BTreeMap::new(),
            host: self.clone(),
        })
    }

    /// Tables that are alive, and how many of those are in lists.
    pub(crate) fn alive(&self) -> (usize, usize) {
        let pages = self.0.borrow();
        let alive = pages.iter().flatten();
        (
            alive.clone().count(),
            alive.filter(|p| p.put_aside.get()).count(),
        )
    }

    fn entry(&self, table: u64, i: usize) -> u64 {
        let pages = self.0.borrow();
        let page = pages
            .get((table >> 12) as usize)
            .and_then(Option::as_ref)
            .unwrap_or_else(|| {
                panic!("the processor walks the table at {table:#x}, which is free")
            });
        assert!(
            !page.put_aside.get(),
            "the processor walks the table at {table:#x}, which was dropped"
        );
        let entry = page.entries[i].get();
        assert!(
            entry == 0 || page.groups.get() & (1 << (i / 8)) != 0,
            "entry {i} of {table:#x} is in no group that is used"
        );
        entry
    }

    pub(crate) fn entry_at(&self, table: Hpa, i: usize) -> u64 {
        self.entry(table.get(), i)
    }

    /// The entry that the processor finds for `gva`, with what all levels allow; `None` if a program
    /// would fault there whatever it does. `passed` is told of each table on the way, with its level, and says
    /// whether the processor notes in the entry that it was used.
    pub(crate) fn walk(
        &self,
        root: Hpa,
        gva: Gva,
        levels: u8,
        passed: impl FnMut(u8, Found) -> bool,
    ) -> Option<Found> {
        let root = Found {
            hpa: root.get(),
            writable: true,
            executable: true,
        };
        self.walk_on(root, gva, levels, passed)
    }

    /// The rest of the way, from a table of `levels` to which it has led so far.
    pub(crate) fn walk_on(
        &self,
        so_far: Found,
        gva: Gva,
        levels: u8,
        mut passed: impl FnMut(u8, Found) -> bool,
    ) -> Option<Found> {
        let mut found = so_far;
        for level in (1..=levels).rev() {
            let uses = passed(level, found);
            let i = if level == 5 {
                if gva.is_upper() {
                    511
                } else {
                    0
                }
            } else {
                gva.index(level)
            };
            let entry = self.entry(found.hpa, i);
            if entry & (P | U) != P | U {
                return None;
            }
            if uses {
                self.mark(found.hpa, i);
            }
            found = Found {
                hpa: entry & ADDR,
                writable: found.writable && entry & W != 0,
                executable: found.executable && entry & NX == 0,
            };
        }
        Some(found)
    }

    /// Sets the A bit of an entry.
    fn mark(&self, table: u64, i: usize) {
        let pages = self.0.borrow();
        if let Some(Some(page)) = pages.get((table >> 12) as usize) {
            page.entries[i].set(page.entries[i].get() | A);
        }
    }
}

/// A translation for the processor, or how far it has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) hpa: u64,
    pub(crate) writable: bool,
    pub(crate) executable: bool,
}

impl Found {
    /// Does it lead to the same page, and allow as much?
    pub(crate) fn includes(&self, other: Found) -> bool {
        self.hpa == other.hpa
            && (self.writable || !other.writable)
            && (self.executable || !other.executable)
    }
}

/// A table and what it owns.
pub(crate) struct Tree {
    page: Rc<Page>,
    children: BTreeMap<usize, Box<Tree>>,
    host: Host,
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.host.0.borrow_mut()[(self.page.hpa >> 12) as usize] = None;
    }
}

impl Table for Tree {
    type Owned = Box<Tree>;
    type List = Shelf;

    fn hpa(&self) -> Hpa {
        Hpa::new(self.page.hpa)
    }

    fn get(&self, i: usize) -> u64 {
        self.page.entries[i % 512].get()
    }

    fn set(&mut self, i: usize, entry: u64) {
        assert_eq!(
            self.get(i) & OWNED,
            0,
            "entry {i} owns a table, which would leak"
        );
        self.page.entries[i % 512].set(entry & !OWNED);
    }

    fn attach(&mut self, i: usize, child: Box<Tree>, flags: u64) {
        assert_eq!(
            self.get(i) & OWNED,
            0,
            "entry {i} owns a table, which would leak"
        );
        self.page.entries[i % 512].set(child.page.hpa | flags | OWNED);
        assert!(self.children.insert(i % 512, child).is_none());
    }

    fn detach(&mut self, i: usize) -> Option<Box<Tree>> {
        let child = self.children.remove(&(i % 512))?;
        self.page.entries[i % 512].set(0);
        Some(child)
    }

    fn child(&mut self, i: usize) -> Option<&mut Tree> {
        self.children.get_mut(&(i % 512)).map(|child| &mut **child)
    }

    fn groups(&self) -> u64 {
        self.page.groups.get()
    }

    fn set_groups(&mut self, groups: u64) {
        self.page.groups.set(groups);
    }
}

/// A list of tables.
pub(crate) struct Shelf(Vec<Tree>);

impl List<Box<Tree>> for Shelf {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn push(&mut self, table: Box<Tree>) {
        assert!(!table.page.put_aside.replace(true));
        self.0.push(*table);
    }

    fn pop(&mut self) -> Option<Box<Tree>> {
        let table = self.0.pop()?;
        assert!(table.page.put_aside.replace(false));
        Some(Box::new(table))
    }

    fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
