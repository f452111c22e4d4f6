// SPDX-License-Identifier: GPL-2.0

//! A page that is taken away, and a CPU that may still have it under a tag. (Taking away the fence of `enter` or that of
//! `fence_and_visit`, or having the generation move behind that, or be looked up before the vCPU is in, makes these fail;
//! so does a tag that is not forgotten, and taking away either fence of a note, or the second look at it.)

use lg_models::addr::Gva;
use lg_models::presence::Presence;
use lg_models::tags::{Forget, Generations, Slots, Tags};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::sync::Arc;
use loom::thread;

/// Pages of the one context, and so many notes are there, so that they are used again.
const PAGES: [u64; 2] = [0x1000, 0x2000];

/// A VM with one context, whose tables have two entries.
struct Vm {
    presence: Presence,
    generations: Generations<1, 2>,
    /// What the processor walks: 1 leads to the page.
    entries: [AtomicU64; 2],
    pages: [UnsafeCell<u64>; 2],
}

/// The CPU on which its vCPU runs.
#[derive(Default)]
struct Cpu {
    slots: Slots<1>,
    hint: Tags,
    /// The entries that it has under its tag.
    cached: [bool; 2],
}

impl Vm {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            presence: Presence::new(),
            generations: Generations::new(1),
            entries: [AtomicU64::new(1), AtomicU64::new(1)],
            pages: [UnsafeCell::new(0), UnsafeCell::new(0)],
        })
    }

    fn visit(&self, cpu: &mut Cpu) {
        self.presence.enter();
        let now = self.generations.now(0);
        let cached = &mut cpu.cached;
        let forget = |what| match what {
            Forget::All(_) => *cached = [false; 2],
            Forget::Page(_, gva) => {
                let n = PAGES.iter().position(|&page| page == gva);
                cached[n.expect("a page that never was")] = false;
            }
        };
        cpu.slots
            .tags(&self.generations, &now, &mut cpu.hint, forget);
        for (n, page) in self.pages.iter().enumerate() {
            if cpu.cached[n] || self.entries[n].load(Relaxed) == 1 {
                cpu.cached[n] = true;
                // SAFETY: Loom sees whether nobody writes it.
                page.with(|page| assert_eq!(unsafe { *page }, 0));
            }
        }
        self.presence.leave();
    }

    /// Takes a page away, which is somebody else's then. It is said which one, or only that there is one.
    fn take(&self, n: usize, say: bool) {
        self.entries[n].store(0, Relaxed);
        match say {
            true => self.generations.move_page(Some(0), Gva::new(PAGES[n])),
            false => self.generations.move_lower(0),
        }
        let visit = self.presence.fence_and_visit();
        while !self.presence.is_over(visit) {
            thread::yield_now();
        }
        // SAFETY: As above.
        self.pages[n].with_mut(|page| unsafe { *page = 1 });
    }
}

fn a_vcpu_comes_twice(take: impl Fn(&Vm)) {
    let vm = Vm::new();
    let vcpu = thread::spawn({
        let vm = vm.clone();
        move || {
            let mut cpu = Cpu::default();
            vm.visit(&mut cpu);
            vm.visit(&mut cpu);
        }
    });
    take(&vm);
    vcpu.join().unwrap();
}

#[test]
fn a_tag_does_not_know_what_was_taken() {
    loom::model(|| a_vcpu_comes_twice(|vm| vm.take(0, false)));
}

#[test]
fn nor_a_page_that_was() {
    loom::model(|| a_vcpu_comes_twice(|vm| vm.take(1, true)));
}

/// The notes are used again while they are read.
#[test]
fn who_reads_a_note_that_changes_forgets_all() {
    loom::model(|| {
        let generations = Arc::new(Generations::<1, 1>::new(1));
        let mut cpu = Cpu::default();
        let now = generations.now(0);
        cpu.slots.tags(&generations, &now, &mut cpu.hint, |_| {});
        let reader = thread::spawn({
            let generations = generations.clone();
            move || {
                let now = generations.now(0);
                let mut forgotten = Vec::new();
                let forget = |what| forgotten.push(what);
                cpu.slots.tags(&generations, &now, &mut cpu.hint, forget);
                // The second page has gone after the first: who has missed both does not know each of them.
                let user = cpu.hint.pcid(true);
                assert!(!forgotten.contains(&Forget::Page(user, PAGES[1])));
            }
        });
        for page in PAGES {
            generations.move_page(Some(0), Gva::new(page));
        }
        reader.join().unwrap();
    });
}
