// SPDX-License-Identifier: GPL-2.0
//! Crimes of several vCPUs.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_guest::abi::{LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE, LGUEST_SHARED_VA, LHCALL_START_VCPU};
use lguest_guest::event::set_handler;
use lguest_guest::hypercall::{self, hypercall};
use lguest_guest::paging::current_root;
use lguest_guest::{entry, irq, smp};
use lguest_guest_tests::Random;
use lguest_hostile_guests::{commit, Crime};

entry!(main);

const EINVAL: i64 = -22;
const EBUSY: i64 = -16;

const CRIMES: &[Crime] = &[
    ("bad-starts", bad_starts),
    ("bad-sets", bad_sets),
    ("start-at-garbage", start_at_garbage),
    ("die-on-another", die_on_another),
    ("shut-down-while-all-run", shut_down_while_all_run),
    ("spin-on-all", spin_on_all),
    ("flush-storm", flush_storm),
    ("two-stop-all-others", two_stop_all_others),
    ("nmi-storm", nmi_storm),
    ("write-to-others-pages", write_to_others_pages),
];

fn main() -> u8 {
    commit(CRIMES)
}

fn others() -> impl Iterator<Item = u32> {
    1..smp::count()
}

fn spin(_: u64) {
    loop {
        core::hint::spin_loop();
    }
}

fn start(id: u64, rip: u64, root: u64) -> i64 {
    hypercall(u64::from(LHCALL_START_VCPU), [id, rip, 0, 0, root])
}

fn bad_starts() {
    let root = current_root();
    for id in [smp::count().into(), 63, 64, 1 << 32, u64::MAX] {
        assert_eq!(start(id, 0, root), EINVAL, "vCPU {id:#x}");
        assert!(hypercall::vcpu_state(id as u32 | 32) < 0);
    }
    assert_eq!(start(0, 0, root), EBUSY, "oneself");
    for rip in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff] {
        assert_eq!(start(1, rip, root), EINVAL, "RIP {rip:#x}");
    }
    for root in [root + 8, 1 << 40, u64::MAX, u64::MAX << 12] {
        assert_eq!(start(1, 0, root), EINVAL, "root {root:#x}");
    }
    assert_eq!(hypercall::vcpu_state(1), 0, "nothing was started");
    assert_eq!(hypercall::stop_vcpu(), EBUSY, "the last one");
}

fn bad_sets() {
    let absent = 1 << smp::count();
    for set in [absent, 1 | absent, 1 << 32, 1 << 63, u64::MAX] {
        assert_eq!(hypercall::send_ipi(set, 0x40), EINVAL, "SEND_IPI");
        assert_eq!(hypercall::kick(set), EINVAL, "KICK");
        let flush = hypercall::flush_vcpus(set, LGUEST_FLUSH_ALL, 0, 0);
        assert_eq!(flush, EINVAL, "FLUSH_VCPUS");
    }
    for vector in [0, 1, 3, 14, 0x1f, 0x100, u32::MAX] {
        assert_eq!(hypercall::send_ipi(1, vector), EINVAL, "vector {vector}");
    }
    for kind in [4, u32::MAX] {
        assert_eq!(hypercall::flush_vcpus(1, kind, 0, 0), EINVAL, "{kind}");
    }
    for set in [0, 2] {
        // To nobody, and to one that is off.
        assert_eq!(hypercall::send_ipi(set, 0x40), 0);
        assert_eq!(hypercall::kick(set), 0);
        assert_eq!(hypercall::flush_vcpus(set, LGUEST_FLUSH_ONE, 0, 0), 0);
    }
    for entry in [1, 1 << 46, 1 << 47] {
        assert_eq!(hypercall::set_nmi(entry), EINVAL, "SET_NMI {entry:#x}");
    }
}

/// It has no stack to tell that of.
fn start_at_garbage() {
    assert_eq!(start(1, 0x1234_5678_9000, current_root()), 0);
    spin(0);
}

/// While one spins and the others halt.
fn die_on_another() {
    for id in others().skip(1) {
        smp::start(id, |_| irq::halt(), 0).unwrap();
    }
    start_at_garbage();
}

fn shut_down_while_all_run() {
    for id in others() {
        smp::start(id, spin, 0).unwrap();
    }
}

fn spin_on_all() {
    shut_down_while_all_run();
    spin(0);
}

/// All flush all, while they stop by themselves, and are started again.
fn flush_storm() {
    for _ in 0..200 {
        for id in others() {
            // It may be on.
            let _ = smp::start(
                id,
                |rounds| {
                    for _ in 0..rounds {
                        smp::flush_all(smp::all());
                    }
                },
                u64::from(id),
            );
        }
        smp::flush_page(smp::all(), 0x4000_0000);
        smp::flush_all(smp::all());
    }
    smp::wait_for_others();
}

/// One of them wins, or they do so one after the other. The winner goes on.
fn two_stop_all_others() {
    fn stop(_: u64) {
        assert_eq!(hypercall::stop_others(), 0);
        assert_eq!((0..smp::count()).filter(|&id| smp::is_on(id)).count(), 1);
        lguest_guest::exit(0);
    }
    for id in others() {
        // The first of them may be done with us already.
        let _ = smp::start(id, stop, 0);
    }
    stop(0);
}

fn nmi_storm() {
    static DONE: AtomicU64 = AtomicU64::new(0);
    smp::set_nmi_handler(|_| _ = DONE.fetch_add(1, Relaxed));
    for id in others() {
        smp::start(
            id,
            |_| {
                for _ in 0..2000 {
                    smp::send_nmi(smp::all());
                }
            },
            0,
        )
        .unwrap();
    }
    smp::wait_for_others();
    assert_ne!(DONE.load(Relaxed), 0);
}

/// What it leads to is the Guest's own fault: it goes on, or dies.
fn write_to_others_pages() {
    set_handler(0x40, Some(|_| {}));
    smp::set_nmi_handler(|_| {});
    for id in others() {
        smp::start(
            id,
            |_| loop {
                irq::enable();
                let _ = hypercall::send_ipi(smp::all() & !1, 0x40);
                let _ = hypercall::send_ipi(smp::all() & !1, 2);
            },
            0,
        )
        .unwrap();
    }
    let mut random = Random(11);
    for _ in 0..20_000 {
        let page = LGUEST_SHARED_VA as u64 + (1 + random.number() % 3) * 4096;
        let word = page + random.number() % 40 * 8;
        // SAFETY: a page that the Host shares with the Guest; what is in it is for the Host to mistrust.
        unsafe { (word as *mut u64).write_volatile(random.number()) };
    }
}
