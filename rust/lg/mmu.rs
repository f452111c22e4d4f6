// SPDX-License-Identifier: GPL-2.0

//! Page faults: resolve, then fill.
//!
//! What the shadow is, and what it does, is in `lg-core/shadow`. It has no memory of its own and cannot
//! wait; here it gets what it needs, and its faults are led to where they belong.
//!
//! A fault is *resolved* first: its address is special, or the Guest's tables are walked. Then the shadow is
//! *filled*. All of that happens in the run section, with interrupts off, and allocates nothing. What is
//! missing has a name ([`Need`]): it is fetched outside, and the walk is not done again, since the vCPU keeps
//! its result.

use crate::{
    abi::*,
    blame::Death,
    crew::{
        Crew,
        Visits, //
    },
    lg_core::{
        addr::{
            Gpa,
            Gva, //
        },
        monitor::{
            self,
            Monitor, //
        },
        paging::{
            self,
            Access,
            WalkError, //
        },
        shadow::{
            self,
            Config,
            Dropped,
            Filled,
            Flush,
            Half,
            Refused,
            Resolved,
            Root,
            Seat,
            Shadow,
            MAX_CONTEXTS, //
        },
        tags, //
    },
    sys::{
        hole,
        ram::{
            GuestRam,
            Look,
            Looker, //
        },
        slots::Lease,
        switcher::SHARED_LEAF,
        table::{
            self,
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

/// The top-level entry of the shared pages.
const SHARED_SLOT: usize = Gva::new(LGUEST_SHARED_VA as u64).index(4);
/// Tables that are emptied in one go: some hundred thousand instructions at most.
const STEP: usize = 256;

/// The outcome of a page fault.
pub(crate) enum Fault {
    /// Try again: the shadow has it now.
    Filled,
    /// Try again after dropping the page from the TLB: the shadow had it already.
    Spurious,
    /// It is the Guest's fault: #PF with this error code.
    Inject(u32),
    /// Not canonical for a Guest of four levels: #GP.
    GeneralProtection,
    /// The address leads to something that is not RAM.
    Mmio(Gpa),
}

/// The thing that is missing, and may have to be waited for.
pub(crate) enum Need {
    /// This page of the Guest's RAM.
    Page(Gpa),
    /// Tables in the shadow's stock.
    Stock,
    /// Tables or contexts within the budget.
    Room,
}

/// The reasons why a fault is not one to fill in, or not yet.
pub(crate) enum Unresolved {
    /// There is nothing to fill in.
    Settled(Fault),
    /// It cannot be dealt with without this.
    Need(Need),
    Death(Death),
}

impl From<Fault> for Unresolved {
    fn from(fault: Fault) -> Self {
        Self::Settled(fault)
    }
}

impl From<Death> for Unresolved {
    fn from(death: Death) -> Self {
        Self::Death(death)
    }
}

impl From<Need> for Unresolved {
    fn from(need: Need) -> Self {
        Self::Need(need)
    }
}

/// What of one VM's shadow is gone, as those see it who do not hold its lock.
pub(crate) type Generations = tags::Generations<MAX_CONTEXTS>;

/// The whole cache of one VM. It points into the VM's RAM: a vCPU enters the Guest only where the Host has taken none of
/// that since everything was forgotten (`Shared::follow`).
pub(crate) struct Mmu {
    shadow: Shadow<Table, KVec<Seat<Table>>, Arc<Generations>>,
    lease: Arc<Lease>,
    /// For whom the grace period of dropped tables waits, while there is one.
    mourned: Visits,
    prefilled: u64,
    recycled: u64,
}

impl Mmu {
    /// `max_pages` is the budget for shadow tables, `generations` a new VM's.
    pub(crate) fn new(
        (lease, generations): (Arc<Lease>, Arc<Generations>),
        five_levels: bool,
        max_pages: usize,
    ) -> Result<impl Init<Self>> {
        let mut seats = KVec::with_capacity(MAX_CONTEXTS, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..MAX_CONTEXTS {
            seats.push(Seat::new(), GFP_KERNEL_ACCOUNT)?;
        }
        let upper = TableBox::new()?;
        let config = Config {
            slot: hole::SLOT,
            slot_entry: lease.link(),
            five_levels,
            max_tables: max_pages,
        };
        Ok(init!(Mmu {
            shadow: Shadow::new(config, seats, upper, generations),
            lease,
            mourned: Visits::NONE,
            prefilled: 0,
            recycled: 0,
        }))
    }

    /// The root of a vCPU that begins there.
    pub(crate) fn enter(&mut self, root: Gpa) -> Result<Root, Need> {
        self.shadow.enter(root).map_err(|refused| match refused {
            Refused::Room => Need::Room,
            // Stale is nothing here, since nothing was resolved.
            Refused::Stock | Refused::Stale => Need::Stock,
        })
    }

    /// Takes the vCPU at `at` to `root`. Without `keep` the lower half of that is forgotten first: that is CR3
    /// bit 63.
    pub(crate) fn load(
        &mut self,
        look: &Look<'_>,
        at: &mut Root,
        root: Gpa,
        keep: bool,
    ) -> Result<(), Need> {
        match self.shadow.load(at, root, keep) {
            Ok(dropped) => self.forget(dropped),
            Err(Refused::Room) => return Err(Need::Room),
            // Stale is nothing here, since nothing was resolved.
            Err(Refused::Stock | Refused::Stale) => return Err(Need::Stock),
        }
        if !keep {
            self.revive(look, at);
        }
        Ok(())
    }

    /// Forgets what the Guest flushes on the vCPU at `at`.
    pub(crate) fn flush(&mut self, look: &Look<'_>, at: &Root, what: Flush) {
        let dropped = self.shadow.flush(at, what);
        self.forget(dropped);
        if matches!(what, Flush::Lower | Flush::All) {
            self.revive(look, at);
        }
    }

    /// Forgets what is flushed on those of the `set` of vCPUs; for the one at `at`, which does that, some of it is
    /// got back.
    pub(crate) fn flush_vcpus(
        &mut self,
        look: &Look<'_>,
        at: &Root,
        crew: &Crew,
        set: u64,
        what: Flush,
    ) {
        let of_all = match what {
            Flush::All => true,
            Flush::Page(gva) | Flush::Pages(gva, _) => shadow::half(gva) == Half::Kernel,
            Flush::Lower => false,
        };
        for (n, root) in crew.roots(set).enumerate() {
            // Once for each root, or for all of them.
            if n > 0 && of_all {
                break;
            }
            if !crew.roots(set).take(n).any(|other| other == root) {
                let dropped = self.shadow.flush_root(Gpa::new(root), what);
                self.forget(dropped);
            }
        }
        if matches!(what, Flush::Lower | Flush::All) {
            self.revive(look, at);
        }
    }

    /// Gets back what is still true of what was in use before a flush: the Guest goes on with that.
    fn revive(&mut self, look: &Look<'_>, at: &Root) {
        self.prefilled += self.shadow.revive(at, look, |gpa| look.page(gpa));
    }

    /// Forgets `root` wholly; if a vCPU is on it, only its lower half.
    pub(crate) fn drop_root(&mut self, root: Gpa) {
        let dropped = self.shadow.drop_root(root);
        self.forget(dropped);
    }

    /// From now on, the slots of `monitor` are translated by its root. Forgets everything.
    pub(crate) fn set_monitor(&mut self, at: &Root, monitor: Monitor) {
        let dropped = self.shadow.set_monitor(at, monitor);
        self.forget(dropped);
    }

    /// Who is in the Guest goes on with it for a while. Who has flushed something waits for that by himself.
    fn forget(&mut self, dropped: Dropped<Table>) {
        self.shadow.retire(dropped);
    }

    /// Ends the grace period of what was dropped if nobody is in the Guest any more who was, and begins the next one.
    fn mourn(&mut self, crew: &Crew) {
        if self.shadow.in_grace() && crew.are_over(&self.mourned) {
            self.shadow.end_grace();
        }
        if self.shadow.begin_grace() {
            match crew.visits(!0) {
                Some(visits) => self.mourned = visits,
                None => self.shadow.end_grace(),
            }
        }
    }

    /// Does some of what was put off to here, where IRQs are on: frees what was dropped, and fills the stock;
    /// says whether there is more. May sleep.
    pub(crate) fn tidy(&mut self, crew: &Crew) -> bool {
        self.mourn(crew);
        if self.shadow.sweep(STEP) {
            return true;
        }
        // If there is no memory now, who needs it will say so.
        let _ = self.stock_up();
        false
    }

    /// Fills the stock. May sleep.
    pub(crate) fn stock_up(&mut self) -> Result {
        for _ in 0..self.shadow.wants() {
            self.shadow.stock_up(TableBox::new()?);
        }
        Ok(())
    }

    /// Brings the tables below the budget: what was dropped goes first, then least recently used contexts, then
    /// everything. The roots that vCPUs are on lose what they map at most, so they never dangle. IRQs on.
    ///
    /// Where that has to wait for others, it says for whom, and is to be called again then.
    pub(crate) fn make_room(&mut self, crew: &Crew) -> Option<Visits> {
        while self.shadow.needs_room() {
            task::reschedule_if_asked();
            self.mourn(crew);
            if self.shadow.sweep(STEP) || !self.shadow.needs_room() {
                continue;
            }
            if self.shadow.in_grace() {
                return Some(self.mourned.clone());
            }
            self.recycled += 1;
            let dropped = self.shadow.evict();
            self.forget(dropped);
        }
        None
    }

    /// Deals with a page fault at `gva` on the vCPU at `at`, which keeps in `walked` what is worth to be kept
    /// until the fault is tried again. Never waits.
    pub(crate) fn fault(
        &mut self,
        look: &Look<'_>,
        at: &Root,
        walked: &mut Option<Resolved>,
        gva: Gva,
        access: Access,
    ) -> Result<Fault, Unresolved> {
        let known = walked.take().filter(|walk| walk.is_of(at, gva, access));
        let resolved = match known {
            Some(resolved) => resolved,
            None => self.resolve(look, at, gva, access)?,
        };
        let gpa = resolved.gpa();
        let Some(hpa) = look.page(gpa) else {
            *walked = Some(resolved);
            return if look.contains(gpa) {
                Err(Need::Page(gpa).into())
            } else {
                Ok(Fault::Mmio(Gpa::new(gpa.get() | gva.offset())))
            };
        };
        let page = |gpa| look.page(gpa);
        let need = match self.shadow.fill(at, &resolved, hpa, look, page) {
            Ok(Filled::New(neighbours)) => {
                self.prefilled += neighbours;
                return Ok(Fault::Filled);
            }
            Ok(Filled::Spurious) => return Ok(Fault::Spurious),
            // The Guest will fault again.
            Err(Refused::Stale) => return Ok(Fault::Filled),
            Err(Refused::Stock) => Need::Stock,
            Err(Refused::Room) => Need::Room,
        };
        *walked = Some(resolved);
        Err(need.into())
    }

    /// The translation of `gva`.
    fn resolve(
        &mut self,
        look: &Look<'_>,
        at: &Root,
        gva: Gva,
        access: Access,
    ) -> Result<Resolved, Unresolved> {
        if gva.is_canonical() {
            match gva.index(4) {
                hole::SLOT if !access.user => {
                    return Err(Death::SwitcherSlot(gva).into());
                }
                SHARED_SLOT if !access.user => {
                    if let Some(fault) = self.map_shared(at, gva, access)? {
                        return Err(fault.into());
                    }
                }
                _ => {}
            }
        }
        self.shadow
            .resolve(at, look, gva, access)
            .map_err(|error| match error {
                WalkError::Fault(code) => Fault::Inject(code).into(),
                WalkError::NotCanonical => Fault::GeneralProtection.into(),
                WalkError::TableOutside(table) if look.contains(table) => Need::Page(table).into(),
                WalkError::TableOutside(table) => Death::TableOutside(table, gva).into(),
                // The Guest will fault again.
                WalkError::Contended => Fault::Filled.into(),
            })
    }

    /// Maps the shared page at `gva`, if there is one there.
    fn map_shared(&mut self, at: &Root, gva: Gva, access: Access) -> Result<Option<Fault>, Need> {
        let n = gva.page().get().wrapping_sub(LGUEST_SHARED_VA as u64) / 4096;
        let Some(hpa) = self.lease.shared_hpa(n as usize) else {
            return Ok(None);
        };
        let leaf = hpa.get() | SHARED_LEAF;
        if !shadow::permits(leaf, access) {
            // It holds data, not code.
            return Ok(Some(Fault::Inject(paging::error::P | paging::error::I)));
        }
        Ok(Some(match self.shadow.map(at, gva, leaf) {
            Ok(Filled::New(_)) | Err(Refused::Stale) => Fault::Filled,
            Ok(Filled::Spurious) => Fault::Spurious,
            Err(Refused::Stock) => return Err(Need::Stock),
            Err(Refused::Room) => return Err(Need::Room),
        }))
    }

    /// The way to `gva` from one of the roots of `at`, which is of this shadow: its entries without addresses.
    pub(crate) fn way(&self, at: &Root, user: bool, gva: Gva) -> [u64; 5] {
        table::way(&self.shadow, at, user, gva)
    }

    pub(crate) fn add_stats(&self, stats: &mut lguest_stats) {
        stats.shadow_pages = self.shadow.tables() as u64;
        stats.shadow_recycled = self.recycled;
        stats.prefilled = self.prefilled;
    }
}

impl Drop for Mmu {
    /// In steps, as always.
    fn drop(&mut self) {
        let dropped = self.shadow.dismantle();
        self.forget(dropped);
        // No vCPU is left.
        while self.shadow.in_grace() || self.shadow.begin_grace() {
            self.shadow.end_grace();
        }
        while self.shadow.sweep(STEP) {
            task::reschedule_if_asked();
        }
    }
}

/// Reads Guest memory at `gva`, under `root` and that of `monitor`, as the mode would fetch it, by the looks of the
/// vCPU; returns how many bytes could be read. May sleep.
pub(crate) fn fetch(
    ram: &GuestRam,
    looker: &Looker,
    (root, monitor): (Gpa, Option<&Monitor>),
    gva: Gva,
    user: bool,
    buf: &mut [u8],
) -> usize {
    let access = Access {
        write: false,
        fetch: true,
        user,
    };
    let mut done = 0;
    while let Some(byte) = buf.get_mut(done) {
        let at = Gva::new(gva.get().wrapping_add(done as u64));
        let root = monitor::root_of(monitor, root, at, user);
        let read = looker.look(ram, |look| {
            let page = paging::walk_quiet(look, root, at, access).map(|t| t.gpa);
            let gpa = page.map(|page| Gpa::new(page.get() | at.offset()));
            match gpa {
                Ok(gpa) => look.byte(gpa).ok_or(Some(gpa)),
                Err(WalkError::TableOutside(table)) => Err(Some(table)),
                Err(_) => Err(None),
            }
        });
        match read {
            Ok(read) => {
                *byte = read;
                done += 1;
            }
            // It is tried again as long as there is RAM: somebody may take it in between.
            Err(Some(gpa)) if ram.contains(gpa) && ram.learn(gpa).is_ok() => {}
            Err(_) => break,
        }
    }
    done
}
