// SPDX-License-Identifier: GPL-2.0

//! Who takes something away, and who is in the Guest. (Taking away either fence, the comparison in `is_over`, or the
//! order of `leave` or of `is_over`, makes these fail.)

use lg_models::presence::{Presence, Visit};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// A VM of which the tables have one entry.
struct Vm<const VCPUS: usize> {
    presence: [Presence; VCPUS],
    /// What the processor walks: 1 leads to the page.
    entry: AtomicU64,
    page: UnsafeCell<u64>,
}

impl<const VCPUS: usize> Vm<VCPUS> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            presence: core::array::from_fn(|_| Presence::new()),
            entry: AtomicU64::new(1),
            page: UnsafeCell::new(0),
        })
    }

    /// A vCPU is in the Guest for a while, and reads the page if it can.
    fn visit(&self, vcpu: usize) {
        self.presence[vcpu].enter();
        if self.entry.load(Relaxed) == 1 {
            // SAFETY: Loom sees whether nobody writes it.
            self.page.with(|page| assert_eq!(unsafe { *page }, 0));
        }
        self.presence[vcpu].leave();
    }

    fn wait(&self, vcpu: usize) {
        let visit = self.presence[vcpu].fence_and_visit();
        while !self.presence[vcpu].is_over(visit) {
            thread::yield_now();
        }
    }

    /// Need one not wait, or no longer, at the second look?
    fn need_not_wait(&self, vcpu: usize) -> bool {
        let visit = self.presence[vcpu].fence_and_visit();
        self.presence[vcpu].is_over(visit)
    }

    /// The page is somebody else's from now on.
    fn reuse(&self) {
        // SAFETY: as above.
        self.page.with_mut(|page| unsafe { *page = 1 });
    }
}

#[test]
fn a_page_that_was_flushed_is_nobodys() {
    loom::model(|| {
        let vm = Vm::<1>::new();
        let vcpu = thread::spawn({
            let vm = vm.clone();
            move || {
                vm.visit(0);
                vm.visit(0);
            }
        });
        vm.entry.store(0, Relaxed);
        vm.wait(0);
        vm.reuse();
        vcpu.join().unwrap();
    });
}

#[test]
fn who_is_out_is_not_waited_for() {
    loom::model(|| {
        let vm = Vm::<1>::new();
        assert_eq!(vm.presence[0].fence_and_visit(), Visit::NONE);
        vm.presence[0].enter();
        let visit = vm.presence[0].fence_and_visit();
        assert_ne!(visit, Visit::NONE);
        assert!(!vm.presence[0].is_over(visit));
        vm.presence[0].leave();
        vm.presence[0].enter();
        // The next visit is another one.
        assert!(vm.presence[0].is_over(visit));
    });
}

/// Two vCPUs flush at the same time, each of which was in before and is again afterwards. Neither waits for ever, and
/// each is right.
#[test]
fn two_flush_each_other() {
    loom::model(|| {
        let vms = Arc::new([Vm::<2>::new(), Vm::<2>::new()]);
        // vCPU n flushes a page of its own; the other one uses it.
        let run = |me: usize, vms: &[Arc<Vm<2>>; 2]| {
            let (mine, other) = (&vms[me], &vms[1 - me]);
            other.presence[me].enter();
            if other.entry.load(Relaxed) == 1 {
                // SAFETY: as above.
                other.page.with(|page| assert_eq!(unsafe { *page }, 0));
            }
            other.presence[me].leave();
            mine.entry.store(0, Relaxed);
            mine.wait(1 - me);
            mine.reuse();
        };
        let second = thread::spawn({
            let vms = vms.clone();
            move || run(1, &vms)
        });
        run(0, &vms);
        second.join().unwrap();
    });
}

/// The shadow of one entry, under its lock: the Guest's entry as it was read, and the number of flushes.
#[derive(Default)]
struct Shadow {
    entry: u64,
    flushes: u64,
}

/// A fault whose walk is older than a flush fills in nothing. (Taking away the comparison of the flushes makes this
/// fail.)
#[test]
fn no_entry_is_older_than_a_flush() {
    loom::model(|| {
        // `entry` is the Guest's table here.
        let vm = Vm::<1>::new();
        let shadow = Arc::new(Mutex::new(Shadow::default()));
        let vcpu = thread::spawn({
            let (vm, shadow) = (vm.clone(), shadow.clone());
            move || {
                // Resolve; the lock goes, for the page has to be fetched.
                let flushes = shadow.lock().unwrap().flushes;
                let walked = vm.entry.load(Relaxed);
                {
                    let mut shadow = shadow.lock().unwrap();
                    if shadow.flushes == flushes {
                        shadow.entry = walked;
                    }
                }
                vm.presence[0].enter();
                // The processor takes no lock. What it finds is not newer than this.
                let entry = shadow.lock().unwrap().entry;
                if entry == 1 {
                    // SAFETY: as above.
                    vm.page.with(|page| assert_eq!(unsafe { *page }, 0));
                }
                vm.presence[0].leave();
            }
        });
        vm.entry.store(0, Relaxed);
        {
            let mut shadow = shadow.lock().unwrap();
            shadow.flushes += 1;
            shadow.entry = 0;
        }
        vm.wait(0);
        vm.reuse();
        vcpu.join().unwrap();
    });
}

/// Two drop what they have taken from the same tables, while a third vCPU is in: what either of them has waited for
/// is nobody's. (Who would have to wait gives up, or there would be too many orders.)
#[test]
fn two_droppers() {
    loom::model(|| {
        let vm = Vm::<1>::new();
        let other = Arc::new((AtomicU64::new(1), UnsafeCell::new(0u64)));
        let vcpu = thread::spawn({
            let (vm, other) = (vm.clone(), other.clone());
            move || {
                vm.presence[0].enter();
                if vm.entry.load(Relaxed) == 1 {
                    // SAFETY: as above.
                    vm.page.with(|page| assert_eq!(unsafe { *page }, 0));
                }
                if other.0.load(Relaxed) == 1 {
                    // SAFETY: as above.
                    other.1.with(|page| assert_eq!(unsafe { *page }, 0));
                }
                vm.presence[0].leave();
            }
        });
        let dropper = thread::spawn({
            let (vm, other) = (vm.clone(), other.clone());
            move || {
                other.0.store(0, Relaxed);
                if vm.need_not_wait(0) {
                    // SAFETY: as above.
                    other.1.with_mut(|page| unsafe { *page = 1 });
                }
            }
        });
        vm.entry.store(0, Relaxed);
        if vm.need_not_wait(0) {
            vm.reuse();
        }
        vcpu.join().unwrap();
        dropper.join().unwrap();
    });
}
