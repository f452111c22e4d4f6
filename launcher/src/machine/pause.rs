// SPDX-License-Identifier: GPL-2.0
//! A vCPU stands still for a moment: the module says nothing of one that runs.
//!
//! The vCPU's thread asks before each `LGUEST_RUN` and tells after it. Who wants to look takes it out of there with
//! a signal, and keeps it from going in again until it has looked. To the Guest that is as if the Host had had
//! something else to do.

#![forbid(unsafe_code)]

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lguest_abi::lguest_regs;
use nix::sys::pthread::{pthread_kill, pthread_self, Pthread};
use nix::sys::signal::Signal;

/// Takes a vCPU's thread out of the Guest.
pub const STOP_SIGNAL: Signal = Signal::SIGUSR1;
/// A signal right before the thread goes into the Guest is lost, so that it comes again after so long.
const AGAIN: Duration = Duration::from_millis(2);
/// After so long, a thread that is in the Guest will not come out.
const PATIENCE: Duration = Duration::from_secs(5);

/// The door between a vCPU's thread and its Guest.
#[derive(Default)]
pub struct Pause {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The thread that is in the Guest, or about to be.
    inside: Option<Pthread>,
    /// How many want to look.
    looking: usize,
    /// The registers when it came out last.
    regs: lguest_regs,
    /// It came out with the end of the Guest.
    ended: bool,
}

impl Pause {
    /// Runs the Guest by `run`, in this thread, once nobody looks any more. `run` also returns the registers.
    pub fn enter<T>(&self, run: impl FnOnce() -> (T, lguest_regs)) -> T {
        let mut state = self.state();
        while state.looking > 0 {
            state = wait(self.changed.wait(state));
        }
        state.inside = Some(pthread_self());
        drop(state);
        let (result, regs) = run();
        let mut state = self.state();
        (state.inside, state.regs) = (None, regs);
        if state.looking > 0 {
            self.changed.notify_all();
        }
        result
    }

    /// Calls `look` while the vCPU stands still, with the registers at its last exit. `None` if it does not come out.
    pub fn look<T>(&self, look: impl FnOnce(&lguest_regs) -> T) -> Option<T> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state();
        state.looking += 1;
        while let Some(vcpu) = state.inside {
            if Instant::now() > until {
                break;
            }
            // It has not ended: it would have come out before, and this has the lock.
            let _ = pthread_kill(vcpu, STOP_SIGNAL);
            state = wait(self.changed.wait_timeout(state, AGAIN)).0;
        }
        let seen = state.inside.is_none().then(|| look(&state.regs));
        state.looking -= 1;
        self.changed.notify_all();
        seen
    }

    /// The Guest has ended on this vCPU.
    pub fn end(&self) {
        self.state().ended = true;
    }

    /// Has the Guest ended on this vCPU?
    pub fn has_ended(&self) -> bool {
        self.state().ended
    }

    fn state(&self) -> MutexGuard<'_, State> {
        wait(self.state.lock())
    }
}

/// A thread that panics ends lg.
fn wait<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use nix::poll::poll;

    use super::*;
    use crate::signal;

    /// A Guest that is in until a signal comes, as one that halts; it counts how often it was let in.
    #[test]
    fn who_looks_finds_it_outside_and_it_goes_on() {
        signal::only_interrupt(STOP_SIGNAL).unwrap();
        let mut seen = Vec::new();
        let (pause, over, runs) = (Pause::default(), AtomicBool::new(false), AtomicU64::new(0));
        let inside = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    pause.enter(|| {
                        inside.store(true, Ordering::SeqCst);
                        let rip = runs.fetch_add(1, Ordering::SeqCst) + 1;
                        let _ = poll(&mut [], 1000u16);
                        inside.store(false, Ordering::SeqCst);
                        let regs = lguest_regs {
                            rip,
                            ..Default::default()
                        };
                        ((), regs)
                    });
                }
            });
            for _ in 0..20 {
                while !inside.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                let rip = pause.look(|regs| {
                    let outside = !inside.load(Ordering::SeqCst);
                    (outside && regs.rip == runs.load(Ordering::SeqCst)).then_some(regs.rip)
                });
                seen.push(rip.flatten());
            }
            over.store(true, Ordering::SeqCst);
            pause.look(|_| {});
        });
        assert!(seen.iter().all(Option::is_some), "{seen:?}");
        assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
        // Nobody is in any more.
        assert_eq!(pause.look(|regs| regs.rip), Some(runs.into_inner()));
    }
}
