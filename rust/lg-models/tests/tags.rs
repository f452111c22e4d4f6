// SPDX-License-Identifier: GPL-2.0

//! A page that is taken away, and a CPU that may still have it under a tag. (Taking away the fence of `enter` or that of
//! `fence_and_visit`, or having the generation move behind that, or be looked up before the vCPU is in, makes these fail;
//! so does a tag that is not forgotten.)

use lg_models::presence::Presence;
use lg_models::tags::{Generations, Slots, Tags};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::sync::Arc;
use loom::thread;

/// A VM with one context, whose tables have one entry.
struct Vm {
    presence: Presence,
    generations: Generations<1>,
    /// What the processor walks: 1 leads to the page.
    entry: AtomicU64,
    page: UnsafeCell<u64>,
}

/// The CPU on which its vCPU runs.
#[derive(Default)]
struct Cpu {
    slots: Slots<1>,
    hint: Tags,
    /// It has the entry under its tag.
    cached: bool,
}

impl Vm {
    fn visit(&self, cpu: &mut Cpu) {
        self.presence.enter();
        let now = self.generations.now(0);
        let cached = &mut cpu.cached;
        cpu.slots.tags(&now, &mut cpu.hint, |_| *cached = false);
        if cpu.cached || self.entry.load(Relaxed) == 1 {
            cpu.cached = true;
            // SAFETY: Loom sees whether nobody writes it.
            self.page.with(|page| assert_eq!(unsafe { *page }, 0));
        }
        self.presence.leave();
    }

    /// Takes the page away, which is somebody else's then.
    fn take(&self) {
        self.entry.store(0, Relaxed);
        self.generations.move_lower(0);
        let visit = self.presence.fence_and_visit();
        while !self.presence.is_over(visit) {
            thread::yield_now();
        }
        // SAFETY: As above.
        self.page.with_mut(|page| unsafe { *page = 1 });
    }
}

#[test]
fn a_tag_does_not_know_what_was_taken() {
    loom::model(|| {
        let vm = Arc::new(Vm {
            presence: Presence::new(),
            generations: Generations::new(1),
            entry: AtomicU64::new(1),
            page: UnsafeCell::new(0),
        });
        let vcpu = thread::spawn({
            let vm = vm.clone();
            move || {
                let mut cpu = Cpu::default();
                vm.visit(&mut cpu);
                vm.visit(&mut cpu);
            }
        });
        vm.take();
        vcpu.join().unwrap();
    });
}
