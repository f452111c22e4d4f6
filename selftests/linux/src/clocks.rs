// SPDX-License-Identifier: GPL-2.0
//! Clocks and timers: they go forward, at the same speed, and wake whom they should.

use crate::sys::check;
use crate::Test;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) const TESTS: &[Test] = &[
    ("clocks go forward", forward),
    ("the vDSO and the system call agree", vdso),
    ("clocks have one speed", speed),
    ("sleeps are long enough", sleeps),
    ("the wall clock is set", wall),
    ("timerfd", timerfd),
    ("CPU time", cpu_time),
];

const MS: Duration = Duration::from_millis(1);

fn clock(id: i32) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure.
    check("clock_gettime", unsafe {
        libc::clock_gettime(id, &mut time)
    });
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The same, never by the vDSO.
fn clock_by_system_call(id: i32) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure.
    check("clock_gettime", unsafe {
        libc::syscall(libc::SYS_clock_gettime, id, &mut time)
    });
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

const CLOCKS: [i32; 5] = [
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_MONOTONIC_RAW,
    libc::CLOCK_BOOTTIME,
    libc::CLOCK_MONOTONIC_COARSE,
];

fn forward() {
    for id in CLOCKS {
        let mut last = Duration::ZERO;
        for _ in 0..50_000 {
            let now = clock(id);
            assert!(now >= last, "clock {id} went back from {last:?} to {now:?}");
            last = now;
        }
    }
}

fn vdso() {
    for id in CLOCKS {
        for _ in 0..2000 {
            let (before, now, after) = (
                clock_by_system_call(id),
                clock(id),
                clock_by_system_call(id),
            );
            assert!(
                (before..=after).contains(&now),
                "clock {id}: {before:?}, {now:?}, {after:?}"
            );
        }
    }
    let mut cpu = 99u32;
    // SAFETY: writes the number.
    unsafe { libc::syscall(libc::SYS_getcpu, &mut cpu, std::ptr::null_mut::<u32>()) };
    // SAFETY: the C library asks the vDSO, which reads a segment limit or RDPID.
    let from_vdso = unsafe { libc::sched_getcpu() };
    assert_eq!(
        check("sched_getcpu", from_vdso),
        i64::from(cpu),
        "getcpu by the vDSO"
    );
}

fn speed() {
    // Each between two looks at CLOCK_MONOTONIC: on a busy Host, time can go by from one to the next.
    let look = || {
        let monotonic = || clock(libc::CLOCK_MONOTONIC).as_secs_f64();
        CLOCKS.map(|id| (monotonic(), clock(id).as_secs_f64(), monotonic()))
    };
    let starts = look();
    std::thread::sleep(500 * MS);
    for ((id, start), end) in CLOCKS.iter().zip(starts).zip(look()) {
        let length = end.1 - start.1;
        let (least, most) = (end.0 - start.2, end.2 - start.0);
        assert!(
            (0.9 * least..1.1 * most).contains(&length),
            "clock {id} ran {length} s in {least} s to {most} s of CLOCK_MONOTONIC"
        );
    }
}

fn sleeps() {
    for time in [
        Duration::from_micros(1),
        Duration::from_micros(100),
        MS,
        5 * MS,
        50 * MS,
    ] {
        for _ in 0..5 {
            let start = Instant::now();
            std::thread::sleep(time);
            let took = start.elapsed();
            assert!(
                took >= time && took < time + 2000 * MS,
                "a sleep of {time:?} took {took:?}"
            );
        }
    }
}

fn wall() {
    // This file was written in 2026.
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(
        (1_767_225_600..4_102_444_800).contains(&seconds),
        "the time is {seconds} s after 1970"
    );
}

fn timerfd() {
    // SAFETY: a descriptor of our own, two structures, a buffer of eight bytes.
    unsafe {
        let fd = check(
            "timerfd_create",
            libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
        ) as i32;
        let period = libc::timespec {
            tv_sec: 0,
            tv_nsec: 2_000_000,
        };
        let timer = libc::itimerspec {
            it_interval: period,
            it_value: period,
        };
        let start = Instant::now();
        check(
            "timerfd_settime",
            libc::timerfd_settime(fd, 0, &timer, std::ptr::null_mut()),
        );
        let mut ticks = 0;
        while ticks < 50 {
            let mut expirations = 0u64;
            assert_eq!(libc::read(fd, (&raw mut expirations).cast(), 8), 8);
            ticks += expirations;
        }
        let took = start.elapsed();
        assert!(
            took >= MS * 2 * (ticks as u32),
            "{ticks} ticks of 2 ms in {took:?}"
        );
        libc::close(fd);
    }
}

fn cpu_time() {
    let (cpu, start) = (clock(libc::CLOCK_PROCESS_CPUTIME_ID), Instant::now());
    std::thread::sleep(100 * MS);
    let idle = clock(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu;
    let took = start.elapsed();
    assert!(
        idle * 10 < took * 6,
        "a sleep of {took:?} took {idle:?} of CPU"
    );
    let start = Instant::now();
    while start.elapsed() < 300 * MS {
        std::hint::spin_loop();
    }
    let busy = clock(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu - idle;
    assert!(busy > 50 * MS, "300 ms of work took {busy:?} of CPU");
}
