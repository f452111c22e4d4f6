// SPDX-License-Identifier: GPL-2.0
//! Several vCPUs start, stop, and start again; each has its own interrupts; IPIs, kicks and NMIs reach them, whether they
//! run, halt or wait, and none is slept over.

#![no_std]
#![no_main]

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use lguest_guest::event::{set_handler, Frame};
use lguest_guest::{abi, entry, hypercall, irq, println, shared_read, smp};
use lguest_guest_tests::several::wait_until;

entry!(main);

const MAX: usize = smp::MAX as usize;
const PING: u32 = 0x40;
/// Of ping-pong.
const ROUNDS: u64 = 10_000;
const MS: u64 = 1_000_000;

/// A number for each vCPU.
struct Each([AtomicU64; MAX]);

impl Each {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MAX])
    }

    fn mine(&self) -> &AtomicU64 {
        &self.0[smp::vcpu() as usize]
    }

    fn of(&self, id: u32) -> &AtomicU64 {
        &self.0[id as usize]
    }
}

static TURNS: Each = Each::new();
static PINGS: Each = Each::new();
static NMIS: Each = Each::new();
static WAITS: Each = Each::new();
static READY: AtomicU32 = AtomicU32::new(0);

fn wait_for_others() {
    wait_until(|| others().all(|id| !smp::is_on(id)));
}

fn others() -> impl Iterator<Item = u32> {
    1..smp::count()
}

fn main() -> u8 {
    assert_eq!(smp::vcpu(), 0);
    let count = smp::count();
    assert!(count >= 2, "this needs lg run --smp");
    start_and_stop(count);
    println!("{count} vCPUs start and stop");
    interrupts_are_each_ones_own();
    ping_pong(halts, |to| smp::send_ipi(1 << to, PING));
    println!("{ROUNDS} IPIs to a vCPU that halts");
    ping_pong(waits, |to| assert_eq!(hypercall::kick(1 << to), 0, "KICK"));
    println!("{ROUNDS} kicks of a vCPU that waits");
    waits_over_interrupts();
    println!("{ROUNDS} kicks of one that waits with an interrupt pending");
    everybody_calls_everybody();
    println!("all call all");
    nmis();
    println!("NMIs");
    stop_others();
    println!("{count} vCPUs are stopped at whatever they do");
    0
}

fn start_and_stop(count: u32) {
    for life in 1..=20 {
        for id in others() {
            let started = smp::start(
                id,
                |number| {
                    assert_eq!(u64::from(smp::vcpu()), number);
                    assert_eq!(u64::from(shared_read!(vcpu)), number);
                    assert!(!irq::enabled(), "a vCPU begins with interrupts off");
                    TURNS.mine().fetch_add(1, SeqCst);
                },
                u64::from(id),
            );
            assert_eq!(started, Ok(()), "vCPU {id}, life {life}");
        }
        wait_for_others();
        assert!(others().all(|id| TURNS.of(id).load(SeqCst) == life));
    }
    assert!(smp::start(0, |_| {}, 0).is_err(), "the caller is on");
    assert!(
        smp::start(count, |_| {}, 0).is_err(),
        "there is no such vCPU"
    );
    assert!(hypercall::stop_vcpu() < 0, "the last one stays on");
}

/// One has them on and gets its ping; the others, with theirs off, get nothing, and then their own.
fn interrupts_are_each_ones_own() {
    handle_pings();
    READY.store(0, SeqCst);
    for id in others() {
        let spin = |_| {
            smp::send_ipi(1 << smp::vcpu(), PING);
            assert_ne!(shared_read!(irq_pending), 0);
            READY.fetch_add(1, SeqCst);
            while READY.load(SeqCst) < smp::count() {
                spin_loop();
            }
            assert!(!irq::enabled());
            assert_eq!(PINGS.mine().load(SeqCst), 0);
            irq::enable();
            assert_eq!(PINGS.mine().load(SeqCst), 1);
            irq::disable();
        };
        smp::start(id, spin, 0).unwrap();
    }
    wait_until(|| READY.load(SeqCst) == smp::count() - 1);
    irq::enable();
    smp::send_ipi(1, PING);
    assert_eq!(PINGS.mine().load(SeqCst), 1);
    READY.fetch_add(1, SeqCst);
    irq::disable();
    wait_for_others();
}

fn handle_pings() {
    let count = |_: &mut Frame| _ = PINGS.mine().fetch_add(1, SeqCst);
    set_handler(u64::from(PING), Some(count));
}

/// Sleeps until this vCPU has had more than so many pings, as one that halts does.
fn halts(seen: u64) {
    irq::disable();
    while PINGS.mine().load(SeqCst) == seen {
        irq::halt();
        irq::disable();
    }
}

/// The same as one that waits for a lock does: nobody interrupts it.
fn waits(seen: u64) {
    while TURNS.mine().load(SeqCst) == seen {
        hypercall::wait(false);
        WAITS.mine().fetch_add(1, SeqCst);
    }
}

/// An interrupt that cannot be taken ends no wait, unless that was asked for: each ends by a kick of its own.
fn waits_over_interrupts() {
    handle_pings();
    for id in 0..2 {
        WAITS.of(id).store(0, SeqCst);
    }
    // vCPU 1 has its own ones off, and begins with none: it gets this one when it is at it.
    smp::send_ipi(1, PING);
    ping_pong(
        |seen| {
            if seen == 0 {
                smp::send_ipi(1 << smp::vcpu(), PING);
            }
            assert_ne!(shared_read!(irq_pending), 0);
            waits(seen);
        },
        |to| assert_eq!(hypercall::kick(1 << to), 0, "KICK"),
    );
    for id in 0..2 {
        let waits = WAITS.of(id).load(SeqCst);
        assert!(waits <= ROUNDS, "vCPU {id} has waited {waits} times");
    }
    assert_ne!(shared_read!(irq_pending), 0);
    hypercall::wait(true);
    irq::enable();
    irq::disable();
    assert_eq!(PINGS.of(0).load(SeqCst), 1);
}

/// vCPUs 0 and 1 wake each other in turn.
fn ping_pong(sleep: fn(u64), wake: fn(u32)) {
    static SLEEP: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    SLEEP[0].store(sleep as usize as u64, SeqCst);
    SLEEP[1].store(wake as usize as u64, SeqCst);
    for id in 0..2 {
        PINGS.of(id).store(0, SeqCst);
        TURNS.of(id).store(0, SeqCst);
    }
    let turn = |me: u64| {
        let of = |n: usize| SLEEP[n].load(SeqCst) as usize;
        // SAFETY: it is what was put there.
        let sleep = unsafe { core::mem::transmute::<usize, fn(u64)>(of(0)) };
        // SAFETY: as above.
        let wake = unsafe { core::mem::transmute::<usize, fn(u32)>(of(1)) };
        for seen in 0..ROUNDS {
            if me == 1 {
                sleep(seen);
            }
            TURNS.of(1 - me as u32).fetch_add(1, SeqCst);
            wake(1 - me as u32);
            if me == 0 {
                sleep(seen);
            }
        }
    };
    smp::start(1, turn, 1).unwrap();
    turn(0);
    wait_for_others();
    irq::disable();
}

/// Each vCPU calls all others, which halt in between, until each was called by each at least once.
fn everybody_calls_everybody() {
    for id in 0..smp::count() {
        PINGS.of(id).store(0, SeqCst);
    }
    READY.store(0, SeqCst);
    let call = |_| {
        irq::enable();
        READY.fetch_add(1, SeqCst);
        wait_until(|| READY.load(SeqCst) >= smp::count());
        for _ in 0..20 {
            let before = PINGS.mine().load(SeqCst);
            smp::send_ipi(smp::all(), PING);
            // At least that of its own comes.
            wait_until(|| PINGS.mine().load(SeqCst) > before);
        }
        irq::disable();
    };
    for id in others() {
        smp::start(id, call, 0).unwrap();
    }
    call(0);
    wait_for_others();
}

/// An NMI comes although interrupts are off, and what it interrupts goes on. Of two that come at once one may be lost.
fn nmis() {
    smp::set_nmi_handler(|rip| {
        assert_ne!(rip, 0);
        NMIS.mine().fetch_add(1, SeqCst);
        // Who looks at that, and then waits, has not missed it.
        hypercall::kick(1 << smp::vcpu());
    });
    READY.store(0, SeqCst);
    // Where many vCPUs spin on few CPUs, each of these takes a turn of all.
    let wanted = u64::from((200 / smp::count()).max(5));
    for id in others() {
        let spin = |wanted| {
            let mut sum = 0u64;
            READY.fetch_add(1, SeqCst);
            for n in 0u64.. {
                sum = sum.wrapping_add(n);
                if NMIS.mine().load(SeqCst) >= wanted {
                    assert_eq!(sum, n.wrapping_mul(n.wrapping_add(1)) / 2);
                    break;
                }
                if smp::vcpu() % 2 == 0 {
                    // An NMI ends that.
                    hypercall::wait(false);
                }
            }
            assert!(!irq::enabled());
        };
        smp::start(id, spin, wanted).unwrap();
    }
    wait_until(|| READY.load(SeqCst) == smp::count() - 1);
    for n in 0..wanted {
        smp::send_nmi(smp::all() & !1);
        let seen = |id| NMIS.of(id).load(SeqCst) > n;
        wait_until(|| others().all(seen));
    }
    wait_for_others();
    // One to oneself.
    smp::send_nmi(1);
    assert_eq!(NMIS.mine().load(SeqCst), 1);
}

/// All others stop, be they spinning, halting, waiting or calling, and can be started again.
fn stop_others() {
    set_handler(u64::from(abi::LGUEST_VECTOR_TIMER), Some(|_| {}));
    for round in 0..u64::from((80 / smp::count()).max(3)) {
        READY.store(0, SeqCst);
        for id in others() {
            let busy = |how| {
                READY.fetch_add(1, SeqCst);
                loop {
                    TURNS.mine().fetch_add(1, SeqCst);
                    match how % 4 {
                        0 => spin_loop(),
                        1 => _ = hypercall::halt(),
                        2 => _ = hypercall::wait(how & 4 != 0),
                        _ => smp::flush_all(smp::all()),
                    }
                }
            };
            smp::start(id, busy, u64::from(id) + round).unwrap();
        }
        wait_until(|| READY.load(SeqCst) == smp::count() - 1);
        hypercall::set_timer(MS);
        assert_eq!(hypercall::stop_others(), 0, "STOP_OTHERS");
        let turns = || others().map(|id| TURNS.of(id).load(SeqCst));
        let before: u64 = turns().sum();
        assert!(others().all(|id| !smp::is_on(id)));
        irq::disable();
        irq::halt();
        irq::disable();
        assert_eq!(before, turns().sum(), "a vCPU runs that was stopped");
    }
}
