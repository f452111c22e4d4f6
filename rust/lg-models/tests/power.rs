// SPDX-License-Identifier: GPL-2.0

//! Turning vCPUs on and off. (Taking away one of the four orders in `start` and `life`, the fence or the comparison in
//! `frame`, a fence of `Presence`, or the look at `is` makes these fail.)

use lg_models::power::Power;
use lg_models::presence::Presence;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// Words in a frame: the first and the last.
const FRAME: usize = 2;

#[derive(Default)]
struct Vcpu {
    power: Power<FRAME>,
    presence: Presence,
    /// What its Guest writes while it is in.
    memory: UnsafeCell<u64>,
}

impl Vcpu {
    /// Goes into the Guest once, if it is on.
    fn visit(&self) {
        let Some(life) = self.power.life() else {
            return;
        };
        self.presence.enter();
        if self.power.is(life) {
            // SAFETY: Loom sees whether it is alone.
            self.memory.with_mut(|memory| unsafe { *memory += 1 });
        }
        self.presence.leave();
    }
}

/// After it was stopped, and waited for, nothing of it runs.
#[test]
fn what_was_stopped_does_not_run() {
    loom::model(|| {
        let vcpu = Arc::new(Vcpu::default());
        assert!(vcpu.power.start(&[0; FRAME], || true));
        let thread = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                vcpu.visit();
                vcpu.visit();
            }
        });
        assert!(vcpu.power.stop());
        let visit = vcpu.presence.fence_and_visit();
        while !vcpu.presence.is_over(visit) {
            thread::yield_now();
        }
        // SAFETY: as above.
        vcpu.memory.with_mut(|memory| unsafe { *memory += 1 });
        thread.join().unwrap();
    });
}

/// Of two that start one vCPU, one does, and it begins where that one says, with all that he has written before.
#[test]
fn one_of_two_starts_it() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let vcpu = Arc::new(Vcpu::default());
        let starter =
            |vcpu: Arc<Vcpu>, value: u64| move || vcpu.power.start(&[value; FRAME], || true);
        let other = thread::spawn(starter(vcpu.clone(), 1));
        let thread = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                let life = vcpu.power.life()?;
                let frame = vcpu.power.frame(life)?;
                assert_eq!(frame[0], frame[FRAME - 1]);
                assert_ne!(frame[0], 0);
                Some(())
            }
        });
        let started = [starter(vcpu, 2)(), other.join().unwrap()];
        assert!(started[0] != started[1], "{started:?}");
        thread.join().unwrap();
    });
}

/// Whoever is started sees what the starter has written before.
#[test]
fn a_start_shows_what_was_before() {
    loom::model(|| {
        let vcpu = Arc::new(Vcpu::default());
        let thread = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                if vcpu.power.life().is_some() {
                    // SAFETY: as above.
                    vcpu.memory.with(|memory| assert_eq!(unsafe { *memory }, 1));
                }
            }
        });
        // SAFETY: as above.
        vcpu.memory.with_mut(|memory| unsafe { *memory = 1 });
        assert!(vcpu.power.start(&[0; FRAME], || true));
        thread.join().unwrap();
    });
}

/// A frame is one start's, or nobody's: it may be turned off and on again while the vCPU reads it.
#[test]
fn a_frame_is_of_one_start() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let power = Arc::new(Power::<FRAME>::new());
        assert!(power.start(&[1; FRAME], || true));
        let thread = thread::spawn({
            let power = power.clone();
            move || {
                let frame = power.frame(power.life()?)?;
                assert_eq!(frame[0], frame[FRAME - 1]);
                Some(())
            }
        });
        assert!(power.stop());
        assert!(power.start(&[2; FRAME], || true));
        thread.join().unwrap();
    });
}

/// What is over stays so, whoever starts it at that moment.
#[test]
fn over_is_over() {
    loom::model(|| {
        let power = Arc::new(Power::<FRAME>::new());
        let thread = thread::spawn({
            let power = power.clone();
            move || power.start(&[0; FRAME], || true)
        });
        power.end();
        thread.join().unwrap();
        assert!(power.is_over());
        assert!(power.life().is_none());
        assert!(!power.start(&[0; FRAME], || true) && !power.stop());
    });
}

/// Who was stopped starts nobody afterwards: whoever stops all others has found them all, or they find it out. (Taking
/// away the fence of `start` or of `stop`, or the look at its own life, makes this fail.)
#[test]
fn who_was_stopped_starts_nobody() {
    loom::model(|| {
        let vcpus: Arc<[Power<FRAME>; 2]> = Arc::new([Power::new(), Power::new()]);
        assert!(vcpus[0].start(&[0; FRAME], || true));
        let life = vcpus[0].life().unwrap();
        let starter = thread::spawn({
            let vcpus = vcpus.clone();
            move || vcpus[1].start(&[0; FRAME], || vcpus[0].is(life))
        });
        assert!(vcpus[0].stop());
        let looked_off = vcpus[1].is_off();
        let started = starter.join().unwrap();
        assert!(!(looked_off && started));
    });
}
