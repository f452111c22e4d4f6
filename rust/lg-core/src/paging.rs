// SPDX-License-Identifier: GPL-2.0

//! Walks the Guest's page tables as the processor would: 4-level paging with CR0.WP, EFER.NXE and
//! CR4.SMEP set, and without SMAP, PKE and LA57 (SDM, "Paging").
//!
//! Two things differ from hardware. A table outside the Guest's RAM is an error of its own, since
//! nothing can be read there. And the upper half belongs to the Guest kernel whatever the U/S bits
//! say, because the tables of Guest user mode have no upper half.

use super::addr::{Gpa, Gva, PAGE_SHIFT, PAGE_SIZE};

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const W: u64 = 1 << 1;
/// Accessible from user mode.
pub const U: u64 = 1 << 2;
/// Page-level write-through.
pub const PWT: u64 = 1 << 3;
/// Page-level cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty; meaningful in the entry that maps the page.
pub const D: u64 = 1 << 6;
/// Page size: the entry maps a page although it is not of level 1.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execute.
pub const NX: u64 = 1 << 63;
/// The bits in which an entry keeps a physical address.
pub const ADDR: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a Guest physical address, as CPUID.80000008H:EAX would say. Address bits above are
/// reserved in every entry; how much of the rest is RAM is another matter.
pub const PHYSICAL_BITS: u32 = 46;

/// A walk starts again so often because an entry changed under it. One race with another CPU is bad
/// luck; eight running are somebody who does nothing else, and the Guest that is resumed pays for
/// it.
const MAX_RACES: usize = 8;

/// Page-fault error codes (SDM, "Page-Fault Exceptions").
pub mod error {
    /// The entries were present; the access was not allowed.
    pub const P: u32 = 1 << 0;
    /// The access was a write.
    pub const W: u32 = 1 << 1;
    /// The access came from user mode.
    pub const U: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RSVD: u32 = 1 << 3;
    /// The access was an instruction fetch.
    pub const I: u32 = 1 << 4;
}

/// An entry of a page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Pte(u64);

impl Pte {
    /// Gives the number its meaning.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Says whether all of `bits` are set.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The physical address in it: of the next table, or of a 4 KiB page.
    pub(super) const fn address(self) -> Gpa {
        Gpa::new(self.0 & ADDR)
    }

    /// The size of the page that the entry maps when it is of `level`, or `None` when it points to
    /// a table.
    pub(super) const fn maps(self, level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 if self.has(PS) => Some(PageSize::Size2M),
            3 if self.has(PS) => Some(PageSize::Size1G),
            _ => None,
        }
    }

    /// Whether a bit is set that must be 0 in a present entry of `level` (SDM, "4-Level Paging and
    /// 5-Level Paging", the formats of the entries).
    pub(super) const fn has_reserved(self, level: u8) -> bool {
        let mut reserved = ADDR & !((1 << PHYSICAL_BITS) - 1);
        match self.maps(level) {
            // Bit 12 of an entry that maps a large page selects the memory type.
            Some(size @ (PageSize::Size2M | PageSize::Size1G)) => {
                reserved |= (size.bytes() - 1) & ADDR & !(1 << PAGE_SHIFT);
            }
            Some(PageSize::Size4K) => {}
            None => {
                if level == 4 {
                    reserved |= PS;
                }
            }
        }
        self.0 & reserved != 0
    }
}

/// The Guest's RAM, as the walker needs it. The Host kernel has one implementation, the tests have
/// another.
pub trait TableMemory {
    /// Reads the 8-byte aligned entry at `at`, in one access. `None` when it is not RAM.
    fn read_pte(&self, at: Gpa) -> Option<u64>;

    /// What reads the entries of the table at `at` in the same way, by their index modulo 512. `None` when it is
    /// not RAM.
    fn table(&self, at: Gpa) -> Option<impl Fn(usize) -> u64> {
        let at = at.page().get();
        self.read_pte(Gpa::new(at))?;
        Some(move |i: usize| {
            let entry = self.read_pte(Gpa::new(at | ((i as u64 % 512) << 3)));
            // There is no half page of RAM.
            entry.unwrap_or(0)
        })
    }

    /// Replaces the entry at `at` by `new` if it still is `old`, atomically; says whether it did.
    fn update_pte(&self, at: Gpa, old: u64, new: u64) -> bool;
}

/// An access to memory, as the Guest sees it. Neither `write` nor `fetch` is a load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// A store.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// From Guest user mode.
    pub user: bool,
}

impl Access {
    /// The access behind a page fault of the hardware, whose error code says that every access of
    /// the Guest comes from CPL 3: `user_mode` tells the Guest's two modes apart.
    pub const fn from_error_code(code: u32, user_mode: bool) -> Self {
        Self {
            write: code & error::W != 0,
            fetch: code & error::I != 0,
            user: user_mode,
        }
    }

    /// The bits of an error code that depend on the access alone.
    pub const fn error_code(self) -> u32 {
        (if self.write { error::W } else { 0 })
            | (if self.fetch { error::I } else { 0 })
            | (if self.user { error::U } else { 0 })
    }
}

/// Sizes of page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSize {
    /// 4 KiB, mapped by an entry of level 1.
    Size4K,
    /// 2 MiB, of level 2.
    Size2M,
    /// 1 GiB, of level 3.
    Size1G,
}

impl PageSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => PAGE_SIZE,
            Self::Size2M => PAGE_SIZE << 9,
            Self::Size1G => PAGE_SIZE << 18,
        }
    }
}

/// The rights that all entries on the way to a page give together (SDM, "Determination of Access
/// Rights").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rights {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Rights {
    /// Before the first entry.
    const fn at_root(gva: Gva) -> Self {
        Self {
            writable: true,
            user: !gva.is_upper(),
            executable: true,
        }
    }

    /// After one more entry.
    const fn and(self, pte: Pte) -> Self {
        Self {
            writable: self.writable && pte.has(W),
            user: self.user && pte.has(U),
            executable: self.executable && !pte.has(NX),
        }
    }

    const fn permit(self, access: Access) -> bool {
        let mode = if access.user {
            self.user
        } else {
            // SMEP.
            !(access.fetch && self.user)
        };
        mode && (self.writable || !access.write) && (self.executable || !access.fetch)
    }
}

/// The page that an address leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The 4 KiB page with the byte, also inside a larger page. Need not be RAM.
    pub gpa: Gpa,
    /// True if every level allows writes.
    pub writable: bool,
    /// True if every level allows user mode, and the address is of the lower half.
    pub user: bool,
    /// True if every level allows execution. SMEP is not in here: it depends on the mode.
    pub executable: bool,
    /// The entry's D bit, as the walk left it. The shadow maps a clean page read-only, to see the
    /// first write.
    pub dirty: bool,
    /// The size of the page the Guest mapped.
    pub size: PageSize,
    /// The address of the entry that maps it.
    pub pte_at: Gpa,
    /// The rights that the levels above that entry give.
    above: Rights,
}

impl Translation {
    fn new(gva: Gva, pte_at: Gpa, pte: Pte, size: PageSize, above: Rights) -> Self {
        let within = size.bytes() - 1;
        let rights = above.and(pte);
        Self {
            gpa: Gpa::new((pte.address().get() & !within) | (gva.page().get() & within)),
            writable: rights.writable,
            user: rights.user,
            executable: rights.executable,
            dirty: pte.has(D),
            size,
            pte_at,
            above,
        }
    }

    /// What maps this page and those around it; `gva` is the address whose translation this is.
    pub const fn region(&self, gva: Gva) -> Region {
        Region(match self.size {
            PageSize::Size4K => Maps::Table {
                table: self.pte_at.page(),
                number: gva.get() >> REGION_SHIFT,
                above: self.above,
            },
            _ => Maps::Page {
                page: *self,
                number: gva.get() / self.size.bytes(),
            },
        })
    }
}

/// Bits of an address that choose a byte of what a table of level 1 maps.
const REGION_SHIFT: u32 = 21;

/// What maps an address and those around it: a table of level 1, or a large page. A processor that has the
/// translation of one of them may have learnt so much of all of them (SDM, "Paging-Structure Caches").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region(Maps);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Maps {
    /// This table, for the `number`th 2 MiB of the address space.
    Table {
        table: Gpa,
        number: u64,
        above: Rights,
    },
    /// This page, for the `number`th part of its size of the address space.
    Page { page: Translation, number: u64 },
}

impl Region {
    /// That of `gva` under the tables at `root`, if a processor may know of it already: changes no entry, and
    /// is `None` unless each on the way is marked as accessed.
    pub fn find<M: TableMemory>(mem: &M, root: Gpa, gva: Gva) -> Option<Self> {
        let mut table = root;
        let mut above = Rights::at_root(gva);
        for level in [4, 3, 2] {
            let at = entry_at(table, gva, level);
            let pte = Pte(mem.read_pte(at)?);
            if !pte.has(P | A) || pte.has_reserved(level) {
                return None;
            }
            if let Some(size) = pte.maps(level) {
                return Some(Translation::new(gva, at, pte, size, above).region(gva));
            }
            above = above.and(pte);
            table = pte.address();
        }
        Some(Self(Maps::Table {
            table,
            number: gva.get() >> REGION_SHIFT,
            above,
        }))
    }

    /// The size of its pages.
    pub const fn size(&self) -> PageSize {
        match self.0 {
            Maps::Table { .. } => PageSize::Size4K,
            Maps::Page { page, .. } => page.size,
        }
    }

    /// What translates an address for filling it in although nobody has asked for it. Reads at most one entry for
    /// each and changes none: `None` unless the address is in here, and the entry is marked accessed already.
    pub fn pages<'a, M: TableMemory>(
        &'a self,
        mem: &'a M,
    ) -> Option<impl Fn(Gva) -> Option<Translation> + 'a> {
        let table = match self.0 {
            Maps::Table { table, .. } => Some(mem.table(table)?),
            Maps::Page { .. } => None,
        };
        Some(move |gva: Gva| match (&self.0, &table) {
            (
                Maps::Table {
                    table,
                    number,
                    above,
                },
                Some(entries),
            ) if gva.get() >> REGION_SHIFT == *number => {
                let pte = Pte(entries(gva.index(1)));
                let pte_at = entry_at(*table, gva, 1);
                (pte.has(P | A) && !pte.has_reserved(1))
                    .then(|| Translation::new(gva, pte_at, pte, PageSize::Size4K, *above))
            }
            (Maps::Page { page, number }, _) => {
                let within = page.size.bytes() - 1;
                let gpa = (page.gpa.get() & !within) | (gva.page().get() & within);
                (gva.get() / page.size.bytes() == *number).then_some(Translation {
                    gpa: Gpa::new(gpa),
                    ..*page
                })
            }
            _ => None,
        })
    }
}

/// The reasons why an address leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkError {
    /// A page fault of the Guest, with the error code to give it.
    Fault(u32),
    /// The address is not canonical: #GP(0), or #SS(0) if the access used RSP or RBP. Never seen on
    /// a Host with 4 levels, whose processor raises these itself.
    NotCanonical,
    /// The entry to be read next is not in RAM.
    TableOutside(Gpa),
    /// Somebody keeps changing the tables. Resume the Guest: it will fault again.
    Contended,
}

/// Translates `gva` under the tables at `root` for `access`.
///
/// Marks each entry on the way as accessed, and the page as dirty for a write; but none of them
/// when the access is refused.
pub fn walk<M: TableMemory>(
    mem: &M,
    root: Gpa,
    gva: Gva,
    access: Access,
) -> Result<Translation, WalkError> {
    for _ in 0..MAX_RACES {
        let mut path = Path::find(mem, root, gva, access)?;
        if path.mark(mem, access.write) {
            return Ok(path.translation);
        }
    }
    Err(WalkError::Contended)
}

/// The same without marking anything: for reading what the Guest has mapped without touching it.
pub fn walk_quiet<M: TableMemory>(
    mem: &M,
    root: Gpa,
    gva: Gva,
    access: Access,
) -> Result<Translation, WalkError> {
    Path::find(mem, root, gva, access).map(|path| path.translation)
}

/// The address of the entry for `gva` in a table of `level`.
pub(super) fn entry_at(table: Gpa, gva: Gva, level: u8) -> Gpa {
    Gpa::new(table.page().get() | ((gva.index(level) as u64) << 3))
}

/// The way to a page that may be accessed.
struct Path {
    /// The entries it led through, root first, and where they are.
    entries: [Option<(Gpa, Pte)>; 4],
    translation: Translation,
}

impl Path {
    fn find<M: TableMemory>(
        mem: &M,
        root: Gpa,
        gva: Gva,
        access: Access,
    ) -> Result<Self, WalkError> {
        if !gva.is_canonical() {
            return Err(WalkError::NotCanonical);
        }
        let mut entries = [None; 4];
        let mut slots = entries.iter_mut();
        let mut table = root;
        let mut rights = Rights::at_root(gva);
        let mut level = 4u8;
        loop {
            let at = entry_at(table, gva, level);
            let pte = Pte(mem.read_pte(at).ok_or(WalkError::TableOutside(at))?);
            if !pte.has(P) {
                return Err(WalkError::Fault(access.error_code()));
            }
            if pte.has_reserved(level) {
                let code = access.error_code() | error::P | error::RSVD;
                return Err(WalkError::Fault(code));
            }
            if let Some(slot) = slots.next() {
                *slot = Some((at, pte));
            }
            let above = rights;
            rights = above.and(pte);
            // Every entry of level 1 maps a page, so this ends.
            if let Some(size) = pte.maps(level) {
                if !rights.permit(access) {
                    return Err(WalkError::Fault(access.error_code() | error::P));
                }
                let translation = Translation::new(gva, at, pte, size, above);
                return Ok(Self {
                    entries,
                    translation,
                });
            }
            table = pte.address();
            level = level.wrapping_sub(1);
        }
    }

    /// Sets the A bits, and D in the last entry if `write`. False if an entry is no longer what it
    /// was; those before it keep their A bit, as they may in hardware (SDM, "Accessed and Dirty
    /// Flags").
    fn mark<M: TableMemory>(&mut self, mem: &M, write: bool) -> bool {
        let leaf_at = self.translation.pte_at;
        for (at, pte) in self.entries.into_iter().flatten() {
            let dirty = if write && at == leaf_at { D } else { 0 };
            if !pte.has(A | dirty) && !mem.update_pte(at, pte.get(), pte.get() | A | dirty) {
                return false;
            }
        }
        self.translation.dirty |= write;
        true
    }
}
