// SPDX-License-Identifier: GPL-2.0

//! Raising, and sleeping. (Taking away the fence of `set` or of `call`, or that of who goes to sleep, makes these
//! fail.)

use lg_models::irq::{Call, Pending};
use loom::sync::atomic::{fence, AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use loom::sync::Arc;
use loom::thread;

/// A vCPU, and its thread's state as the Host's kernel has it.
#[derive(Default)]
struct Vcpu {
    pending: Pending,
    sleeps: AtomicBool,
    woken: AtomicBool,
}

impl Vcpu {
    /// As `Runner::kick`.
    fn wake(&self) {
        if self.sleeps.load(Relaxed) {
            self.woken.store(true, Relaxed);
        }
    }
}

/// The vCPU goes to sleep as `Runner::sleep_until` does: its state first, by a locked store, and then it looks. If it
/// saw nothing, it has to be woken.
fn race(raise: fn(&Pending), seen: fn(&Pending) -> bool) {
    loom::model(move || {
        let vcpu = Arc::new(Vcpu::default());
        let raiser = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                raise(&vcpu.pending);
                vcpu.wake();
            }
        });
        vcpu.sleeps.store(true, Relaxed);
        fence(SeqCst);
        let ready = seen(&vcpu.pending);
        raiser.join().unwrap();
        assert!(ready || vcpu.woken.load(Relaxed), "it sleeps for ever");
    });
}

#[test]
fn no_interrupt_is_slept_over() {
    race(
        |pending| {
            pending.set(0x30);
        },
        |pending| !pending.is_empty(),
    );
}

#[test]
fn no_kick_is_slept_over() {
    race(
        |pending| {
            pending.call(Call::Kick);
        },
        |pending| pending.is_called(Call::Kick),
    );
}

/// A vector that is raised while another one is taken is not lost.
#[test]
fn none_is_lost_when_one_is_taken() {
    loom::model(|| {
        let pending = Arc::new(Pending::new());
        pending.set(0x31);
        let raiser = thread::spawn({
            let pending = pending.clone();
            move || pending.set(0x30)
        });
        assert_eq!(pending.take_highest(), Some(0x31));
        let mut taken = pending.take_highest();
        assert!(raiser.join().unwrap());
        taken = taken.or_else(|| pending.take_highest());
        assert_eq!(taken, Some(0x30));
        assert!(pending.is_empty());
    });
}
