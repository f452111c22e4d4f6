// SPDX-License-Identifier: GPL-2.0

//! The shadow against an oracle: whatever a Guest does to its tables, and whenever it flushes, what
//! the shadow translates is something that the TLB of a processor could hold; after a flush nothing
//! older; and no table is lost, or walked after it was dropped.
//!
//! `SHADOW_SEED` is the seed to begin with, `SHADOW_STEPS` how many steps each machine takes. The
//! test also runs under Miri (`cargo +nightly miri test --locked -p lg-core --test shadow`), with fewer.

mod cpus;
mod memory;
mod oracle;

use cpus::{Cpu, Fault, Told};
use lg_core::addr::{Gpa, Gva, Hpa};
use lg_core::paging::{Access, WalkError, A, D, NX, P, PS, U, W};
use lg_core::shadow::{
    Config, Dropped, Filled, Flush, Refused, Resolved, Root, Scope, Seat, Shadow, MAX_CONTEXTS,
    STOCK,
};
use lg_core::tags::{Generations, Tags};
use memory::{Found, Host, Tree};
use oracle::{pages, Above, Oracle, Ram, INDICES, TABLES};
use std::collections::BTreeMap;
use std::rc::Rc;

const SLOT: usize = 271;
/// Beside pages of the Guest's.
const SHARED: Gva = Gva::new(0xffff_8000_3fe0_2000);
const VCPUS: usize = 2;
const CPUS: usize = 2;
/// The VM, and another one that the CPUs run as well.
const VMS: [u64; 2] = [1, 2];
/// Contexts of the other one.
const OTHERS: usize = 2;
/// The address at which the Host has the Guest's page 0.
const RAM_AT: u64 = 1 << 44;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// One time in `n`.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A fault of which only the walk is done.
struct Pending {
    vcpu: usize,
    gva: Gva,
    resolved: Resolved,
    above: Option<Above>,
}

/// The key of an entry in a TLB of the shadow: whose root, of which mode, which page.
type Cached = BTreeMap<(u64, bool, u64), Found>;

/// The key of a table that a processor remembers (SDM, "Paging-Structure Caches"): whose root, of which mode, its
/// level, and the address without what the table translates.
type Remembered = BTreeMap<(u64, bool, u8, u64), Found>;

/// The deeds so far, to see that all of them were done.
#[derive(Default, Debug)]
struct Counts {
    filled: usize,
    neighbours: u64,
    revived: u64,
    spurious: usize,
    late: usize,
    stale: usize,
    evicted: usize,
    no_stock: usize,
    no_room: usize,
    dropped_all: usize,
}

type TheShadow = Shadow<Tree, Vec<Seat<Tree>>, Rc<Generations<MAX_CONTEXTS>>>;

struct Machine {
    random: Random,
    host: Host,
    ram: Ram,
    pages: Vec<Gva>,
    oracle: Oracle,
    shadow: TheShadow,
    generations: Rc<Generations<MAX_CONTEXTS>>,
    others: Generations<OTHERS>,
    cpus: [Cpu; CPUS],
    /// Where each vCPU's tags were the last time, the other VM's behind them.
    hints: [Tags; VCPUS + 1],
    fault: Fault,
    vcpus: Vec<Root>,
    /// The roots of the contexts that there are, as they were loaded.
    order: Vec<Gpa>,
    tlb: Cached,
    structures: Remembered,
    pending: Vec<Pending>,
    config: Config,
    counts: Counts,
    trace: Vec<String>,
}

impl Machine {
    fn new(seed: u64, config: Config, contexts: usize, fault: Fault) -> Self {
        let host = Host::default();
        let generations = Rc::new(Generations::new(VMS[0]));
        let room = (0..contexts).map(|_| Seat::new()).collect();
        let mut machine = Self {
            random: Random(seed),
            ram: Ram::new(),
            pages: pages(),
            oracle: Oracle::default(),
            shadow: Shadow::new(config, room, host.table(), generations.clone()),
            generations,
            others: Generations::new(VMS[1]),
            cpus: Default::default(),
            hints: Default::default(),
            fault,
            host,
            vcpus: Vec::new(),
            order: Vec::new(),
            tlb: Cached::new(),
            structures: Remembered::new(),
            pending: Vec::new(),
            config,
            counts: Counts::default(),
            trace: Vec::new(),
        };
        for place in 0..4 {
            for n in 0..TABLES[place] {
                for &i in INDICES[place] {
                    let entry = machine.entry(place);
                    machine.ram.write(at(place, n, i), entry | P);
                }
            }
        }
        for vcpu in 0..VCPUS {
            machine.provide();
            let root = machine.shadow.enter(Ram::table(0, vcpu)).unwrap();
            machine.loaded(root.gpa());
            machine.vcpus.push(root);
        }
        machine.look();
        machine
    }

    /// An entry for a table of the level at this place: mostly one that allows most.
    fn entry(&mut self, place: usize) -> u64 {
        let r = &mut self.random;
        let mut flags = 0;
        for (bit, not) in [(P, 12), (W, 5), (U, 4), (A, 3), (D, 3)] {
            if !r.one_in(not) {
                flags |= bit;
            }
        }
        if r.one_in(6) {
            flags |= NX;
        }
        let large = (place == 1 || place == 2) && r.one_in(5);
        flags
            | match place {
                1 if large => PS | ((r.below(3) as u64 + 2) << 30),
                2 if large => PS | (1 << 30) | ((r.below(5) as u64) << 21),
                3 => (1 << 20) | ((r.below(40) as u64) << 12),
                _ => {
                    let n = r.below(TABLES[place + 1]);
                    Ram::table(place + 1, n).get()
                }
            }
    }

    /// Fills the stock, as is done with interrupts on.
    fn provide(&mut self) {
        for _ in 0..self.shadow.wants() {
            self.shadow.stock_up(self.host.table());
        }
    }

    fn provide_room(&mut self) {
        while self.shadow.needs_room() {
            if !self.sweep() && self.shadow.needs_room() {
                self.evict();
            }
        }
    }

    /// The context goes that was loaded longest ago among those that no vCPU is on, or else everything.
    fn evict(&mut self) {
        self.counts.evicted += 1;
        let dropped = self.shadow.evict();
        self.trace.push(format!("evict {:?}", dropped.scope()));
        let oldest = self.order.iter().position(|&root| !self.is_held(root));
        let expected = oldest.map_or(Scope::All, |n| Scope::Lower(self.order.remove(n)));
        assert_eq!(dropped.scope(), expected, "of {:?}", self.order);
        self.forget(dropped);
    }

    fn is_held(&self, root: Gpa) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.gpa() == root)
    }

    /// The context of `root` is the most recent one.
    fn loaded(&mut self, root: Gpa) {
        self.order.retain(|&other| other != root);
        self.order.push(root);
    }

    /// Tells the TLBs what was dropped, and then frees it at some time.
    fn forget(&mut self, dropped: Dropped<Tree>) {
        match dropped.scope() {
            Scope::Nothing => {}
            Scope::Page(root, gva) => self.tlb.retain(|&(of, _, page), _| {
                page != gva.page().get() || (of != root.get() && !gva.is_upper())
            }),
            Scope::Lower(root) => {
                let stays = |of, gva| of != root.get() || Gva::new(gva).is_upper();
                self.tlb.retain(|&(of, _, page), _| stays(of, page));
                self.structures.retain(|&(of, _, _, gva), _| stays(of, gva));
            }
            Scope::All => {
                self.counts.dropped_all += 1;
                self.tlb.clear();
                self.structures.clear();
            }
        }
        self.shadow.retire(dropped);
        if self.random.one_in(4) {
            self.sweep();
        }
    }

    /// Has some of what was dropped emptied; says whether there is more.
    fn sweep(&mut self) -> bool {
        if self.shadow.begin_grace() {
            // The TLBs were told at once.
            self.shadow.end_grace();
        }
        self.shadow.sweep(8)
    }

    /// Processors on the roots at hand might walk at any time.
    fn look(&mut self) {
        for root in &self.vcpus {
            self.oracle.look(&self.ram, root.gpa(), &self.pages);
        }
    }

    fn levels(&self) -> u8 {
        if self.config.five_levels {
            5
        } else {
            4
        }
    }

    fn walk(&self, vcpu: usize, user: bool, gva: Gva) -> Option<Found> {
        let root = &self.vcpus[vcpu];
        let top = if user { root.user() } else { root.kernel() };
        self.host.walk(top, gva, self.levels(), |_, _| false)
    }

    /// The same by a processor, which remembers some of the tables on the way.
    fn walk_and_remember(&mut self, vcpu: usize, user: bool, gva: Gva) -> Option<Found> {
        let root = &self.vcpus[vcpu];
        let top = if user { root.user() } else { root.kernel() };
        let levels = self.levels();
        let (random, structures) = (&mut self.random, &mut self.structures);
        let uses = random.one_in(2);
        self.host.walk(top, gva, levels, |level, table| {
            // The root is in CR3, and nothing is remembered of five levels' first.
            if level <= 3 && random.one_in(8) {
                structures.insert(
                    (root.gpa().get(), user, level, beginning(gva, level)),
                    table,
                );
            }
            uses
        })
    }

    fn permits(&self, vcpu: usize, gva: Gva, access: Access) -> bool {
        self.walk(vcpu, access.user, gva).is_some_and(|found| {
            (found.writable || !access.write) && (found.executable || !access.fetch)
        })
    }

    fn check_one(&self, root: Gpa, user: bool, gva: Gva, found: Found) {
        let known = self.oracle.known(root, gva);
        let gpa = found.hpa.wrapping_sub(RAM_AT);
        let legal = known
            .iter()
            .any(|k| k.allows(gpa, found.writable, found.executable, user));
        assert!(
            legal,
            "{gva} of root {root}, user mode {user}: {found:x?}, and a TLB could only hold {known:x?}"
        );
    }

    /// All that a processor on this vCPU's root would find is what a TLB could hold. Some of it gets
    /// into the TLB.
    fn check_vcpu(&mut self, vcpu: usize) {
        let root = self.vcpus[vcpu].gpa();
        for n in 0..self.pages.len() {
            let gva = self.pages[n];
            for user in [false, true] {
                let Some(found) = self.walk_and_remember(vcpu, user, gva) else {
                    continue;
                };
                assert!(
                    !user || !gva.is_upper(),
                    "{gva} is in the tables of user mode"
                );
                self.check_one(root, user, gva, found);
                if self.random.one_in(4) {
                    self.tlb.insert((root.get(), user, gva.get()), found);
                }
            }
        }
    }

    fn check(&mut self) {
        for vcpu in 0..VCPUS {
            self.check_vcpu(vcpu);
            for user in [false, true] {
                let root = &self.vcpus[vcpu];
                let top = if user { root.user() } else { root.kernel() };
                let slot = self.host.entry_at(top, SLOT);
                assert_eq!(slot, self.config.slot_entry, "the switcher's slot");
            }
        }
        for (&(root, user, page), &found) in &self.tlb {
            self.check_one(Gpa::new(root), user, Gva::new(page), found);
        }
        self.check_structures();
    }

    /// What a processor finds that goes on from a table which it remembers is right, too.
    fn check_structures(&self) {
        for (&(root, user, level, first), &table) in &self.structures {
            let pages = self.pages.iter();
            for &gva in pages.filter(|&&gva| beginning(gva, level) == first) {
                if let Some(found) = self.host.walk_on(table, gva, level, |_, _| false) {
                    self.check_one(Gpa::new(root), user, gva, found);
                }
            }
        }
    }

    /// A vCPU is in the Guest for a while, on one of the CPUs. Whatever that still has under the tags for it is what a
    /// TLB could hold.
    fn visit(&mut self) {
        let (vcpu, n) = (self.random.below(VCPUS), self.random.below(CPUS));
        let root = &self.vcpus[vcpu];
        let now = self.generations.now(root.seat());
        let owner = (VMS[0], root.seat());
        let tags = self.cpus[n].tags(
            owner,
            (&self.generations, &now),
            &mut self.hints[vcpu],
            self.fault,
        );
        self.trace.push(format!("visit {vcpu} on {n}: {tags:?}"));
        for user in [false, true] {
            let (gpa, pcid) = (self.vcpus[vcpu].gpa(), tags.pcid(user));
            for (page, found) in self.cpus[n].cached(pcid) {
                self.check_one(gpa, user, Gva::new(page), found);
            }
            for (level, first, table) in self.cpus[n].remembered(pcid) {
                let pages = self.pages.iter();
                for &gva in pages.filter(|&&gva| beginning(gva, level) == first) {
                    if let Some(found) = self.host.walk_on(table, gva, level, |_, _| false) {
                        self.check_one(gpa, user, gva, found);
                    }
                }
            }
            self.use_pages(vcpu, n, user, pcid);
        }
    }

    /// Some pages are used by the vCPU on that CPU, which remembers all that it finds.
    fn use_pages(&mut self, vcpu: usize, n: usize, user: bool, pcid: u16) {
        let root = &self.vcpus[vcpu];
        let top = if user { root.user() } else { root.kernel() };
        let (levels, random, cpu) = (self.levels(), &mut self.random, &mut self.cpus[n]);
        for &gva in &self.pages {
            if !random.one_in(4) {
                continue;
            }
            let found = self.host.walk(top, gva, levels, |level, table| {
                if level <= 3 {
                    cpu.remember(pcid, level, beginning(gva, level), table);
                }
                true
            });
            if let Some(found) = found {
                cpu.cache(pcid, gva.get(), found);
            }
        }
    }

    /// The other VM is on one of the CPUs, and leaves there what is nowhere in this one.
    fn visit_other(&mut self) {
        let (seat, n) = (self.random.below(OTHERS), self.random.below(CPUS));
        if self.random.one_in(4) {
            self.others.move_lower(seat);
        }
        let now = self.others.now(seat);
        let hint = &mut self.hints[VCPUS];
        let tags = self.cpus[n].tags((VMS[1], seat), (&self.others, &now), hint, self.fault);
        self.trace.push(format!("the other VM on {n}: {tags:?}"));
        let nowhere = Found {
            hpa: RAM_AT - 4096,
            writable: true,
            executable: true,
        };
        let gva = self.random.of(&self.pages);
        for user in [false, true] {
            self.cpus[n].cache(tags.pcid(user), gva.get(), nowhere);
            self.cpus[n].remember(tags.pcid(user), 1, beginning(gva, 1), nowhere);
        }
    }

    /// No table is lost, and not too many are kept.
    fn check_tables(&mut self) {
        while self.sweep() {}
        let (alive, put_aside) = self.host.alive();
        assert_eq!(alive - put_aside, self.shadow.tables());
        assert!(put_aside <= STOCK, "{put_aside} tables in stock");
        assert!(self.shadow.tables() < self.config.max_tables + 4);
    }

    fn fault(&mut self) {
        let vcpu = self.random.below(VCPUS);
        let gva = self.random.of(&self.pages);
        let access = self
            .random
            .of(&[(false, false), (true, false), (false, true)]);
        let access = Access {
            write: access.0,
            fetch: access.1,
            user: self.random.one_in(2),
        };
        if self.permits(vcpu, gva, access) {
            return;
        }
        self.trace.push(format!("fault {vcpu} {gva} {access:?}"));
        let root = &self.vcpus[vcpu];
        let resolved = match self.shadow.resolve(root, &self.ram, gva, access) {
            Ok(resolved) => resolved,
            Err(WalkError::Fault(_)) => return,
            Err(error) => panic!("{error:?}"),
        };
        let above = self.ram.way(root.gpa(), gva);
        self.look();
        let pending = Pending {
            vcpu,
            gva,
            resolved,
            above,
        };
        if self.random.one_in(6) {
            // The Host has to fetch the page first.
            self.pending.push(pending);
            return;
        }
        assert!(self.fill(&pending), "nothing happened in between");
        assert!(self.permits(vcpu, gva, access), "{gva} faults again");
    }

    /// True if it still held.
    fn fill(&mut self, fault: &Pending) -> bool {
        let ways =
            |machine: &Self| [false, true].map(|user| machine.walk(fault.vcpu, user, fault.gva));
        let now = |machine: &Self| machine.generations.now(machine.vcpus[fault.vcpu].seat());
        let before = (ways(self), now(self));
        let filled = self.fill_in(fault);
        // The page fault has emptied the Guest's TLB of this page, so that it may rely on what is there now.
        let lost = |(before, now): (&Option<Found>, Option<Found>)| {
            before.is_some_and(|before| !now.is_some_and(|now| now.includes(before)))
        };
        if before.0.iter().zip(ways(self)).any(lost) {
            assert_ne!(before.1, now(self), "{}: what was there is gone", fault.gva);
        }
        filled
    }

    fn fill_in(&mut self, fault: &Pending) -> bool {
        let gpa = fault.resolved.gpa();
        loop {
            let at = &self.vcpus[fault.vcpu];
            let filled = self
                .shadow
                .fill(at, &fault.resolved, hpa(gpa), &self.ram, at_hand);
            match filled {
                Ok(Filled::New(neighbours)) => {
                    self.counts.filled += 1;
                    self.counts.neighbours += neighbours;
                }
                Ok(Filled::Spurious) => self.counts.spurious += 1,
                Err(Refused::Stale) => return false,
                Err(Refused::Stock) => {
                    self.counts.no_stock += 1;
                    self.provide();
                    continue;
                }
                Err(Refused::Room) => {
                    self.counts.no_room += 1;
                    self.provide_room();
                    continue;
                }
            }
            let root = at.gpa();
            if let Some(above) = fault.above {
                self.oracle
                    .look_beside(&self.ram, root, fault.gva, above, &self.pages);
            }
            return true;
        }
    }

    fn fill_late(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let n = self.random.below(self.pending.len());
        let pending = self.pending.swap_remove(n);
        self.trace
            .push(format!("late {} {}", pending.vcpu, pending.gva));
        if self.fill(&pending) {
            self.counts.late += 1;
        } else {
            self.counts.stale += 1;
        }
    }

    fn write_table(&mut self) {
        let place = self.random.of(&[0, 1, 2, 2, 3, 3, 3, 3]);
        let n = self.random.below(TABLES[place]);
        let at = at(place, n, self.random.of(INDICES[place]));
        let entry = self.entry(place);
        self.trace.push(format!("write {at} {entry:#x}"));
        self.ram.write(at, entry);
    }

    fn flush(&mut self) {
        let vcpu = self.random.below(VCPUS);
        let gva = self.random.of(&self.pages);
        let what = match self.random.below(40) {
            0 => Flush::All,
            1..10 => Flush::Lower,
            10..16 => Flush::Pages(gva, self.random.of(&[1, 2, 17])),
            _ => Flush::Page(Gva::new(gva.get() + 0x123)),
        };
        self.trace.push(format!("flush {vcpu} {what:x?}"));
        let root = self.vcpus[vcpu].gpa();
        match what {
            Flush::All => self.oracle.flush_all(),
            Flush::Lower => self.oracle.flush_lower(root),
            Flush::Page(gva) => self.oracle.flush_page(root, gva),
            Flush::Pages(first, count) => (0..count as u64).for_each(|n| {
                let gva = Gva::new(first.get() + n * 4096).canonicalize();
                self.oracle.flush_page(root, gva);
            }),
        }
        let dropped = self.shadow.flush(&self.vcpus[vcpu], what);
        self.forget(dropped);
        self.revive(vcpu);
    }

    /// Gets back what was in use, mostly.
    fn revive(&mut self, vcpu: usize) {
        if self.random.one_in(4) {
            return;
        }
        self.look();
        let at = &self.vcpus[vcpu];
        let revived = self.shadow.revive(at, &self.ram, at_hand);
        self.counts.revived += revived;
        self.check_vcpu(vcpu);
    }

    fn load(&mut self) {
        let vcpu = self.random.below(VCPUS);
        let root = Ram::table(0, self.random.below(TABLES[0]));
        let keep = !self.random.one_in(4);
        self.trace.push(format!("load {vcpu} {root} keep {keep}"));
        let dropped = loop {
            match self.shadow.load(&mut self.vcpus[vcpu], root, keep) {
                Ok(dropped) => break dropped,
                Err(Refused::Stock) => self.provide(),
                Err(Refused::Room) => self.provide_room(),
                Err(Refused::Stale) => panic!("a context is gone"),
            }
        };
        assert_eq!(self.vcpus[vcpu].gpa(), root);
        self.loaded(root);
        if !keep {
            self.oracle.flush_lower(root);
        }
        self.forget(dropped);
        if !keep {
            self.revive(vcpu);
        }
        self.check_vcpu_after_look(vcpu);
    }

    fn check_vcpu_after_look(&mut self, vcpu: usize) {
        self.look();
        self.check_vcpu(vcpu);
    }

    fn drop_root(&mut self) {
        let root = Ram::table(0, self.random.below(TABLES[0]));
        self.trace.push(format!("drop {root}"));
        if self.is_held(root) {
            self.oracle.flush_lower(root);
        }
        let dropped = self.shadow.drop_root(root);
        if !self.is_held(root) {
            self.order.retain(|&other| other != root);
        }
        self.forget(dropped);
    }

    fn map_shared(&mut self) {
        let vcpu = self.random.below(VCPUS);
        self.trace.push("map".into());
        let entry = (RAM_AT / 2) | P | U | W | NX;
        while let Err(refused) = self.shadow.map(&self.vcpus[vcpu], SHARED, entry) {
            assert_eq!(refused, Refused::Stock);
            self.provide();
        }
        let found = self.walk(vcpu, false, SHARED);
        assert!(found.is_some_and(|f| f.hpa == RAM_AT / 2 && !f.executable));
        assert!(self.walk(vcpu, true, SHARED).is_none());
    }

    fn step(&mut self, n: usize) {
        match self.random.below(100) {
            0..50 => self.fault(),
            50..56 => self.fill_late(),
            56..80 => self.write_table(),
            80..89 => self.flush(),
            89..95 => self.load(),
            95..97 => self.drop_root(),
            97..99 => self.map_shared(),
            _ => self.evict(),
        }
        self.look();
        match self.random.below(16) {
            0..6 => self.visit(),
            6 => self.visit_other(),
            7 if self.random.one_in(100) => {
                let n = self.random.below(CPUS);
                self.cpus[n].forget_all();
            }
            _ => {}
        }
        if n % 16 == 0 {
            self.check();
        }
        if n % 256 == 0 {
            self.check_tables();
        }
    }

    /// All is given back.
    fn end(mut self) -> (Counts, [Told; CPUS]) {
        let dropped = self.shadow.dismantle();
        self.shadow.retire(dropped);
        self.check_tables();
        let (host, counts) = (self.host, self.counts);
        drop(self.shadow);
        assert_eq!(host.alive(), (0, 0), "tables that nobody has any more");
        (counts, self.cpus.map(|cpu| cpu.told))
    }
}

/// Entry `i` of table `n` of the level at this place.
fn at(place: usize, n: usize, i: u64) -> Gpa {
    Gpa::new(Ram::table(place, n).get() + i * 8)
}

/// The first address that a table of this level translates if it translates `gva`.
fn beginning(gva: Gva, level: u8) -> u64 {
    gva.get() >> (12 + 9 * u32::from(level)) << (12 + 9 * u32::from(level))
}

/// The Host's page, if the Host need not fetch it first.
fn at_hand(gpa: Gpa) -> Option<Hpa> {
    (gpa.gfn() % 7 != 0).then(|| hpa(gpa))
}

fn hpa(gpa: Gpa) -> Hpa {
    Hpa::new(gpa.page().get() + RAM_AT)
}

fn generations() -> Rc<Generations<MAX_CONTEXTS>> {
    Rc::new(Generations::new(VMS[0]))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect(name))
}

fn run(five_levels: bool, max_tables: usize, contexts: usize) {
    run_with(five_levels, max_tables, contexts, Fault::None);
}

fn run_with(five_levels: bool, max_tables: usize, contexts: usize, fault: Fault) {
    let steps = number("SHADOW_STEPS", if cfg!(miri) { 40 } else { 100_000 });
    let seed = number("SHADOW_SEED", 1);
    let config = Config {
        slot: SLOT,
        slot_entry: 0x5000 | P,
        five_levels,
        max_tables,
    };
    let mut machine = Machine::new(seed, config, contexts, fault);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..steps).for_each(|n| machine.step(n as usize));
    }));
    if let Err(panic) = result {
        let last = machine.trace.len().saturating_sub(40);
        eprintln!("seed {seed}, the last steps: {:#?}", &machine.trace[last..]);
        std::mem::forget(machine);
        std::panic::resume_unwind(panic);
    }
    let (counts, told) = machine.end();
    if steps >= 100_000 {
        for told in told {
            let Told {
                nothing,
                upper,
                lower,
                another,
                pages,
            } = told;
            let least = nothing.min(upper).min(lower).min(another).min(pages);
            assert!(least > 100, "{told:?}");
        }
        let Counts {
            filled,
            neighbours,
            revived,
            spurious,
            late,
            stale,
            evicted,
            no_stock,
            no_room,
            dropped_all,
        } = counts;
        assert!(
            filled > 1000 && neighbours > 1000 && late > 100 && stale > 100,
            "{counts:?}"
        );
        assert!(
            evicted > 100 && no_stock > 10 && dropped_all > 10,
            "{counts:?}"
        );
        assert!(revived > 1000, "{counts:?}");
        assert!(no_room > 10 || max_tables > 1000, "{counts:?}");
        assert!(spurious < filled, "{counts:?}");
    }
}

#[test]
fn with_room_for_all() {
    run(false, 100_000, 128);
}

#[test]
fn with_little_room() {
    run(false, 48, 128);
}

#[test]
fn with_few_contexts() {
    run(false, 100_000, 3);
}

#[test]
fn with_five_levels() {
    run(true, 64, 5);
}

/// Each command of a CPU's is needed.
#[cfg(not(miri))]
mod what_is_left_out_is_seen {
    use super::{run_with, Fault};

    #[test]
    #[should_panic]
    fn lower_for_user() {
        run_with(false, 100_000, 128, Fault::LowerForUser);
    }

    #[test]
    #[should_panic]
    fn lower_for_kernel() {
        run_with(false, 100_000, 128, Fault::LowerForKernel);
    }

    #[test]
    #[should_panic]
    fn upper() {
        run_with(false, 100_000, 128, Fault::Upper);
    }

    #[test]
    #[should_panic]
    fn another() {
        run_with(false, 100_000, 128, Fault::Another);
    }

    #[test]
    #[should_panic]
    fn another_vm() {
        run_with(false, 100_000, 128, Fault::AnotherVm);
    }

    #[test]
    #[should_panic]
    fn page_for_user() {
        run_with(false, 100_000, 128, Fault::PageForUser);
    }

    #[test]
    #[should_panic]
    fn page_for_kernel() {
        run_with(false, 100_000, 128, Fault::PageForKernel);
    }
}

/// Among contexts that no vCPU is on, the one goes first that was loaded longest ago.
#[test]
fn the_least_recent_goes_first() {
    const MANY: usize = 20;
    let host = Host::default();
    let config = Config {
        slot: SLOT,
        slot_entry: P,
        five_levels: false,
        max_tables: 1000,
    };
    let seats = (0..MANY).map(|_| Seat::new()).collect();
    let mut shadow = Shadow::new(config, seats, host.table(), generations());
    let mut random = Random(7);
    let root = |n: usize| Gpa::new(n as u64 * 4096);
    let stock = |shadow: &mut TheShadow| {
        (0..shadow.wants()).for_each(|_| shadow.stock_up(host.table()));
    };
    stock(&mut shadow);
    let mut at = shadow.enter(root(0)).unwrap();
    let mut order = vec![0];
    for _ in 0..if cfg!(miri) { 50 } else { 2000 } {
        stock(&mut shadow);
        let next = random.below(2 * MANY);
        if !order.contains(&next) && order.len() == MANY {
            assert_eq!(
                shadow.load(&mut at, root(next), true).err(),
                Some(Refused::Room)
            );
            let dropped = shadow.evict();
            assert_eq!(dropped.scope(), Scope::Lower(root(order.remove(0))));
            shadow.retire(dropped);
        }
        if shadow.begin_grace() {
            shadow.end_grace();
        }
        while shadow.sweep(8) {}
        let dropped = shadow.load(&mut at, root(next), true).unwrap();
        assert_eq!(dropped.scope(), Scope::Nothing);
        shadow.retire(dropped);
        order.retain(|&n| n != next);
        order.push(next);
        if random.one_in(8) {
            let other = random.below(2 * MANY);
            let dropped = shadow.drop_root(root(other));
            let gone = order.contains(&other) && other != next;
            let scope = if gone {
                Scope::Lower(root(other))
            } else {
                Scope::Nothing
            };
            assert_eq!(dropped.scope(), scope);
            shadow.retire(dropped);
            order.retain(|&n| n != other || n == next);
        }
    }
}

/// What was dropped is not used again before its grace period is over, and what is dropped meanwhile waits for the
/// next one.
#[test]
fn a_dropped_table_waits_for_the_grace_period() {
    let host = Host::default();
    let config = Config {
        slot: SLOT,
        slot_entry: P,
        five_levels: false,
        max_tables: 1000,
    };
    let seats: Vec<Seat<Tree>> = (0..4).map(|_| Seat::new()).collect();
    let mut shadow = Shadow::new(config, seats, host.table(), generations());
    (0..shadow.wants()).for_each(|_| shadow.stock_up(host.table()));
    let mut at = shadow.enter(Gpa::new(0)).unwrap();
    assert!(!shadow.begin_grace(), "there is nothing to wait for");
    // A context is two tables.
    let all = shadow.tables();
    for root in 1..3 {
        let dropped = shadow.load(&mut at, Gpa::new(root * 4096), true).unwrap();
        shadow.retire(dropped);
        let dropped = shadow.drop_root(Gpa::new((root - 1) * 4096));
        assert_eq!(dropped.scope(), Scope::Lower(Gpa::new((root - 1) * 4096)));
        shadow.retire(dropped);
        // The second one comes while the first one's period lasts.
        assert_eq!(shadow.begin_grace(), root == 1);
        assert!(shadow.in_grace());
        assert!(!shadow.sweep(100));
        assert_eq!(shadow.tables(), all + root as usize * 2);
    }
    for left in [1, 0] {
        shadow.end_grace();
        assert!(!shadow.in_grace());
        assert!(!shadow.sweep(100));
        assert_eq!(shadow.tables(), all + left * 2);
        assert_eq!(shadow.begin_grace(), left == 1);
    }
}
