// SPDX-License-Identifier: GPL-2.0

//! Whether a vCPU is on, and where it begins.
//!
//! ```text
//!            start                    (the frame is written)
//!   off ------------> starting ------------------------------> on
//!    ^                                                          |
//!    +----------------------------------------------------------+
//!       stop: by itself, or by another, whatever it is at
//!
//!   end: from each of them to over, for good
//! ```
//!
//! Each time that it is turned on is another *life*. A vCPU that goes into the Guest says so first
//! ([`Presence::enter`](super::presence::Presence::enter)), and then sees whether it is the life that it was to go
//! on with; who ends that does so first, and then waits for the vCPU to be out. So when he has waited, nothing of
//! that life runs any more.

use super::sync::{fence, AtomicU64, Ordering};

const OFF: u64 = 0;
const STARTING: u64 = 1;
const ON: u64 = 2;
const OVER: u64 = 3;
const STATE: u64 = 3;
/// The number of a life is above the state.
const NEXT: u64 = 4;

/// From one start of a vCPU to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life(u64);

impl Life {
    /// Nobody's.
    pub const NONE: Self = Self(u64::MAX);
}

/// Whether one vCPU is on. In so many words a starter says where it is to begin.
#[derive(Debug)]
pub struct Power<const WORDS: usize> {
    word: AtomicU64,
    frame: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Power<WORDS> {
    /// A vCPU that is off.
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(OFF),
            frame: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Turns the vCPU on, to begin as `frame` says; unless it is not off. `before` is done when nobody else can turn
    /// it on any more, and it is not on yet; if that says no, it stays off. Whoever stops the one who starts, and then
    /// does not see this vCPU, can rely on `before` to see that.
    pub fn start(&self, frame: &[u64; WORDS], before: impl FnOnce() -> bool) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        let starting = word.wrapping_add(NEXT) | STARTING;
        if word & STATE != OFF || !self.change(word, starting) {
            return false;
        }
        fence(Ordering::SeqCst);
        if !before() {
            self.change(starting, starting & !STATE | OFF);
            return false;
        }
        // Who reads one of these words and then the state sees at least that it is starting.
        fence(Ordering::Release);
        for (to, from) in self.frame.iter().zip(frame) {
            to.store(*from, Ordering::Relaxed);
        }
        // It fails if all is over.
        self.change(starting, starting & !STATE | ON)
    }

    /// Turns the vCPU off; unless it is not on. It may be in the Guest still.
    pub fn stop(&self) -> bool {
        let life = self.life();
        let stopped = life.is_some_and(|Life(word)| self.change(word, word & !STATE | OFF));
        fence(Ordering::SeqCst);
        stopped
    }

    /// It will never be on again.
    pub fn end(&self) {
        self.word.fetch_or(OVER, Ordering::AcqRel);
    }

    /// Is it off, and nobody about to turn it on?
    pub fn is_off(&self) -> bool {
        self.word.load(Ordering::Acquire) & STATE == OFF
    }

    /// Is it over?
    pub fn is_over(&self) -> bool {
        self.word.load(Ordering::Acquire) & STATE == OVER
    }

    /// The life that the vCPU has, if it is on.
    pub fn life(&self) -> Option<Life> {
        let word = self.word.load(Ordering::Acquire);
        (word & STATE == ON).then_some(Life(word))
    }

    /// Is that still its life? Behind `Presence::enter` it is, if nobody who has ended it has waited for that.
    pub fn is(&self, life: Life) -> bool {
        self.word.load(Ordering::Relaxed) == life.0
    }

    /// Where that life begins. `None` if it is over.
    pub fn frame(&self, life: Life) -> Option<[u64; WORDS]> {
        let mut frame = [0; WORDS];
        for (to, from) in frame.iter_mut().zip(&self.frame) {
            *to = from.load(Ordering::Relaxed);
        }
        // Another start may have overwritten some of them.
        fence(Ordering::Acquire);
        self.is(life).then_some(frame)
    }

    fn change(&self, from: u64, to: u64) -> bool {
        self.word
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

impl<const WORDS: usize> Default for Power<WORDS> {
    fn default() -> Self {
        Self::new()
    }
}
