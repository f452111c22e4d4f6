// SPDX-License-Identifier: GPL-2.0

//! Tags: what a CPU may still use of that which it has cached of the shadow.
//!
//! A CPU with PCIDs keeps translations, and what it knows of the tables on the way, when CR3 is loaded with bit 63
//! set (SDM, "Process-Context Identifiers"). Each holds the PCID that was in CR3 at the time, its *tag*, and is used
//! under that one only. So a tag may know what is long gone from the shadow, and tables that are somebody else's by
//! now, as long as nobody loads a root with it. Nobody goes around to clean tags. Instead there is a rule:
//!
//! > Whenever something is gone from the shadow, its **generation** moves: that of the lower half of one context, or
//! > that of the upper half, which is all contexts'. A CPU notes of each of its tags the generations for which it was
//! > last clean; and before a root is loaded with a tag whose generations are others, the CPU drops all that it has
//! > under that tag; or what is gone since, where that was a few pages.
//!
//! A context has two tags on a CPU, since it has two roots. The kernel's lead to both halves, the user's to the lower one
//! only, so that a flush of the upper half is nothing to them.
//!
//! What the CPU forgets without having been asked (because the Host flushes all, because it was off, or asleep) does not
//! matter: a tag is used for what its CPU *may* know. A context that comes or goes, a vCPU that moves to another CPU, a
//! VM that ends: nothing has to be done for any of these either.

use super::addr::Gva;
use super::sync::{fence, AtomicU64, Ordering};

/// The first tag. Linux's own are below, whatever mitigations it has on: 0; 1 to 6 for kernel mode; to 2047 where the CPU
/// broadcasts flushes (INVLPGB); and from 2049 to 2054 for user mode (linux:arch/x86/mm/tlb.c).
pub const FIRST: u16 = 0x900;
/// Contexts that a CPU has tags for. It fills a page of the Host's to a half.
pub const SLOTS: usize = 48;
/// CR3 bit 63, with PCIDs on: keep what is cached under the PCID that is loaded.
const NO_FLUSH: u64 = 1 << 63;
/// No VM's number.
const NOBODY: u64 = 0;
/// Up to so many pages of a half are dropped one by one. An INVPCID takes some 100 cycles, and all that a tag knows is
/// rarely more than some hundred walks.
pub const ONE_BY_ONE: usize = 8;
/// In the place of a seat: the upper half.
const UPPER: usize = 0xff;

const _: () = assert!(FIRST as usize + 2 * SLOTS <= 1 << 12);

/// What of a VM's shadow is gone by now, as vCPUs see it that hold no lock. There can be `N` contexts, each in a seat of
/// its own.
///
/// Whoever takes something out of the shadow does that first, then moves the generation, and then looks
/// who is in the Guest (`presence`); a vCPU that goes in looks at the generations behind its fence. So he sees the
/// vCPU, or the vCPU sees that they have moved.
#[derive(Debug)]
pub struct Generations<const N: usize, const NOTED: usize = 32> {
    vm: u64,
    upper: AtomicU64,
    lower: [AtomicU64; N],
    /// The last generations, `NOTED` of them, at which it was one page that went.
    noted: [Note; NOTED],
    next: AtomicU64,
}

/// The page that was gone with one generation.
#[derive(Debug)]
struct Note {
    /// The generation, and in the low 8 bits the seat. 0: none, or `page` is being written.
    of: AtomicU64,
    page: AtomicU64,
}

/// A few pages.
#[derive(Clone, Copy)]
struct Pages {
    gvas: [u64; ONE_BY_ONE],
    count: usize,
}

impl Pages {
    const NONE: Self = Self {
        gvas: [0; ONE_BY_ONE],
        count: 0,
    };

    fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.gvas.iter().take(self.count).copied()
    }
}

/// A context, and its generations at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    vm: u64,
    seat: usize,
    lower: u64,
    upper: u64,
}

impl<const N: usize, const NOTED: usize> Generations<N, NOTED> {
    /// Of VM number `vm`: not 0, and no other VM's there ever was as long as the CPUs' [`Slots`] are there.
    pub fn new(vm: u64) -> Self {
        Self {
            vm,
            upper: AtomicU64::new(0),
            lower: core::array::from_fn(|_| AtomicU64::new(0)),
            noted: core::array::from_fn(|_| Note {
                of: AtomicU64::new(0),
                page: AtomicU64::new(0),
            }),
            next: AtomicU64::new(0),
        }
    }

    /// The generation of the lower half of the context in this seat, or of the upper half.
    fn of(&self, seat: usize) -> Option<&AtomicU64> {
        match seat {
            UPPER => Some(&self.upper),
            _ => self.lower.get(seat),
        }
    }

    /// The page at `gva` is gone, and nothing else, from the lower half of the context in this seat or, without one, from the
    /// upper half. A table on the way to it is not. One at a time.
    pub fn move_page(&self, seat: Option<usize>, gva: Gva) {
        const { assert!(N <= UPPER && NOTED > 0) };
        let seat = seat.unwrap_or(UPPER);
        let next = self.next.load(Ordering::Relaxed);
        let place = self.noted.get(next as usize % NOTED);
        if let (Some(generation), Some(note)) = (self.of(seat), place) {
            self.next.store(next.wrapping_add(1), Ordering::Relaxed);
            note.of.store(0, Ordering::Relaxed);
            // Who reads this page, and looks at `of` behind a fence of its own, finds that it is not what it was.
            fence(Ordering::Release);
            note.page
                .store(gva.page().canonicalize().get(), Ordering::Relaxed);
            let new = generation.load(Ordering::Relaxed).wrapping_add(1);
            note.of.store((new << 8) | seat as u64, Ordering::Release);
            // As in `move_upper`.
            generation.store(new, Ordering::Release);
        }
    }

    /// What is gone of a half since generation `since`, which is `now` by now, if that is known: a few pages.
    fn pages(&self, seat: usize, since: u64, now: u64) -> Option<Pages> {
        let mut pages = Pages::NONE;
        let missing = now.wrapping_sub(since);
        if missing == 0 {
            return Some(pages);
        }
        if missing > ONE_BY_ONE as u64 {
            return None;
        }
        for note in &self.noted {
            let of = note.of.load(Ordering::Acquire);
            let generation = of >> 8;
            if of & 0xff != seat as u64 || generation <= since || generation > now {
                continue;
            }
            let page = note.page.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if note.of.load(Ordering::Relaxed) != of {
                return None;
            }
            *pages.gvas.get_mut(pages.count)? = page;
            pages.count += 1;
        }
        // No generation is noted twice.
        (pages.count as u64 == missing).then_some(pages)
    }

    /// Something of the upper half is gone.
    pub fn move_upper(&self) {
        // Release: who sees it finds nothing any more of what is gone.
        self.upper.fetch_add(1, Ordering::Release);
    }

    /// Something of the lower half of the context in this seat is gone; or it is another context now.
    pub fn move_lower(&self, seat: usize) {
        if let Some(lower) = self.lower.get(seat) {
            lower.fetch_add(1, Ordering::Release);
        }
    }

    /// The context in this seat, which the caller is on.
    pub fn now(&self, seat: usize) -> Now {
        let lower = self.lower.get(seat);
        Now {
            vm: self.vm,
            seat,
            lower: lower.map_or(0, |lower| lower.load(Ordering::Acquire)),
            upper: self.upper.load(Ordering::Acquire),
        }
    }
}

/// The two tags of one context on one CPU. (Any, by default: a hint where nothing is known.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags(usize);

impl Tags {
    /// The PCID for a root.
    pub fn pcid(self, user: bool) -> u16 {
        // In range: see the assertion above.
        let pair = (self.0 % SLOTS * 2) as u16;
        FIRST.wrapping_add(pair).wrapping_add(user.into())
    }

    /// What to load into CR3 for the root at this physical address, so that the CPU forgets nothing.
    pub fn cr3(self, root: u64, user: bool) -> u64 {
        root | u64::from(self.pcid(user)) | NO_FLUSH
    }
}

/// What a CPU is to drop of what it has under a PCID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// All of it.
    All(u16),
    /// The page at this canonical address, but no table on the way to it.
    Page(u16, u64),
}

/// What the tags in one place may know: nothing that was gone before these generations.
#[derive(Clone, Copy, Debug)]
struct Slot {
    clean: Now,
    /// When it was last used, by the clock of its CPU.
    used: u64,
}

/// All tags of one CPU, `N` pairs of them. Only that CPU uses it, with interrupts off.
#[derive(Debug)]
pub struct Slots<const N: usize> {
    slots: [Slot; N],
    clock: u64,
}

impl<const N: usize> Slots<N> {
    /// Of a CPU of which nothing is known: every tag is dirty.
    pub const fn new() -> Self {
        const { assert!(N > 0 && N <= SLOTS) };
        let clean = Now {
            vm: NOBODY,
            seat: 0,
            lower: 0,
            upper: 0,
        };
        Self {
            slots: [Slot { clean, used: 0 }; N],
            clock: 0,
        }
    }

    /// The tags for a context whose generations were `now` *before* this is called, of those in `generations`. What this
    /// CPU may have that is older, `forget` drops. `hint` is where the tags were the last time, wherever that was.
    pub fn tags<const M: usize, const NOTED: usize>(
        &mut self,
        generations: &Generations<M, NOTED>,
        now: &Now,
        hint: &mut Tags,
        forget: impl FnMut(Forget),
    ) -> Tags {
        let is_there = |slot: &Slot| (slot.clean.vm, slot.clean.seat) == (now.vm, now.seat);
        let place = match self.slots.get(hint.0).is_some_and(is_there) {
            true => hint.0,
            false => {
                let found = self.slots.iter().position(is_there);
                found.unwrap_or_else(|| self.least_recent())
            }
        };
        let tags = Tags(place);
        *hint = tags;
        self.clock = self.clock.wrapping_add(1);
        if let Some(slot) = self.slots.get_mut(place) {
            slot.used = self.clock;
            let clean = core::mem::replace(&mut slot.clean, *now);
            if clean == *now {
                return tags;
            }
            forget_what_went(generations, &clean, now, tags, forget);
        }
        tags
    }

    fn least_recent(&self) -> usize {
        let slots = self.slots.iter().enumerate();
        let oldest = slots.min_by_key(|(_, slot)| slot.used);
        oldest.map_or(0, |(place, _)| place)
    }
}

/// Has all forgotten that `tags`, which were clean for `clean`, may know and that is gone `now`. Not a part of the frame of whoever
/// enters the Guest.
#[cold]
#[inline(never)]
fn forget_what_went<const N: usize, const NOTED: usize>(
    generations: &Generations<N, NOTED>,
    clean: &Now,
    now: &Now,
    tags: Tags,
    mut forget: impl FnMut(Forget),
) {
    let [lower, upper] = match (clean.vm, clean.seat) == (now.vm, now.seat) {
        true => [
            generations.pages(now.seat, clean.lower, now.lower),
            generations.pages(UPPER, clean.upper, now.upper),
        ],
        false => [None; 2],
    };
    let (kernel, user) = (tags.pcid(false), tags.pcid(true));
    match &lower {
        Some(pages) => pages.iter().for_each(|gva| forget(Forget::Page(user, gva))),
        None => forget(Forget::All(user)),
    }
    match (&lower, &upper) {
        (Some(lower), Some(upper)) => {
            let pages = lower.iter().chain(upper.iter());
            pages.for_each(|gva| forget(Forget::Page(kernel, gva)));
        }
        _ => forget(Forget::All(kernel)),
    }
}

impl<const N: usize> Default for Slots<N> {
    fn default() -> Self {
        Self::new()
    }
}
