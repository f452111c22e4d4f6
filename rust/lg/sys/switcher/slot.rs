// SPDX-License-Identifier: GPL-2.0

//! The switcher's slot of one address space: the tables that map the regions of its vCPUs.

use super::{
    super::{
        cpu, hole, nospec,
        page::{
            module_page_to_hpa,
            random_below, //
        },
        table::{
            Table,
            TableBox, //
        },
    },
    layout::*,
    region::Region, //
};
use crate::{
    abi::LGUEST_MAX_VCPUS,
    lg_core::{
        addr::Hpa,
        shadow::Table as _, //
    },
};
use core::convert::Infallible;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Mutex,
        SetOnce, //
    },
};

const MAX: usize = LGUEST_MAX_VCPUS as usize;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const NX: u64 = 1 << 63;

/// An intermediate entry of the slot's tables.
const TABLE: u64 = P | W | A;
const TEXT: u64 = P | A;
const RODATA: u64 = P | A | NX;
const DATA: u64 = P | W | A | D | NX;

/// The shared page as the Guest's kernel mode sees it.
pub(crate) const SHARED_LEAF: u64 = P | W | U | A | D | NX;
/// The entry by which a shadow root links to the slot.
const SLOT_LINK: u64 = P | W | A;

/// The tables of a slot.
struct Tables {
    /// For the Host's world.
    host: TableBox,
    /// For the Guest's, where the shared page is as well: no Host code uses it at these addresses.
    guest: TableBox,
}

/// The switcher's slot of one address space: its tables, and a region for each vCPU that a VM has had so far.
///
/// # Invariants
///
/// The tables map what `regions` own and the text, which lies in the module's own read-only pages, and
/// nothing else; and what is mapped never changes.
#[pin_data]
pub(crate) struct Slot {
    // Dropped in this order: the tables, the pages.
    #[pin]
    tables: Mutex<Tables>,
    /// Where the tables are.
    host: Hpa,
    guest: Hpa,
    /// Where the region of vCPU 0 is, or will be.
    first: u64,
    regions: [SetOnce<Region>; MAX],
}

/// The table of level 1 for a region, which lies in one of them, as what it covers is a multiple of [`REGION`].
fn leaf_table(tables: &mut TableBox, base: u64) -> Result<&mut Table> {
    let mut table = &mut **tables;
    let top = cpu::paging_levels() - 1;
    for level in (2..=top).rev() {
        let i = (base >> (12 + 9 * (u32::from(level) - 1))) as usize;
        table = table.make_child(i, TABLE)?;
    }
    Ok(table)
}

/// Maps one page.
fn map(leaves: &mut Table, va: u64, hpa: Hpa, flags: u64) {
    leaves.set((va >> 12) as usize, hpa.get() | flags);
}

impl Slot {
    /// One without regions. May sleep.
    pub(crate) fn new() -> Result<impl PinInit<Self, Infallible>> {
        let start = &raw const lg_switcher_start;
        let size = offset(&raw const lg_switcher_end) as usize;
        if size != TEXT_PAGES * 4096 || start as usize % 4096 != 0 {
            pr_err!(
                "the switcher does not lie in {} pages of its own\n",
                TEXT_PAGES
            );
            return Err(EINVAL);
        }
        let (host, guest) = (TableBox::new()?, TableBox::new()?);
        // What the Guest writes into its registers lies in there: not at an address that it knows beforehand.
        let first = hole::base() + REGION * random_below(hole::MIN_SIZE / REGION - MAX as u64);
        let at = (host.hpa(), guest.hpa());
        Ok(pin_init!(Self {
            tables <- new_mutex!(Tables { host, guest }, "lg::slot"),
            host: at.0,
            guest: at.1,
            first,
            regions: [const { SetOnce::new() }; MAX],
        }))
    }

    /// Makes the region of vCPU `id`, if there is none. May sleep.
    pub(crate) fn make_region(&self, id: usize) -> Result {
        let place = nospec::get(&self.regions, id).ok_or(EINVAL)?;
        let mut tables = self.tables.lock();
        if place.as_ref().is_some() {
            return Ok(());
        }
        let region = Region::new(self.first + id as u64 * REGION)?;
        let Tables { host, guest } = &mut *tables;
        let leaves = [
            leaf_table(host, region.base)?,
            leaf_table(guest, region.base)?,
        ];
        // INVARIANT: Nothing fails from here on: what is mapped is owned by `regions` in the end.
        let [_, of_guest] = leaves.map(|leaves| {
            for offset in (0..TEXT_PAGES as u64).map(|page| page * 4096) {
                // SAFETY: This is a page of the switcher, which is in the module.
                let hpa = unsafe {
                    module_page_to_hpa((&raw const lg_switcher_start).add(offset as usize))
                };
                map(leaves, region.base + offset, hpa, TEXT);
            }
            map(leaves, region.base + STATE, region.state.hpa(), DATA);
            map(leaves, region.base + GDT, region.gdt.hpa(), DATA);
            map(leaves, region.base + IDT, region.idt.hpa(), RODATA);
            map(leaves, region.base + STACKS, region.stacks.hpa(), DATA);
            leaves
        });
        map(of_guest, region.base + SHARED, region.shared.hpa(), DATA);
        place.populate(region);
        Ok(())
    }

    /// The tables for the Host's world, at index [`hole::SLOT`].
    pub(crate) fn hpa(&self) -> Hpa {
        self.host
    }

    /// The entry by which a shadow root maps the slot, at index [`hole::SLOT`].
    pub(crate) fn link(&self) -> u64 {
        self.guest.get() | SLOT_LINK
    }

    /// The physical address of vCPU `id`'s shared page.
    pub(crate) fn shared_hpa(&self, id: usize) -> Option<Hpa> {
        Some(self.region(id)?.shared.hpa())
    }

    /// Makes all regions as new.
    ///
    /// # Safety
    ///
    /// Nobody has a [`Switcher`](super::Switcher) of the slot.
    pub(crate) unsafe fn reset(&self) {
        for region in self.regions.iter().filter_map(SetOnce::as_ref) {
            // SAFETY: As the caller promises.
            unsafe { region.reset() };
        }
    }

    /// The region of vCPU `id`.
    pub(super) fn region(&self, id: usize) -> Option<&Region> {
        nospec::get(&self.regions, id)?.as_ref()
    }
}
