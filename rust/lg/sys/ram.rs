// SPDX-License-Identifier: GPL-2.0

//! Guest RAM: memory of the Launcher's, pinned as the Guest touches it.
//!
//! A page stays pinned until the VM ends, so that the shadow may point at it without asking
//! anybody. (The alternative, an MMU notifier which tears the shadow down when the Host moves a
//! page, buys swapping of Guests; it would have to stop every vCPU from a callback that may not
//! sleep.)
//!
//! The only Rust references into Guest memory are to atomic words, which are read and written by value.

use super::{
    compat,
    nospec,
    page::{
        direct_map,
        page_to_hpa,
        Wait, //
    }, //
};
use crate::{
    abi::*,
    lg_core::{
        addr::{
            Gpa,
            Hpa, //
        },
        paging::TableMemory, //
    },
};
use core::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use kernel::{
    bindings,
    prelude::*, //
};

const PAGE: u64 = 4096;
/// Pages that are pinned at once at most: 64 KiB. With more, a Guest that touches one page here and
/// there would pin much that it never uses; with fewer, the cost of the call shows.
const BATCH: usize = 16;

#[cfg(CONFIG_MEMORY_FAILURE)]
const HWPOISON: u32 = bindings::pageflags_PG_hwpoison;
#[cfg(not(CONFIG_MEMORY_FAILURE))]
const HWPOISON: u32 = 0;

struct Region {
    gpa: u64,
    hva: u64,
    /// The page behind each Guest frame, as the address of its `struct page`; 0 until it is pinned.
    pages: KVVec<AtomicU64>,
}

impl Region {
    /// The page of this index if it is pinned; `EHWPOISON` if memory failed there since. The pin keeps
    /// such a page where it is, and reading it would be another machine check, in the kernel.
    fn good_page(&self, index: usize) -> Result<Option<Hpa>> {
        let word = self.pages.get(index).ok_or(EINVAL)?.load(Ordering::Acquire);
        let page = word as *const bindings::page;
        if page.is_null() {
            return Ok(None);
        }
        // SAFETY: By the invariant of `GuestRam` it is a `struct page`; others change flags at any time,
        // hence volatile.
        let (flags, hpa) = unsafe {
            let flags = (&raw const (*page).flags.f).read_volatile();
            (flags, page_to_hpa(page))
        };
        if cfg!(CONFIG_MEMORY_FAILURE) && flags & (1 << HWPOISON) != 0 {
            return Err(compat::ehwpoison());
        }
        Ok(Some(hpa))
    }
}

/// # Invariants
///
/// A non-zero word of `pages` is a `struct page` on which we hold a long-term, writable pin.
pub(crate) struct GuestRam {
    regions: KVec<Region>,
    pinned: AtomicU64,
}

impl GuestRam {
    pub(crate) fn new() -> Self {
        Self {
            regions: KVec::new(),
            pinned: AtomicU64::new(0),
        }
    }

    /// Adds a region. `EINVAL` for one which is unaligned, empty, beyond [`LGUEST_MAX_GPA`], not in
    /// user memory, or which overlaps another; `ENOSPC` when there are too many.
    pub(crate) fn add(&mut self, new: lguest_memory) -> Result {
        let end = new.gpa.checked_add(new.size).ok_or(EINVAL)?;
        let hva_end = new.hva.checked_add(new.size).ok_or(EINVAL)?;
        if (new.gpa | new.size | new.hva) % PAGE != 0
            || new.size == 0
            || end > LGUEST_MAX_GPA
            || hva_end > 1 << 47
        {
            return Err(EINVAL);
        }
        for r in &self.regions {
            let r_end = r.gpa + r.pages.len() as u64 * PAGE;
            if new.gpa < r_end && r.gpa < end {
                return Err(EINVAL);
            }
        }
        if self.regions.len() >= LGUEST_MAX_MEMORY as usize {
            return Err(ENOSPC);
        }
        let count = (new.size / PAGE) as usize;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            pages.push(AtomicU64::new(0), GFP_KERNEL_ACCOUNT)?;
        }
        self.regions.push(
            Region {
                gpa: new.gpa,
                hva: new.hva,
                pages,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(())
    }

    /// Pages pinned now.
    pub(crate) fn pinned(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// The region of `gpa`, and which of its pages that is.
    fn find(&self, gpa: Gpa) -> Option<(&Region, usize)> {
        self.regions.iter().find_map(|r| {
            let index = gpa.get().checked_sub(r.gpa)? / PAGE;
            let pages = r.pages.len();
            (index < pages as u64).then_some((r, nospec::index(index as usize, pages)))
        })
    }

    /// Is there RAM at `gpa`?
    pub(crate) fn contains(&self, gpa: Gpa) -> bool {
        self.find(gpa).is_some()
    }

    /// The Host's page behind `gpa` if it is pinned already, and good; never sleeps.
    pub(crate) fn pinned_page(&self, gpa: Gpa) -> Option<Hpa> {
        let (region, index) = self.find(gpa)?;
        region.good_page(index).ok()?
    }

    /// The Host's page behind `gpa`, pinned now if it was not. `None` outside RAM, `EFAULT` when
    /// the Launcher has no memory there, `EHWPOISON` when the Host has found an uncorrectable error in
    /// it. May sleep; only in the Launcher's own address space.
    pub(crate) fn page(&self, gpa: Gpa) -> Result<Option<Hpa>> {
        let Some((region, index)) = self.find(gpa) else {
            return Ok(None);
        };
        if region.good_page(index)?.is_none() {
            self.pin(region, index)?;
        }
        region.good_page(index)
    }

    /// Pins a page and, since the Guest is likely to come for them next, those behind it up to the
    /// next one that is pinned or to the end of its [`BATCH`].
    fn pin(&self, region: &Region, index: usize) -> Result {
        let end = (index / BATCH * BATCH + BATCH).min(region.pages.len());
        let slots = region.pages.get(index..end).ok_or(EINVAL)?;
        let wanted = slots
            .iter()
            .take_while(|slot| slot.load(Ordering::Relaxed) == 0)
            .count();
        let mut pages = [core::ptr::null_mut::<bindings::page>(); BATCH];
        // SAFETY: `pages` has room for `wanted` pages, and the function checks the address itself.
        let got = unsafe {
            bindings::pin_user_pages_fast(
                (region.hva + index as u64 * PAGE) as usize,
                wanted as i32,
                bindings::FOLL_WRITE | bindings::FOLL_LONGTERM,
                pages.as_mut_ptr(),
            )
        };
        if got <= 0 {
            return Err(if got < 0 {
                Error::from_errno(got)
            } else {
                EFAULT
            });
        }
        for (slot, &page) in slots.iter().zip(&pages).take(got as usize) {
            // INVARIANT: Just pinned. If another vCPU was faster, its pin stays and ours goes.
            if slot
                .compare_exchange(0, page as u64, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                self.pinned.fetch_add(1, Ordering::Relaxed);
            } else {
                // SAFETY: We pinned it above.
                unsafe { bindings::unpin_user_page(page) };
            }
        }
        Ok(())
    }

    /// The word at `gpa`, which must be aligned. `None` outside RAM, or where it would have to wait
    /// but must not.
    fn word(&self, gpa: Gpa, wait: Wait) -> Result<Option<&AtomicU64>> {
        let hpa = match self.pinned_page(gpa) {
            None if wait == Wait::Allowed => self.page(gpa)?,
            known => known,
        };
        let Some(hpa) = hpa else {
            return Ok(None);
        };
        let at = hpa.get() | (gpa.get() % PAGE & !7);
        // SAFETY: The page stays pinned as long as `self`, an aligned word is inside it, and
        // everybody (Guest, Launcher, us) only ever does whole-word accesses that the CPU makes
        // atomic.
        Ok(Some(unsafe {
            &*direct_map(Hpa::new(at)).cast::<AtomicU64>()
        }))
    }

    /// Copies Guest memory to `buf`; `false` if it is not all RAM. May sleep.
    pub(crate) fn read(&self, gpa: Gpa, buf: &mut [u8]) -> bool {
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = Gpa::new(gpa.get().wrapping_add(i as u64));
            let Ok(Some(word)) = self.word(at, Wait::Allowed) else {
                return false;
            };
            *byte = (word.load(Ordering::Relaxed) >> (at.get() % 8 * 8)) as u8;
        }
        true
    }

    /// The Guest's page tables, for the walker.
    pub(crate) fn tables(&self, wait: Wait) -> Tables<'_> {
        Tables { ram: self, wait }
    }
}

/// How the walker reaches Guest page tables. Where waiting is forbidden, a table that is not pinned
/// yet looks as if it were outside RAM ([`GuestRam::contains`] tells them apart). So does one that could not
/// be pinned.
pub(crate) struct Tables<'a> {
    ram: &'a GuestRam,
    wait: Wait,
}

impl Tables<'_> {
    fn word(&self, at: Gpa) -> Option<&AtomicU64> {
        self.ram.word(at, self.wait).ok().flatten()
    }
}

impl TableMemory for Tables<'_> {
    fn read_pte(&self, at: Gpa) -> Option<u64> {
        Some(self.word(at)?.load(Ordering::Acquire))
    }

    fn table(&self, at: Gpa) -> Option<impl Fn(usize) -> u64> {
        let page = Gpa::new(at.get() & !(PAGE - 1));
        let first = self.word(page)?.as_ptr();
        // SAFETY: That is the first word of a page of the Guest's, which is page aligned and stays pinned as
        // long as we are borrowed; for its words, see `word`.
        let words = unsafe { &*first.cast::<[AtomicU64; 512]>() };
        Some(|i: usize| words[i % 512].load(Ordering::Acquire))
    }

    fn update_pte(&self, at: Gpa, old: u64, new: u64) -> bool {
        self.word(at).is_some_and(|word| {
            word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        for r in &self.regions {
            for slot in r.pages.iter() {
                let mut page = slot.load(Ordering::Relaxed) as *mut bindings::page;
                if !page.is_null() {
                    // SAFETY: By the type invariant we hold a pin, and the shadow that pointed here
                    // is gone.
                    unsafe { bindings::unpin_user_pages_dirty_lock(&mut page, 1, true) };
                }
            }
        }
    }
}
