// SPDX-License-Identifier: GPL-2.0

//! Guest RAM: memory of the Launcher's, which stays the Host's.
//!
//! The Host may take a page back at any time: to swap it out, to move it, because the Launcher punches a hole. So a page
//! is *known* here from when the Guest touches it until the Host says that it takes it, by way of the address space's
//! [notifier](super::notifier). Nothing is pinned.
//!
//! # Looks
//!
//! Whoever reads or writes a page, or lets a vCPU's processor do so by an entry of the shadow, has a [`Look`]. The Host
//! takes in this order ([`GuestRam::begin_taking`]): it forgets what is known of the pages, advances the
//! [epoch](GuestRam::epoch), and waits for all looks that may be older. A vCPU whose shadow is of another epoch does not
//! enter the Guest. And what goes into the shadow is looked up under the shadow's lock, so a flush of it that is of the
//! new epoch has what was put there by an older look as well.
//!
//! Until the Host has done with them ([`GuestRam::end_taking`]) no page becomes known: it might be one of those.
//!
//! The only Rust references into Guest memory are to atomic words, which are read and written by value.

use super::{
    compat,
    cpu::IrqsOff,
    nospec,
    page::{
        direct_map,
        page_to_hpa, //
    }, //
};
use crate::{
    abi::*,
    lg_core::{
        addr::{
            Gpa,
            Hpa, //
        },
        paging::TableMemory,
        presence::{
            Presence,
            Visit, //
        },
    },
};
use core::{
    ops::Range,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    }, //
};
use kernel::{
    bindings,
    new_condvar,
    new_spinlock,
    prelude::*,
    sync::{
        CondVar,
        SetOnce,
        SpinLock, //
    }, //
};

const PAGE: u64 = 4096;
/// Pages that are asked for at once at most: 64 KiB. With more, a Guest that touches one page here and
/// there would have much that it never uses; with fewer, the cost of the call shows.
const BATCH: usize = 16;
/// In the place of a page's address: it is not known. No RAM of a Launcher's is at 0.
const UNKNOWN: u64 = 0;

struct Region {
    gpa: u64,
    hva: u64,
    /// The Host's page behind each Guest frame, or [`UNKNOWN`].
    pages: KVVec<AtomicU64>,
}

impl Region {
    /// Which of its pages are in these addresses of the Launcher's?
    fn pages_in(&self, hvas: &Range<u64>) -> &[AtomicU64] {
        let end = self.hva + self.pages.len() as u64 * PAGE;
        let index = |hva: u64| ((hva.clamp(self.hva, end) - self.hva) / PAGE) as usize;
        // A page of which only a part is taken is taken.
        let pages = index(hvas.start)..index(hvas.end.saturating_add(PAGE - 1));
        self.pages.get(pages).unwrap_or_default()
    }
}

/// The regions that a VM's RAM is made of.
pub(crate) struct Regions(KVec<Region>);

impl Regions {
    pub(crate) fn new() -> Self {
        Self(KVec::new())
    }

    /// Adds one. `EINVAL` for one which is unaligned, empty, beyond [`LGUEST_MAX_GPA`], not in
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
        for r in &self.0 {
            let r_end = r.gpa + r.pages.len() as u64 * PAGE;
            if new.gpa < r_end && r.gpa < end {
                return Err(EINVAL);
            }
        }
        if self.0.len() >= LGUEST_MAX_MEMORY as usize {
            return Err(ENOSPC);
        }
        let count = (new.size / PAGE) as usize;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            pages.push(AtomicU64::new(UNKNOWN), GFP_KERNEL_ACCOUNT)?;
        }
        self.0.push(
            Region {
                gpa: new.gpa,
                hva: new.hva,
                pages,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(())
    }

    /// The region of `gpa`, and which of its pages that is.
    fn find(&self, gpa: Gpa) -> Option<(&Region, usize)> {
        self.0.iter().find_map(|r| {
            let index = gpa.get().checked_sub(r.gpa)? / PAGE;
            let pages = r.pages.len();
            (index < pages as u64).then_some((r, nospec::index(index as usize, pages)))
        })
    }

    /// Is there RAM at `gpa`?
    pub(crate) fn contains(&self, gpa: Gpa) -> bool {
        self.find(gpa).is_some()
    }
}

/// What the Host is at.
struct Takings {
    /// How many have begun and not ended.
    now: usize,
    /// How many have ever begun.
    begun: u64,
}

/// A VM's RAM.
///
/// # Invariants
///
/// A word of `pages` that is not [`UNKNOWN`] is the address of a page, in the direct map, which the Launcher has mapped
/// writable at that place. It is not freed before the Host has made the word `UNKNOWN` again and all [`Look`]s that
/// were there then have ended.
#[pin_data]
pub(crate) struct GuestRam {
    regions: SetOnce<Regions>,
    #[pin]
    takings: SpinLock<Takings>,
    /// `takings.now` is 0 again.
    #[pin]
    over: CondVar,
    epoch: AtomicU64,
    known: AtomicU64,
}

impl GuestRam {
    /// None yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            regions: SetOnce::new(),
            takings <- new_spinlock!(Takings { now: 0, begun: 0 }, "lg::takings"),
            over <- new_condvar!("lg::takings_over"),
            epoch: AtomicU64::new(0),
            known: AtomicU64::new(0),
        })
    }

    /// Makes it of these regions, which is done once.
    pub(crate) fn set(&self, regions: Regions) {
        self.regions.populate(regions);
    }

    fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.as_ref().into_iter().flat_map(|r| r.0.iter())
    }

    fn find(&self, gpa: Gpa) -> Option<(&Region, usize)> {
        self.regions.as_ref()?.find(gpa)
    }

    /// Is there RAM at `gpa`?
    pub(crate) fn contains(&self, gpa: Gpa) -> bool {
        self.find(gpa).is_some()
    }

    /// Pages known now.
    pub(crate) fn known(&self) -> u64 {
        self.known.load(Ordering::Relaxed)
    }

    /// Advances when the Host takes pages that were known. A shadow that was empty when it was at this number, and
    /// filled since, has none of them.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Gets to know the Host's page behind `gpa`, and nothing if that is outside RAM. `EFAULT` when the Launcher has no
    /// memory there, `EHWPOISON` when the Host has found an uncorrectable error in it, `EINTR` on a signal while the
    /// Host is taking pages. May sleep; only in the Launcher's own address space, and without a [`Look`].
    pub(crate) fn learn(&self, gpa: Gpa) -> Result {
        let Some((region, index)) = self.find(gpa) else {
            return Ok(());
        };
        // Since the Guest is likely to come for them next: also those behind it, up to the next one that is known or to
        // the end of its batch.
        let end = (index / BATCH * BATCH + BATCH).min(region.pages.len());
        let slots = region.pages.get(index..end).ok_or(EINVAL)?;
        let unknown = |slot: &&AtomicU64| slot.load(Ordering::Relaxed) == UNKNOWN;
        let wanted = slots.iter().take_while(unknown).count();
        if wanted == 0 {
            return Ok(());
        }
        let begun = self.none_is_taken()?;
        let hva = (region.hva + index as u64 * PAGE) as usize;
        let mut pages = [core::ptr::null_mut::<bindings::page>(); BATCH];
        // SAFETY: `pages` has room for `wanted` pages, and the function checks the address itself.
        let got = unsafe {
            let flags = bindings::FOLL_WRITE;
            bindings::pin_user_pages_fast(hva, wanted as i32, flags, pages.as_mut_ptr())
        };
        if got <= 0 {
            return Err(why_not(hva, got));
        }
        {
            let takings = self.takings.lock();
            // Who begins to take after this finds them known.
            if takings.now == 0 && takings.begun == begun {
                for (slot, &page) in slots.iter().zip(&pages).take(got as usize) {
                    // SAFETY: It was just given to us.
                    let hpa = unsafe { page_to_hpa(page) };
                    // INVARIANT: We have it still, so it was there when nobody had begun to take it.
                    if slot.swap(hpa.get(), Ordering::Release) == UNKNOWN {
                        self.known.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        // Dirty, since the Host does not see what the Guest writes by way of the shadow. To write a page out, it takes
        // it first.
        // SAFETY: We have these by the call above.
        unsafe { bindings::unpin_user_pages_dirty_lock(pages.as_mut_ptr(), got as usize, true) };
        Ok(())
    }

    /// Waits until the Host is taking nothing; says how often it has begun to.
    fn none_is_taken(&self) -> Result<u64> {
        let mut takings = self.takings.lock();
        while takings.now > 0 {
            if self.over.wait_interruptible(&mut takings) {
                return Err(EINTR);
            }
        }
        Ok(takings.begun)
    }

    /// The Host takes what is in these addresses of the Launcher's. If any of it may be in use, it has to wait for all
    /// looks that were there before this returned, and says so. Process context; does not sleep.
    pub(crate) fn begin_taking(&self, hvas: &Range<u64>) -> bool {
        let mine = {
            let mut takings = self.takings.lock();
            takings.now += 1;
            takings.begun = takings.begun.wrapping_add(1);
            takings.begun
        };
        let (mut any, mut forgotten) = (false, 0);
        for slot in self.regions().flat_map(|region| region.pages_in(hvas)) {
            any = true;
            // Most are not known, and a swap is dear.
            let known = slot.load(Ordering::Relaxed) != UNKNOWN;
            if known && slot.swap(UNKNOWN, Ordering::Relaxed) != UNKNOWN {
                forgotten += 1;
            }
        }
        if !any {
            return false;
        }
        self.known.fetch_sub(forgotten, Ordering::Relaxed);
        let alone = {
            let takings = self.takings.lock();
            takings.now == 1 && takings.begun == mine
        };
        // What another one has forgotten, who may not have waited for the looks yet, is not free either.
        let in_use = forgotten > 0 || !alone;
        if in_use {
            // Release: who sees it sees that they are forgotten.
            self.epoch.fetch_add(1, Ordering::Release);
        }
        in_use
    }

    /// The Host has done with what it has begun to take. Process context; does not sleep.
    pub(crate) fn end_taking(&self) {
        let mut takings = self.takings.lock();
        takings.now -= 1;
        if takings.now == 0 {
            self.over.notify_all();
        }
    }
}

/// The reason why there is no page at `hva`, where the Host said `got`.
fn why_not(hva: usize, got: i32) -> Error {
    if got != 0 && Error::from_errno(got) != EFAULT {
        return Error::from_errno(got);
    }
    // The quick call does not tell memory that is bad from none.
    // SAFETY: No page is asked for, and the function checks the address itself.
    let got = unsafe {
        let flags = bindings::FOLL_WRITE | bindings::FOLL_HWPOISON;
        bindings::get_user_pages_unlocked(hva, 1, core::ptr::null_mut(), flags)
    };
    match Error::from_errno(got as i32) {
        error if error == compat::ehwpoison() => error,
        _ => EFAULT,
    }
}

/// The looks of one vCPU at its RAM, as those who take pages see them: no more than one at a time, its thread's.
///
/// Whoever takes pages of that RAM waits for the looks of each of its vCPUs.
pub(crate) struct Looker(Presence);

impl Looker {
    pub(crate) fn new() -> Self {
        Self(Presence::new())
    }

    /// Everything until [`end`](Self::end) is one look: a run section, IRQs off.
    pub(crate) fn begin(&self, _irqs: &IrqsOff) {
        self.0.enter();
    }

    /// Nothing of it is used any more, neither here nor by the processor.
    pub(crate) fn end(&self) {
        self.0.leave();
    }

    /// Calls `f` with a look at `ram`: the one of the section, or else one of its own, for which IRQs are off.
    pub(crate) fn look<R>(&self, ram: &GuestRam, f: impl FnOnce(&Look<'_>) -> R) -> R {
        if self.0.is_in() {
            return f(&Look { ram });
        }
        let irqs = IrqsOff::new();
        self.begin(&irqs);
        let result = f(&Look { ram });
        self.end();
        result
    }

    /// The look that there may be which does not know of what the caller has forgotten before.
    pub(crate) fn fence_and_look(&self) -> Visit {
        self.0.fence_and_visit()
    }

    /// Has it ended?
    pub(crate) fn is_over(&self, look: Visit) -> bool {
        self.0.is_over(look)
    }
}

/// A look at RAM: the pages that are known stay where they are. It never waits.
pub(crate) struct Look<'a> {
    ram: &'a GuestRam,
}

impl Look<'_> {
    /// Is there RAM at `gpa`?
    pub(crate) fn contains(&self, gpa: Gpa) -> bool {
        self.ram.contains(gpa)
    }

    /// The Host's page behind `gpa`, if it is known.
    pub(crate) fn page(&self, gpa: Gpa) -> Option<Hpa> {
        let (region, index) = self.ram.find(gpa)?;
        let hpa = region.pages.get(index)?.load(Ordering::Acquire);
        (hpa != UNKNOWN).then_some(Hpa::new(hpa))
    }

    /// The word at `gpa`, which must be aligned; if its page is known.
    fn word(&self, gpa: Gpa) -> Option<&AtomicU64> {
        let at = self.page(gpa)?.get() | (gpa.get() % PAGE & !7);
        // SAFETY: By the invariant of `GuestRam` the page is there as long as `self`, an aligned word is inside it, and
        // everybody (Guest, Launcher, us) only ever does whole-word accesses that the CPU makes atomic.
        Some(unsafe { &*direct_map(Hpa::new(at)).cast::<AtomicU64>() })
    }

    /// The byte at `gpa`, if its page is known.
    pub(crate) fn byte(&self, gpa: Gpa) -> Option<u8> {
        Some((self.word(gpa)?.load(Ordering::Relaxed) >> (gpa.get() % 8 * 8)) as u8)
    }
}

/// The Guest's page tables, for the walker. A table that is not known looks as if it were outside RAM
/// ([`Look::contains`] tells them apart).
impl TableMemory for Look<'_> {
    fn read_pte(&self, at: Gpa) -> Option<u64> {
        Some(self.word(at)?.load(Ordering::Acquire))
    }

    fn table(&self, at: Gpa) -> Option<impl Fn(usize) -> u64> {
        let page = Gpa::new(at.get() & !(PAGE - 1));
        let first = self.word(page)?.as_ptr();
        // SAFETY: That is the first word of a page of the Guest's, which is page aligned and stays there as
        // long as `self`; for its words, see `word`.
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
