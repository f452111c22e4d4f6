// SPDX-License-Identifier: GPL-2.0

//! The shadow: page tables for the processor, which behave as a TLB of the Guest's own tables.
//!
//! An entry is put in when the Guest faults and its tables have a translation; it is taken out when
//! the Guest flushes or when the memory for tables runs out, and at no other time. (What a flush of a whole half
//! takes out is put in again sooner than other entries: see [`sleep`].) So the Guest sees
//! what it would see on hardware: a stale translation lives until it is flushed, a not-present one
//! is never remembered. Nothing is write-protected, and no write to a page table is ever noticed.
//!
//! A *context* is what is cached for one root (CR3). The Guest's two modes are one to the
//! processor, CPL 3, so it has two roots for them, and which tables hang under which root does the
//! work of U/S and of SMEP:
//!
//! ```text
//!   user root    kernel root
//!   [0..256] --+-- [0..256] + NX       the tables of the user half are shared (NX is SMEP)
//!              |   [256..512] --- upper, one for all contexts: the kernel half is global
//!   [slot] ----+-- [slot] ------------ the switcher's
//! ```
//!
//! On a Host with five levels these tables hang at 0 and 511 of a table above, and the slot in that.
//!
//! A page of the lower half which only the kernel may use must not be in the shared tables. Where
//! there is one (the Launcher's identity map; text_poke's page) the kernel root gets tables of its
//! own at that top-level entry: a *split*.
//!
//! Nothing here allocates: tables come from a stock, which whoever may wait for memory keeps full,
//! and tables that were dropped go back to it. Nothing here takes longer the more tables there are,
//! but for [`Shadow::sweep`], which takes a limit.

mod context;
mod cursor;
mod dropped;
mod entry;
mod leaf;
mod sleep;
mod stock;
mod table;

pub use context::Config;
pub use dropped::{Dropped, Scope};
pub use leaf::{half, leaf, permits, Half};
pub use stock::Refused;
pub use table::{List, Table, OWNED, TABLE};

use super::addr::{Gpa, Gva, Hpa, PAGE_SIZE};
use super::monitor::{root_of, Monitor};
use super::paging::{
    walk, Access, PageSize, Region, TableMemory, Translation, WalkError, A, ADDR, NX, P, W,
};
use super::tags::Generations;
use context::{Context, MOST_ROOTS};
use core::ops::{Deref, DerefMut};
use cursor::{clear, drop_page, make_leaf_table, Gone};
use entry::put;
use sleep::{put_to_sleep, Guest};
use stock::Stock;

/// The most contexts that there should be, so that looking for one stays quick.
pub const MAX_CONTEXTS: usize = 128;
/// Tables in a full stock: some processes' worth, so that a section seldom ends for want of one.
pub const STOCK: usize = 32;
/// The most tables that one fill takes.
const MOST_FILLED: usize = 3;
/// Pages looked at around one that faulted, in one table of level 1.
const AROUND: u64 = 16;

/// The outcome of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The shadow has it now, and as many neighbours that were not asked for.
    New(u64),
    /// The shadow had it already: the processor faulted by a stale entry of its TLB.
    Spurious,
}

/// The part that the Guest flushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// The page, small or large, that this address is in: of the root at hand in the lower half, of
    /// all roots in the upper.
    Page(Gva),
    /// The same for as many pages, the first of which has this address. All are in one half.
    Pages(Gva, usize),
    /// The lower half of the root at hand.
    Lower,
    /// Everything.
    All,
}

/// A root that a vCPU is on. It is the vCPU's, who has one at any time: the shadow never drops what
/// is at the top of its tables, and does not know who has it.
#[derive(Debug)]
pub struct Root {
    gpa: Gpa,
    index: usize,
    kernel: Hpa,
    user: Hpa,
}

impl Root {
    /// The Guest's: CR3.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// The root that the processor loads for Guest kernel mode.
    pub fn kernel(&self) -> Hpa {
        self.kernel
    }

    /// The root that the processor loads for Guest user mode.
    pub fn user(&self) -> Hpa {
        self.user
    }

    /// The seat of its context: of which generations ([`Generations`]) what a processor knows of it has to be.
    pub fn seat(&self) -> usize {
        self.index
    }
}

/// A fault whose walk succeeded: what is to be filled in once the Host's page is known.
///
/// It holds as long as the Guest flushes nothing, on no vCPU. So the walk may be as old as the last
/// flush: a TLB, too, might have walked then, and no later.
#[derive(Clone, Copy, Debug)]
pub struct Resolved {
    root: Gpa,
    gva: Gva,
    access: Access,
    translation: Translation,
    /// [`Shadow::flushes`] before the first entry was read.
    flushes: u64,
}

impl Resolved {
    /// The Guest's page.
    pub fn gpa(&self) -> Gpa {
        self.translation.gpa
    }

    /// Says whether it is this fault's.
    pub fn is_of(&self, at: &Root, gva: Gva, access: Access) -> bool {
        (self.root, self.gva, self.access) == (at.gpa, gva, access)
    }
}

/// A place for a context, and one in the order of their use. What is in the one has nothing to do with
/// what is in the other.
pub struct Seat<T: Table> {
    context: Option<Context<T>>,
    /// In the `n`th seat: the root that was loaded `n`th last, and in which seat its context is.
    recent: (Gpa, usize),
}

impl<T: Table> Seat<T> {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            context: None,
            recent: (Gpa::new(0), 0),
        }
    }
}

impl<T: Table> Default for Seat<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The whole cache of one VM. `S` is room for contexts: as many as there can be, and not more than
/// [`MAX_CONTEXTS`]. `G` is where it says that something is gone.
pub struct Shadow<T: Table, S, G> {
    config: Config,
    seats: S,
    generations: G,
    /// The number of contexts.
    count: usize,
    upper: T::Owned,
    stock: Stock<T>,
    /// Tables in use, and those that were dropped but are not free yet; without the stock.
    tables: usize,
    /// The number of the Guest's flushes.
    flushes: u64,
    /// Whose slots are translated by a root of their own.
    monitor: Option<Monitor>,
    /// Which of them was the last of everything.
    flushed: u64,
}

impl<T, S, G> Shadow<T, S, G>
where
    T: Table,
    S: DerefMut<Target = [Seat<T>]>,
    G: Deref<Target = Generations<MAX_CONTEXTS>>,
{
    /// An empty one, without a stock; so are `seats` and `upper`.
    pub fn new(config: Config, seats: S, upper: T::Owned, generations: G) -> Self {
        Self {
            config,
            seats,
            generations,
            count: 0,
            upper,
            stock: Stock::new(),
            tables: 1,
            flushes: 0,
            monitor: None,
            flushed: 0,
        }
    }

    /// The number of tables that the stock lacks, if it is worth while to get some.
    pub fn wants(&self) -> usize {
        if self.stock.count < STOCK / 2 {
            STOCK - self.stock.count
        } else {
            0
        }
    }

    /// Puts an empty table in the stock.
    pub fn stock_up(&mut self, table: T::Owned) {
        self.stock.put(table);
    }

    /// The number of tables: those in use, and those that were dropped but are not free yet.
    pub fn tables(&self) -> usize {
        self.tables
    }

    /// The first root of a vCPU.
    pub fn enter(&mut self, root: Gpa) -> Result<Root, Refused> {
        let index = self.find(root)?;
        let context = context(&mut self.seats, index)?;
        if context.flushed != self.flushed {
            // No vCPU has been on it since, and at that time all processors forgot it.
            context.forget(self.flushed, self.config.slot, &mut self.stock.retired);
            context.link_all_upper(&*self.upper, self.config.slot);
            self.generations.move_lower(index);
        }
        context.holders = context.holders.saturating_add(1);
        let (kernel, user) = context.roots();
        Ok(Root {
            gpa: root,
            index,
            kernel,
            user,
        })
    }

    /// Takes the vCPU at `at` to `root`. Without `keep` the lower half of that is forgotten first:
    /// that is CR3 bit 63. When it is refused, `at` is what it was.
    pub fn load(&mut self, at: &mut Root, root: Gpa, keep: bool) -> Result<Dropped<T>, Refused> {
        let new = self.enter(root)?;
        if let Ok(old) = context(&mut self.seats, at.index) {
            old.holders = old.holders.saturating_sub(1);
        }
        *at = new;
        Ok(if keep {
            nothing()
        } else {
            self.flush(at, Flush::Lower)
        })
    }

    /// The seat of the context of `root`, made if it is missing. It is the most recent one then.
    fn find(&mut self, root: Gpa) -> Result<usize, Refused> {
        let (place, index) = match self.known(root) {
            Some(known) => known,
            None => self.make()?,
        };
        // What was before it moves one place down.
        let mut moving = (root, index);
        for seat in self.seats.iter_mut().take(place.saturating_add(1)) {
            core::mem::swap(&mut seat.recent, &mut moving);
        }
        Ok(index)
    }

    /// The place of `root` in the order, and the seat of its context.
    fn known(&self, root: Gpa) -> Option<(usize, usize)> {
        let mut order = self.seats.iter().take(self.count).enumerate();
        order.find_map(|(place, seat)| (seat.recent.0 == root).then_some((place, seat.recent.1)))
    }

    /// Makes a context; its place in the order is the last one.
    fn make(&mut self) -> Result<(usize, usize), Refused> {
        if self.needs_room() {
            return Err(Refused::Room);
        }
        if self.stock.count < MOST_ROOTS {
            return Err(Refused::Stock);
        }
        let mut seats = self.seats.iter_mut().enumerate();
        let (index, seat) = seats
            .find(|(_, seat)| seat.context.is_none())
            .ok_or(Refused::Room)?;
        let before = self.stock.count;
        let upper = self.upper.hpa();
        let mut context = Context::new(&self.config, upper, self.flushed, &mut self.stock)?;
        context.link_all_upper(&*self.upper, self.config.slot);
        seat.context = Some(context);
        // Whatever a processor knows by this seat is of another one.
        self.generations.move_lower(index);
        self.tables = self.tables.saturating_add(before - self.stock.count);
        let place = self.count;
        self.count = self.count.saturating_add(1);
        Ok((place, index))
    }

    /// Removes the context at this place of the order, unless a vCPU is on it.
    fn remove(&mut self, place: usize, to: &mut T::List) -> Option<Gpa> {
        let (root, index) = self.seats.get(place)?.recent;
        let context = &mut self.seats.get_mut(index)?.context;
        if context.as_ref()?.holders > 0 {
            return None;
        }
        context.take()?.drop_all(to);
        // What is behind it moves one place up.
        let mut moving = (Gpa::new(0), 0);
        let behind = self.seats.iter_mut().take(self.count).skip(place);
        for seat in behind.rev() {
            core::mem::swap(&mut seat.recent, &mut moving);
        }
        self.count = self.count.saturating_sub(1);
        Some(root)
    }

    /// Removes the least recently loaded context that no vCPU is on.
    fn remove_last(&mut self, to: &mut T::List) -> Option<Gpa> {
        let places = (0..self.count).rev();
        places.into_iter().find_map(|place| self.remove(place, to))
    }

    /// Whether something has to go before there can be another context, or a translation that is
    /// new.
    pub fn needs_room(&self) -> bool {
        self.tables >= self.config.max_tables || self.count >= self.seats.len()
    }

    /// Makes room, when nothing that was dropped is left: drops the least recently loaded context that no
    /// vCPU is on, or else everything.
    pub fn evict(&mut self) -> Dropped<T> {
        let mut tables = T::List::new();
        let scope = match self.remove_last(&mut tables) {
            Some(root) => Scope::Lower(root),
            None => {
                self.drop_all(&mut tables);
                Scope::All
            }
        };
        Dropped { tables, scope }
    }

    /// From now on, the slots of `monitor` are translated by its root. Forgets everything, for the vCPU at `at`
    /// as for the others.
    pub fn set_monitor(&mut self, at: &Root, monitor: Monitor) -> Dropped<T> {
        self.monitor = Some(monitor);
        self.flush(at, Flush::All)
    }

    /// Walks the Guest's tables for a fault. As many times as it may be done, it is done without a
    /// change to the shadow.
    pub fn resolve<M: TableMemory>(
        &self,
        at: &Root,
        memory: &M,
        gva: Gva,
        access: Access,
    ) -> Result<Resolved, WalkError> {
        let root = root_of(self.monitor.as_ref(), at.gpa, gva, access.user);
        Ok(Resolved {
            root: at.gpa,
            gva,
            access,
            flushes: self.flushes,
            translation: walk(memory, root, gva, access)?,
        })
    }

    /// Fills in a translation whose page the Host has at `hpa`, and such neighbours as the Guest
    /// has used and whose memory is at hand: they are likely to be touched next. `page` says where
    /// that is.
    pub fn fill<M: TableMemory>(
        &mut self,
        at: &Root,
        resolved: &Resolved,
        hpa: Hpa,
        memory: &M,
        page: impl Fn(Gpa) -> Option<Hpa>,
    ) -> Result<Filled, Refused> {
        let Resolved {
            gva,
            access,
            translation: t,
            ..
        } = resolved;
        if resolved.flushes != self.flushes || resolved.root != at.gpa {
            return Err(Refused::Stale);
        }
        if self.tables >= self.config.max_tables {
            return Err(Refused::Room);
        }
        if self.stock.count < MOST_FILLED {
            return Err(Refused::Stock);
        }
        let before = self.stock.count;
        let context = context(&mut self.seats, at.index)?;
        let split = context.is_split(*gva);
        let guest = Memory {
            root: at.gpa,
            monitor: self.monitor.as_ref(),
            memory,
            page,
        };
        let (filled, refreshed) = context.fill(
            &mut *self.upper,
            (*gva, t, *access),
            self.config.slot,
            &mut self.stock,
            &guest,
            |table, half| {
                let old = table.get(gva.index(1));
                let filled = fill_around(table, *gva, t, *access, hpa, half, &guest);
                (filled, loses(old, table.get(gva.index(1))))
            },
        )?;
        self.tables = self.tables.saturating_add(before - self.stock.count);
        let (filled, lost) = filled;
        // Where a split begins, kernel mode loses what it had of the shared tables.
        if context.is_split(*gva) != split {
            self.lost(half(*gva), Some(at.index));
        } else if lost {
            self.lost_page(*gva, Some(at.index));
        }
        Ok(match filled? {
            Filled::New(neighbours) => Filled::New(neighbours + refreshed),
            Filled::Spurious if refreshed > 0 => Filled::New(refreshed),
            Filled::Spurious => Filled::Spurious,
        })
    }

    /// Revives what was in use before a flush, of the halves that sleep, for the vCPU at `at`, which is on it; says
    /// how many pages that were. `page` is as in [`fill`](Self::fill).
    pub fn revive<M: TableMemory>(
        &mut self,
        at: &Root,
        memory: &M,
        page: impl Fn(Gpa) -> Option<Hpa>,
    ) -> u64 {
        let guest = Memory {
            root: at.gpa,
            monitor: self.monitor.as_ref(),
            memory,
            page,
        };
        context(&mut self.seats, at.index).map_or(0, |context| {
            context.revive(&mut *self.upper, self.config.slot, &guest, &mut self.stock)
        })
    }

    /// Makes `entry` the one of level 1 for `gva`, in the upper half, whatever the Guest's tables
    /// say. As [`fill`](Self::fill), without neighbours.
    pub fn map(&mut self, at: &Root, gva: Gva, entry: u64) -> Result<Filled, Refused> {
        if self.stock.count < MOST_FILLED {
            return Err(Refused::Stock);
        }
        let before = self.stock.count;
        let upper = &mut *self.upper;
        // What else was in a table that slept, the Guest has to fault for.
        let forget = |table: &mut T| {
            put_to_sleep(table, 0..512, &mut T::List::new());
        };
        let table = make_leaf_table(upper, gva, PageSize::Size4K, &mut self.stock, forget)?;
        let lost = loses(table.get(gva.index(1)), entry);
        let new = put(table, gva.index(1), entry);
        self.tables = self.tables.saturating_add(before - self.stock.count);
        if lost {
            self.lost_page(gva, Some(at.index));
        }
        let context = context(&mut self.seats, at.index)?;
        let linked = context.link_upper(&*self.upper, gva.index(4), self.config.slot);
        Ok(if new || linked {
            Filled::New(0)
        } else {
            Filled::Spurious
        })
    }

    /// Forgets what the Guest flushes on the vCPU at `at`.
    pub fn flush(&mut self, at: &Root, what: Flush) -> Dropped<T> {
        self.flush_at(at.gpa, Some(at.index), what)
    }

    /// The same for `root`, whose context is in that seat, if it has one.
    fn flush_at(&mut self, root: Gpa, index: Option<usize>, what: Flush) -> Dropped<T> {
        self.flushes = self.flushes.wrapping_add(1);
        let mut tables = T::List::new();
        let scope = match what {
            Flush::All => {
                self.put_all_to_sleep(&mut tables);
                Scope::All
            }
            Flush::Lower => {
                let any = self
                    .context(index)
                    .is_ok_and(|context| context.put_lower_to_sleep(&mut tables));
                if any {
                    self.lost(Half::User, index);
                    Scope::Lower(root)
                } else {
                    Scope::Nothing
                }
            }
            Flush::Page(gva) => match self.drop_page(index, gva, &mut tables) {
                Gone::Nothing => Scope::Nothing,
                Gone::Leaf => Scope::Page(root, gva.canonicalize()),
                Gone::Tables => Self::scope_of_half(root, gva),
            },
            Flush::Pages(first, count) => {
                let mut any = false;
                for n in 0..count as u64 {
                    let gva = Gva::new(first.get().wrapping_add(n * PAGE_SIZE));
                    any |= self.drop_page(index, gva, &mut tables) != Gone::Nothing;
                }
                if any {
                    Self::scope_of_half(root, first)
                } else {
                    Scope::Nothing
                }
            }
        };
        Dropped { tables, scope }
    }

    /// The same for a vCPU that is on `root`, which need not be the caller's.
    pub fn flush_root(&mut self, root: Gpa, what: Flush) -> Dropped<T> {
        let index = self.known(root).map(|(_, index)| index);
        self.flush_at(root, index, what)
    }

    /// Drops the page that `gva` is in.
    fn drop_page(&mut self, index: Option<usize>, gva: Gva, to: &mut T::List) -> Gone {
        let gone = if half(gva) == Half::Kernel {
            drop_page(&mut *self.upper, gva, to)
        } else {
            self.context(index)
                .map_or(Gone::Nothing, |context| context.drop_page(gva, to))
        };
        match gone {
            Gone::Nothing => {}
            Gone::Leaf => self.lost_page(gva, index),
            Gone::Tables => self.lost(half(gva), index),
        }
        gone
    }

    /// Something of this half is gone: of all contexts, or of the one in that seat.
    fn lost(&self, half: Half, index: Option<usize>) {
        match (half, index) {
            (Half::Kernel, _) => self.generations.move_upper(),
            (Half::User, Some(index)) => self.generations.move_lower(index),
            (Half::User, None) => {}
        }
    }

    /// An entry of level 1 is gone, or is another: that of `gva`.
    fn lost_page(&self, gva: Gva, index: Option<usize>) {
        match (half(gva), index) {
            (Half::Kernel, _) => self.generations.move_page(None, gva),
            (Half::User, Some(index)) => self.generations.move_page(Some(index), gva),
            (Half::User, None) => {}
        }
    }

    /// The context in a seat, if there is one.
    fn context(&mut self, index: Option<usize>) -> Result<&mut Context<T>, Refused> {
        context(&mut self.seats, index.ok_or(Refused::Stale)?)
    }

    /// All of the half that `gva` is in.
    fn scope_of_half(root: Gpa, gva: Gva) -> Scope {
        match half(gva) {
            Half::Kernel => Scope::All,
            Half::User => Scope::Lower(root),
        }
    }

    /// Forgets `root` wholly, but for the top of its tables where a vCPU is on it.
    pub fn drop_root(&mut self, root: Gpa) -> Dropped<T> {
        let known = self.known(root);
        let mut tables = T::List::new();
        if known.is_some_and(|(place, _)| self.remove(place, &mut tables).is_some()) {
            let scope = Scope::Lower(root);
            return Dropped { tables, scope };
        }
        let index = known.map(|(_, index)| index);
        let mut dropped = self.flush_at(root, index, Flush::Lower);
        if let Ok(context) = self.context(index) {
            // Nothing of it will be used again.
            context.drop_lower(&mut dropped.tables);
        }
        dropped
    }

    /// Has everything sleep. A context that no vCPU is on will hear of it when one loads it.
    fn put_all_to_sleep(&mut self, to: &mut T::List) {
        self.flushed = self.flushes;
        for place in 0..self.count {
            let index = self.seats.get(place).map_or(0, |seat| seat.recent.1);
            if let Ok(context) = context(&mut self.seats, index) {
                if context.holders > 0 {
                    context.forget(self.flushed, self.config.slot, to);
                    self.generations.move_lower(index);
                }
            }
        }
        put_to_sleep(&mut *self.upper, 0..512, to);
        self.generations.move_upper();
    }

    /// Forgets everything; the contexts that a vCPU is on stay, empty.
    fn drop_all(&mut self, to: &mut T::List) {
        while self.remove_last(to).is_some() {}
        for place in 0..self.count {
            let index = self.seats.get(place).map_or(0, |seat| seat.recent.1);
            if let Ok(context) = context(&mut self.seats, index) {
                context.drop_lower(to);
                context.unlink_upper(self.config.slot, to);
                self.generations.move_lower(index);
            }
        }
        clear(&mut *self.upper, 0..512, to);
        self.generations.move_upper();
    }

    /// Forgets even the roots of the vCPUs: the end, which no [`Root`] outlives.
    pub fn dismantle(&mut self) -> Dropped<T> {
        let mut tables = T::List::new();
        self.drop_all(&mut tables);
        for seat in self.seats.iter_mut() {
            if let Some(context) = seat.context.take() {
                context.drop_all(&mut tables);
            }
        }
        self.count = 0;
        Dropped {
            tables,
            scope: Scope::All,
        }
    }

    /// Takes what was dropped, of which processors may know still.
    pub fn retire(&mut self, dropped: Dropped<T>) {
        self.stock.retired.append(dropped.tables);
    }

    /// Begins the grace period of all that was dropped so far, unless there is one, or nothing to wait for; says
    /// whether it begins. It ends ([`end_grace`](Self::end_grace)) when each processor that has been in the Guest
    /// since this returned was out of it once: then none knows the way to these tables any more.
    pub fn begin_grace(&mut self) -> bool {
        if self.in_grace() || self.stock.retired.is_empty() {
            return false;
        }
        core::mem::swap(&mut self.stock.waiting, &mut self.stock.retired);
        true
    }

    /// Is there a grace period whose end nobody has told yet?
    pub fn in_grace(&self) -> bool {
        !self.stock.waiting.is_empty()
    }

    /// The grace period is over: [`sweep`](Self::sweep) may have the tables.
    pub fn end_grace(&mut self) {
        let waiting = core::mem::replace(&mut self.stock.waiting, T::List::new());
        self.stock.buried.append(waiting);
    }

    /// Empties tables whose grace period is over, `limit` of them at most, for the stock or else to be freed;
    /// says whether there are more. Takes up to 512 steps for each.
    pub fn sweep(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            let Some(mut table) = self.stock.buried.pop() else {
                break;
            };
            // What was below it nobody knows either.
            clear(&mut *table, 0..512, &mut self.stock.buried);
            self.tables = self.tables.saturating_sub(1);
            if self.stock.count < STOCK {
                self.stock.put(table);
            }
        }
        !self.stock.buried.is_empty()
    }
}

/// The Guest's memory, as the vCPU sees it that is on `root`.
struct Memory<'a, M, F> {
    root: Gpa,
    monitor: Option<&'a Monitor>,
    memory: &'a M,
    page: F,
}

impl<M: TableMemory, F: Fn(Gpa) -> Option<Hpa>> Guest for Memory<'_, M, F> {
    fn region(&self, gva: Gva) -> Option<Region> {
        // What only one of the modes has, the kernel has.
        let root = root_of(self.monitor, self.root, gva, false);
        Region::find(self.memory, root, gva)
    }

    fn entries<'b>(
        &'b self,
        region: &'b Region,
        half: Half,
    ) -> Option<impl Fn(Gva) -> Option<u64> + 'b> {
        let pages = region.pages(self.memory)?;
        Some(move |gva| {
            let t = pages(gva)?;
            leaf(&t, (self.page)(t.gpa)?, half)
        })
    }
}

/// Is anything gone that entry `old` of level 1 allowed, now that it is `new`?
fn loses(old: u64, new: u64) -> bool {
    old & P != 0 && ((old ^ new) & (P | ADDR) != 0 || (old ^ NX) & !(new ^ NX) & (W | NX) != 0)
}

/// Fills a table of level 1 with the translation `t` of `gva`, whose page is at `hpa`, and with its neighbours.
fn fill_around<T: Table>(
    table: &mut T,
    gva: Gva,
    t: &Translation,
    access: Access,
    hpa: Hpa,
    half: Half,
    guest: &impl Guest,
) -> Result<Filled, Refused> {
    // Never `None`: a page of the kernel's got a table of the kernel's.
    let entry = leaf(t, hpa, half).ok_or(Refused::Stale)?;
    // The processor does not fault for want of A.
    if table.get(gva.index(1)) | A == entry && permits(entry, access) {
        return Ok(Filled::Spurious);
    }
    put(table, gva.index(1), entry);

    let mut neighbours = 0;
    let region = t.region(gva);
    let Some(entry) = guest.entries(&region, half) else {
        return Ok(Filled::New(0));
    };
    let first = gva.get() & !(AROUND * PAGE_SIZE - 1);
    for other in (0..AROUND).map(|n| Gva::new(first | (n * PAGE_SIZE))) {
        if table.get(other.index(1)) != 0 {
            continue;
        }
        if let Some(entry) = entry(other) {
            put(table, other.index(1), entry);
            neighbours += 1;
        }
    }
    Ok(Filled::New(neighbours))
}

fn nothing<T: Table>() -> Dropped<T> {
    Dropped {
        tables: T::List::new(),
        scope: Scope::Nothing,
    }
}

fn context<T: Table>(seats: &mut [Seat<T>], index: usize) -> Result<&mut Context<T>, Refused> {
    seats
        .get_mut(index)
        .and_then(|seat| seat.context.as_mut())
        .ok_or(Refused::Stale)
}
