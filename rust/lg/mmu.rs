// SPDX-License-Identifier: GPL-2.0

//! The shadow: page tables for the CPU, which behave as a TLB of the guest's own tables.
//!
//! An entry is put in when the guest faults and its tables have a translation; it is taken out when
//! the guest flushes, and at no other time. So the guest sees what it would see on hardware: a
//! stale translation lives until it is flushed, a not-present one is never remembered. Nothing is
//! write-protected, and no write to a page table is ever noticed.
//!
//! A *context* is what is cached for one root (CR3). It has two roots for the CPU, for guest kernel
//! mode and for guest user mode, since the CPU runs both at CPL3 and can't tell them apart:
//!
//! ```text
//!   user root    kernel root
//!   [0..256] --+-- [0..256] + NX       the tables of the user half are shared (NX is SMEP)
//!              |   [256..512] --- upper, one for all contexts: the kernel half is global
//!   [271] -----+-- [271] ------------- the switcher's slot
//! ```
//!
//! On a Host with five levels these tables hang at 0 and 511 of a table above, and the slot at 271
//! of that.
//!
//! A page of the lower half which only the kernel may use must not be in the shared tables. Where
//! there is one (the Launcher's identity map; text_poke's page) the kernel root gets tables of its
//! own at that top-level entry: a *split*.

use crate::{
    abi::*,
    blame::{
        Death,
        Stop, //
    },
    lg_core::{
        addr::{
            Gpa,
            Gva,
            Hpa, //
        },
        paging::{
            self,
            Access,
            PageSize,
            WalkError, //
        },
        shadow::{
            self,
            Half, //
        },
    },
    sys::{
        hole,
        page::Wait,
        ram::GuestRam,
        slots::Lease,
        switcher::SHARED_LEAF,
        table::{
            Dropped,
            Table,
            TableBox, //
        },
        task,
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// An entry that leads to a table: what may be done is said at the leaf.
const TABLE: u64 = paging::P | paging::W | paging::U | paging::A;
/// Software bit of an entry that leads to a table: something below is a part of a page of the guest's
/// which is as large as all that this entry covers (SDM 3A 4.10.2.3: a TLB may hold such a page as
/// parts, but INVLPG of one address drops them all).
const LARGE: u64 = 1 << 53;
/// The top-level entry of the shared pages.
const SHARED_SLOT: usize = 270;
/// How many roots are cached, so that looking for one stays quick.
const MAX_CONTEXTS: usize = 128;
/// Pages that are freed in one go.
const STEP: usize = 256;
/// Pages looked at around one that faulted.
const AROUND: u64 = 16;

/// What came of a page fault.
pub(crate) enum Fault {
    /// Try again: the shadow has it now.
    Filled,
    /// Try again after dropping the page from the TLB: the shadow had it already.
    Spurious,
    /// It is the guest's fault: #PF with this error code.
    Inject(u32),
    /// Not canonical for a guest of four levels: #GP.
    GeneralProtection,
    /// The address leads to something that is not RAM.
    Mmio(Gpa),
}

/// Why a table cannot be had: for want of memory, which there may be where waiting is allowed.
fn no_table(wait: Wait) -> impl Fn(Error) -> Stop {
    move |error| match wait {
        Wait::Allowed => Stop::Host(error),
        Wait::Forbidden => Stop::Later,
    }
}

/// The roots to load for the two modes.
pub(crate) struct Roots {
    pub(crate) kernel: Hpa,
    pub(crate) user: Hpa,
}

/// What decides in which tables a translation goes.
struct Place {
    gva: Gva,
    /// Of the page that the guest has mapped.
    size: PageSize,
    /// The guest's user mode may use the page.
    user_page: bool,
    /// The fault came from there.
    user_mode: bool,
}

struct Context {
    root: Gpa,
    /// Level 4: the user half.
    user: TableBox,
    /// Level 4: links to `user`'s tables, or splits; with four levels also links to the upper half.
    kernel: TableBox,
    /// Level 5, kernel's and user's, on a Host that has it.
    top: Option<[TableBox; 2]>,
    /// When it was last loaded, for LRU.
    used: u64,
}

/// All that is cached for one VM. It points into the VM's RAM, which has to be there as long.
pub(crate) struct Mmu {
    /// The current one is always among them.
    contexts: KVec<Context>,
    current: Gpa,
    upper: TableBox,
    /// What was forgotten, but is not freed yet: at the next occasion with interrupts on.
    dropped: Dropped,
    slot: Arc<Lease>,
    five_levels: bool,
    clock: u64,
    /// Pages in all these tables, the dropped ones too.
    pages: usize,
    max_pages: usize,
    prefilled: u64,
    recycled: u64,
}

impl Context {
    fn new(root: Gpa, slot: u64, upper: Hpa, five_levels: bool) -> Result<Self> {
        let make = || TableBox::new(Wait::Allowed);
        let (mut user, mut kernel) = (make()?, make()?);
        let top = if five_levels {
            let (mut top_kernel, mut top_user) = (make()?, make()?);
            top_kernel.set(0, kernel.hpa().get() | TABLE);
            top_kernel.set(511, upper.get() | TABLE);
            top_kernel.set(hole::SLOT, slot);
            top_user.set(0, user.hpa().get() | TABLE);
            top_user.set(hole::SLOT, slot);
            Some([top_kernel, top_user])
        } else {
            user.set(hole::SLOT, slot);
            kernel.set(hole::SLOT, slot);
            None
        };
        Ok(Self {
            root,
            user,
            kernel,
            top,
            used: 0,
        })
    }

    fn roots(&self) -> Roots {
        let (kernel, user) = match &self.top {
            Some([kernel, user]) => (kernel, user),
            None => (&self.kernel, &self.user),
        };
        Roots {
            kernel: kernel.hpa(),
            user: user.hpa(),
        }
    }

    /// How many pages one has before anything is mapped.
    fn own_pages(&self) -> usize {
        if self.top.is_some() {
            4
        } else {
            2
        }
    }

    /// The level-1 table where a translation belongs, and which kind of table that is. Tables that
    /// are missing are made, and counted in `pages`.
    fn table_for<'a>(
        &'a mut self,
        upper: &'a mut TableBox,
        place: Place,
        wait: Wait,
        pages: &mut usize,
    ) -> Result<(&'a mut Table, Half)> {
        let i = place.gva.index(4);
        if shadow::half(place.gva) == Half::Kernel {
            upper.make_child(i, TABLE, wait, pages)?;
            if self.top.is_none() {
                link(&mut self.kernel, i, upper.link(i));
            }
            return Ok((
                make_leaf_table(upper, place.gva, place.size, wait, pages)?,
                Half::Kernel,
            ));
        }
        let split = self.kernel.child(i).is_some();
        if !place.user_page || (split && !place.user_mode) {
            // The first page for the kernel alone splits: the link to the shared tables goes.
            let table = make_leaf_table(&mut self.kernel, place.gva, place.size, wait, pages)?;
            return Ok((table, Half::Kernel));
        }
        self.user.make_child(i, TABLE, wait, pages)?;
        if !split {
            link(&mut self.kernel, i, self.user.link(i) | paging::NX);
        }
        Ok((
            make_leaf_table(&mut self.user, place.gva, place.size, wait, pages)?,
            Half::User,
        ))
    }

    /// Empties the lower half.
    fn drop_user_half(&mut self) -> Dropped {
        let mut dropped = self.kernel.clear(0..256);
        dropped.add(self.user.clear(0..256));
        dropped
    }

    fn into_dropped(self) -> Dropped {
        let mut dropped = Dropped::from(self.user);
        dropped.add(self.kernel.into());
        for table in self.top.into_iter().flatten() {
            dropped.add(table.into());
        }
        dropped
    }
}

/// The level-1 table that covers `gva`, for a page of `size`; tables that are missing are made, and
/// counted in `pages`.
fn make_leaf_table<'a>(
    level4: &'a mut Table,
    gva: Gva,
    size: PageSize,
    wait: Wait,
    pages: &mut usize,
) -> Result<&'a mut Table> {
    let mut table = level4;
    for level in [4, 3, 2] {
        let flags = match (level, size) {
            (3, PageSize::Size1G) | (2, PageSize::Size2M) => TABLE | LARGE,
            _ => TABLE,
        };
        table = table.make_child(gva.index(level), flags, wait, pages)?;
    }
    Ok(table)
}

/// Forgets the page that `gva` is in, whatever its size, and perhaps small ones where a large one has
/// been.
fn drop_page(level4: &mut Table, gva: Gva) -> Dropped {
    let mut table = level4;
    for level in [4, 3, 2] {
        let i = gva.index(level);
        if table.get(i) & LARGE != 0 {
            return table.replace(i, 0);
        }
        let Some(child) = table.child(i) else {
            return Dropped::NOTHING;
        };
        table = child;
    }
    table.replace(gva.index(1), 0)
}

impl Mmu {
    /// With `root` as the current root, whose roots are returned. `max_pages` is the budget
    /// for shadow tables.
    pub(crate) fn new(
        root: Gpa,
        slot: Arc<Lease>,
        five_levels: bool,
        max_pages: usize,
    ) -> Result<(Self, Roots)> {
        let mut mmu = Self {
            contexts: KVec::new(),
            current: root,
            upper: TableBox::new(Wait::Allowed)?,
            dropped: Dropped::NOTHING,
            slot,
            five_levels,
            clock: 0,
            pages: 1,
            max_pages,
            prefilled: 0,
            recycled: 0,
        };
        let first = mmu.add(root)?;
        let roots = mmu.load_context(first);
        Ok((mmu, roots))
    }

    /// Makes `root` the current one and returns its roots, which stay valid until the next call.
    /// Without `keep` its user half is forgotten first: that is CR3 bit 63.
    pub(crate) fn load(&mut self, root: Gpa, keep: bool, wait: Wait) -> Result<Roots, Stop> {
        let i = self.find(root, wait)?;
        if !keep {
            self.dropped.add(self.contexts[i].drop_user_half());
        }
        Ok(self.load_context(i))
    }

    fn load_context(&mut self, i: usize) -> Roots {
        self.clock += 1;
        self.contexts[i].used = self.clock;
        self.current = self.contexts[i].root;
        self.contexts[i].roots()
    }

    /// The context of `root`, made if it is missing.
    fn find(&mut self, root: Gpa, wait: Wait) -> Result<usize, Stop> {
        // From the end: guests come back to young address spaces most.
        if let Some(i) = self.contexts.iter().rposition(|c| c.root == root) {
            return Ok(i);
        }
        if wait == Wait::Forbidden {
            return Err(Stop::Later);
        }
        self.make_room(wait)?;
        Ok(self.add(root)?)
    }

    /// A context for `root`, which has none.
    fn add(&mut self, root: Gpa) -> Result<usize> {
        let context = Context::new(root, self.slot.link(), self.upper.hpa(), self.five_levels)?;
        let pages = context.own_pages();
        self.contexts.push(context, GFP_KERNEL_ACCOUNT)?;
        self.pages += pages;
        Ok(self.contexts.len() - 1)
    }

    fn remove(&mut self, i: usize) {
        if let Ok(context) = self.contexts.remove(i) {
            self.dropped.add(context.into_dropped());
        }
    }

    /// Brings the tables below the budget: what was dropped goes first, then least recently used contexts, then
    /// everything. The current context loses what it maps at most, so that the roots the CPU uses never dangle.
    ///
    /// [`Stop::Later`] when there is something to do and waiting is forbidden.
    fn make_room(&mut self, wait: Wait) -> Result<(), Stop> {
        while self.pages >= self.max_pages || self.contexts.len() >= MAX_CONTEXTS {
            if wait == Wait::Forbidden {
                return Err(Stop::Later);
            }
            task::reschedule_if_asked();
            if !self.dropped.is_empty() {
                self.free_dropped();
                continue;
            }
            self.recycled += 1;
            let oldest = (0..self.contexts.len())
                .filter(|&i| self.contexts[i].root != self.current)
                .min_by_key(|&i| self.contexts[i].used);
            match oldest {
                Some(i) => self.remove(i),
                None => self.flush_all(),
            }
        }
        Ok(())
    }

    /// Frees some of what was dropped; says whether there is more. IRQs on.
    pub(crate) fn free_dropped(&mut self) -> bool {
        self.pages -= self.dropped.free(STEP);
        !self.dropped.is_empty()
    }

    /// Forgets everything.
    pub(crate) fn flush_all(&mut self) {
        for i in (0..self.contexts.len()).rev() {
            if self.contexts[i].root != self.current {
                self.remove(i);
            } else {
                let context = &mut self.contexts[i];
                self.dropped.add(context.drop_user_half());
                if context.top.is_none() {
                    // Links into the upper half.
                    drop(context.kernel.clear(256..hole::SLOT));
                    drop(context.kernel.clear(hole::SLOT + 1..512));
                }
            }
        }
        self.dropped.add(self.upper.clear(0..512));
    }

    /// Forgets the user half of the current root.
    pub(crate) fn flush_user(&mut self) {
        if let Some(context) = self.contexts.iter_mut().rfind(|c| c.root == self.current) {
            self.dropped.add(context.drop_user_half());
        }
    }

    /// Forgets one page, small or large: of the current root in the lower half, of all roots in the upper.
    pub(crate) fn flush_one(&mut self, gva: Gva) {
        match shadow::half(gva) {
            Half::Kernel => self.dropped.add(drop_page(&mut self.upper, gva)),
            Half::User => {
                if let Some(context) = self.contexts.iter_mut().rfind(|c| c.root == self.current) {
                    self.dropped.add(drop_page(&mut context.user, gva));
                    self.dropped.add(drop_page(&mut context.kernel, gva));
                }
            }
        }
    }

    /// Forgets `root` wholly; the current one only loses its user half.
    pub(crate) fn drop_root(&mut self, root: Gpa) {
        if root == self.current {
            self.flush_user();
        } else if let Some(i) = self.contexts.iter().rposition(|c| c.root == root) {
            self.remove(i);
        }
    }

    /// Deals with a page fault at `gva` under the current root.
    ///
    /// The Host's failure is `ENOMEM`, or why the Launcher's memory could not be had.
    pub(crate) fn fault(
        &mut self,
        ram: &GuestRam,
        gva: Gva,
        access: Access,
        wait: Wait,
    ) -> Result<Fault, Stop> {
        if gva.is_canonical() {
            match gva.index(4) {
                hole::SLOT if !access.user => return Err(Death::SwitcherSlot(gva).into()),
                SHARED_SLOT if !access.user => {
                    if let Some(fault) = self.map_shared(gva, access, wait)? {
                        return Ok(fault);
                    }
                }
                _ => {}
            }
        }
        let tables = ram.tables(wait);
        let t = match paging::walk(&tables, self.current, gva, access) {
            Ok(t) => t,
            Err(WalkError::Fault(code)) => return Ok(Fault::Inject(code)),
            Err(WalkError::NotCanonical) => return Ok(Fault::GeneralProtection),
            Err(WalkError::TableOutside(_)) if wait == Wait::Forbidden => return Err(Stop::Later),
            Err(WalkError::TableOutside(at)) => {
                return Err(match tables.failure() {
                    Some(error) => error.into(),
                    None => Death::TableOutside(at, gva).into(),
                })
            }
            Err(WalkError::Contended) => return Ok(Fault::Filled),
        };
        let hpa = match (ram.pinned_page(t.gpa), wait) {
            (Some(hpa), _) => hpa,
            (None, Wait::Forbidden) => return Err(Stop::Later),
            (None, Wait::Allowed) => match ram.page(t.gpa)? {
                Some(hpa) => hpa,
                None => return Ok(Fault::Mmio(Gpa::new(t.gpa.get() | gva.offset()))),
            },
        };
        self.make_room(wait)?;
        let i = self.find(self.current, wait)?;
        let Self {
            contexts,
            upper,
            pages,
            ..
        } = self;
        let place = Place {
            gva,
            size: t.size,
            user_page: t.user,
            user_mode: access.user,
        };
        let (table, half) = contexts[i]
            .table_for(upper, place, wait, pages)
            .map_err(no_table(wait))?;
        let Some(leaf) = shadow::leaf(&t, hpa, half) else {
            // `table_for` gave a table of the kernel's to a page of the kernel's.
            return Ok(Fault::Inject(0));
        };
        if table.get(gva.index(1)) == leaf && shadow::permits(leaf, access) {
            return Ok(Fault::Spurious);
        }
        table.set(gva.index(1), leaf);

        // Neighbours which the guest has used and whose memory is there: likely the next to be
        // touched.
        let first = gva.get() & !(AROUND * 4096 - 1);
        for other in (0..AROUND).map(|n| Gva::new(first + n * 4096)) {
            if table.get(other.index(1)) != 0 {
                continue;
            }
            let Some(t) = t.beside(&ram.tables(Wait::Forbidden), gva, other) else {
                continue;
            };
            if let Some(leaf) = ram
                .pinned_page(t.gpa)
                .and_then(|hpa| shadow::leaf(&t, hpa, half))
            {
                table.set(other.index(1), leaf);
                self.prefilled += 1;
            }
        }
        Ok(Fault::Filled)
    }

    /// Maps the shared page at `gva`, if there is one there.
    fn map_shared(&mut self, gva: Gva, access: Access, wait: Wait) -> Result<Option<Fault>, Stop> {
        let n = gva.page().get().wrapping_sub(LGUEST_SHARED_VA as u64) / 4096;
        let Some(hpa) = self.slot.shared_hpa(n as usize) else {
            return Ok(None);
        };
        let leaf = hpa.get() | SHARED_LEAF;
        if !shadow::permits(leaf, access) {
            // It holds data, not code.
            return Ok(Some(Fault::Inject(paging::error::P | paging::error::I)));
        }
        let i = self.find(self.current, wait)?;
        let size = PageSize::Size4K;
        let table = make_leaf_table(&mut self.upper, gva, size, wait, &mut self.pages)
            .map_err(no_table(wait))?;
        let known = table.get(gva.index(1)) == leaf;
        table.set(gva.index(1), leaf);
        if !self.five_levels {
            let entry = self.upper.link(SHARED_SLOT);
            if link(&mut self.contexts[i].kernel, SHARED_SLOT, entry) {
                return Ok(Some(Fault::Filled));
            }
        }
        Ok(Some(if known {
            Fault::Spurious
        } else {
            Fault::Filled
        }))
    }

    pub(crate) fn add_stats(&self, stats: &mut lguest_stats) {
        stats.shadow_pages = self.pages as u64;
        stats.shadow_recycled = self.recycled;
        stats.prefilled = self.prefilled;
    }
}

impl Drop for Mmu {
    /// In steps, as always.
    fn drop(&mut self) {
        self.flush_all();
        while self.free_dropped() {
            task::reschedule_if_asked();
        }
    }
}

/// Reads guest memory at `gva`, under `root`, as the mode would fetch it; returns how many bytes could be
/// read. May sleep.
pub(crate) fn fetch(ram: &GuestRam, root: Gpa, gva: Gva, user: bool, buf: &mut [u8]) -> usize {
    let access = Access {
        write: false,
        fetch: true,
        user,
    };
    let mut done = 0;
    while done < buf.len() {
        let at = Gva::new(gva.get().wrapping_add(done as u64));
        let Ok(t) = paging::walk_quiet(&ram.tables(Wait::Allowed), root, at, access) else {
            break;
        };
        let len = (buf.len() - done).min(4096 - at.offset() as usize);
        let gpa = Gpa::new(t.gpa.get() | at.offset());
        if !ram.read(gpa, &mut buf[done..done + len]) {
            break;
        }
        done += len;
    }
    done
}

/// Makes entry `i` of `table` the link `entry` unless it is already; says whether it changed.
fn link(table: &mut Table, i: usize, entry: u64) -> bool {
    let changed = table.get(i) != entry;
    if changed {
        table.set(i, entry);
    }
    changed
}
