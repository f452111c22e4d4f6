// SPDX-License-Identifier: GPL-2.0

//! The switcher's slot of one address space: the tables that map the regions of its vCPUs.

use super::{
    super::{
        cpu, hole, nospec,
        page::{
            module_page_to_hpa,
            random_below, //
        },
        table::TableBox,
    },
    layout::*,
    region::Region, //
};
use crate::lg_core::{
    addr::Hpa,
    shadow::Table as _, //
};
use kernel::prelude::*;

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

/// The switcher's slot of one address space: its tables, and a region for each vCPU.
///
/// # Invariants
///
/// The tables map what `regions` own and the text, which lies in the module's own read-only pages, and
/// nothing else; and that never changes.
pub(crate) struct Slot {
    // Dropped in this order: the tables, the pages.
    /// For the Host's world.
    host: TableBox,
    /// For the Guest's, where the shared page is as well: no Host code uses it at these addresses.
    guest: TableBox,
    regions: KVec<Region>,
}

/// Maps one page in the slot.
fn map(tables: &mut TableBox, va: u64, hpa: Hpa, flags: u64) -> Result {
    let mut table = &mut **tables;
    let top = cpu::paging_levels() - 1;
    for level in (2..=top).rev() {
        let i = (va >> (12 + 9 * (u32::from(level) - 1))) as usize;
        table = table.make_child(i, TABLE)?;
    }
    table.set((va >> 12) as usize, hpa.get() | flags);
    Ok(())
}

impl Slot {
    /// Makes the regions of `vcpus` vCPUs. May sleep.
    pub(crate) fn new(vcpus: u32) -> Result<Self> {
        let start = &raw const lg_switcher_start;
        let size = offset(&raw const lg_switcher_end) as usize;
        if size != TEXT_PAGES * 4096 || start as usize % 4096 != 0 {
            pr_err!(
                "the switcher does not lie in {} pages of its own\n",
                TEXT_PAGES
            );
            return Err(EINVAL);
        }
        let (mut host, mut guest) = (TableBox::new()?, TableBox::new()?);
        let mut regions = KVec::new();
        // What the Guest writes into its registers lies in there: not at an address that it knows beforehand.
        let first =
            hole::base() + REGION * random_below(hole::MIN_SIZE / REGION - u64::from(vcpus));
        for id in 0..vcpus {
            let region = Region::new(first + u64::from(id) * REGION)?;
            for tables in [&mut host, &mut guest] {
                for offset in (0..TEXT_PAGES as u64).map(|page| page * 4096) {
                    // SAFETY: This is a page of the switcher, which is in the module.
                    let hpa = unsafe { module_page_to_hpa(start.add(offset as usize)) };
                    map(tables, region.base + offset, hpa, TEXT)?;
                }
                map(tables, region.base + STATE, region.state.hpa(), DATA)?;
                map(tables, region.base + GDT, region.gdt.hpa(), DATA)?;
                map(tables, region.base + IDT, region.idt.hpa(), RODATA)?;
                map(tables, region.base + STACKS, region.stacks.hpa(), DATA)?;
            }
            map(&mut guest, region.base + SHARED, region.shared.hpa(), DATA)?;
            regions.push(region, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            host,
            guest,
            regions,
        })
    }

    /// The tables for the Host's world, at index [`hole::SLOT`].
    pub(crate) fn hpa(&self) -> Hpa {
        self.host.hpa()
    }

    /// The entry by which a shadow root maps the slot, at index [`hole::SLOT`].
    pub(crate) fn link(&self) -> u64 {
        self.guest.hpa().get() | SLOT_LINK
    }

    /// The physical address of vCPU `id`'s shared page.
    pub(crate) fn shared_hpa(&self, id: usize) -> Option<Hpa> {
        Some(nospec::get(&self.regions, id)?.shared.hpa())
    }

    /// Makes all regions as new.
    ///
    /// # Safety
    ///
    /// Nobody has a [`Switcher`](super::Switcher) of the slot.
    pub(crate) unsafe fn reset(&self) {
        for region in &self.regions {
            // SAFETY: As the caller promises.
            unsafe { region.reset() };
        }
    }

    /// The region of vCPU `id`.
    pub(super) fn region(&self, id: usize) -> Option<&Region> {
        nospec::get(&self.regions, id)
    }
}
