// SPDX-License-Identifier: GPL-2.0
//! Does the Host stay well whatever Launchers and Guests do to it?

use crate::busy::{online, pin, pin_launcher, start_busy, start_spinner, unpin};
use crate::command::{self, End, Running};
use crate::module::{expect_no_users, load, unload};
use crate::test::{text, Outcome, Row, HERE};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[
    ("bad-ioctls", 30, |timeout| program("ioctls", timeout)),
    ("bad-memory", 60, |timeout| program("memory", timeout)),
    ("threads", 60, |timeout| program("threads", timeout)),
    ("segments", 60, |timeout| program("segments", timeout)),
    ("debug", 120, |timeout| program("debug", timeout)),
    ("record", 120, |timeout| program("record", timeout)),
    ("forks", 60, |timeout| program("forks", timeout)),
    ("slot-reuse", 120, |timeout| program("reuse", timeout)),
    ("close-is-quiet", 120, |timeout| program("quiet", timeout)),
    ("slots-come-back", 120, slots_come_back),
    ("kill-9", 180, kill_9),
    ("stop-and-continue", 60, stop_and_continue),
    ("terminate", 120, terminate),
    ("four-guests", 120, four_guests),
    ("tick-while-a-guest-spins", 60, tick_while_a_guest_spins),
    ("cpu-goes-and-comes", 120, cpu_goes_and_comes),
    ("memory-taken", 480, |timeout| program("taken", timeout)),
    ("memory-error-found", 60, |timeout| {
        program("memory_errors poison", timeout)
    }),
    ("sandbox", 120, sandbox),
    ("predictions-apart", 120, predictions_apart),
    ("unload-refused", 120, unload_refused),
    ("reload", 180, reload),
];

/// Runs one of the programs of selftests/host; `name` may go on with its arguments.
fn program(name: &str, timeout: Duration) -> Outcome {
    let path = format!("{HERE}/selftests/{name}");
    let argv: Vec<&str> = path.split(' ').collect();
    let finished = command::run(&argv, timeout).map_err(text)?;
    finished.expect(End::Exit(0))
}

/// The Guest that says hello, to see that everything still works.
fn hello() -> Outcome {
    let argv = ["lg", "run", &format!("{HERE}/guests/hello"), "-m", "64M"];
    command::run(&argv, Duration::from_secs(60))
        .map_err(text)?
        .expect(End::Exit(0))
}

/// Ends `launcher` with `signal`, and waits until it is gone.
fn end(launcher: Running, signal: i32, within: Duration) -> Result<End, String> {
    launcher.signal(signal);
    Ok(launcher.finish(within).map_err(text)?.end)
}

/// Numbers that look random (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Kills 200 Launchers wherever they happen to be: starting, loading, running, exiting.
fn kill_9(_: Duration) -> Outcome {
    let guests = [
        format!("{HERE}/selftests/guests/registers"),
        format!("{HERE}/selftests/guests/flush"),
        format!("{HERE}/guests/ticks"),
    ];
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..200 {
        let guest = &guests[random.below(guests.len() as u64) as usize];
        let launcher = command::start(&["lg", "run", guest, "-m", "64M"]).map_err(text)?;
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        match end(launcher, libc::SIGKILL, Duration::from_secs(30))? {
            End::Signal(libc::SIGKILL) | End::Exit(0) => {}
            other => return Err(format!("round {round}: {other:?}")),
        }
    }
    expect_no_users()?;
    hello()
}

/// While a Guest runs, every thread of its Launcher is in the sandbox. What that forbids is tested in
/// `launcher/tests/sandbox.rs`.
fn sandbox(timeout: Duration) -> Outcome {
    let launcher = start_spinner(timeout)?;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", launcher.id())).map_err(text)? {
        let path = thread.map_err(text)?.path().join("status");
        // The one that reads standard input ends with that.
        let Ok(status) = fs::read_to_string(path) else {
            continue;
        };
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
            if !status.contains(line) {
                return Err(format!("a thread without {line:?}:\n{status}"));
            }
        }
        threads += 1;
    }
    end(launcher, libc::SIGKILL, Duration::from_secs(30))?;
    if threads < 4 {
        return Err(format!("only {threads} threads: it did not run yet"));
    }
    Ok(())
}

/// While a Guest runs, no thread of its Launcher shares predictions of indirect branches with other
/// processes, where the Host leaves that to programs. Else they have what all have.
fn predictions_apart(timeout: Duration) -> Outcome {
    let mode = |path: &Path| {
        let status = fs::read_to_string(path).map_err(text)?;
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("SpeculationIndirectBranch:\t"));
        line.map(str::to_owned)
            .ok_or_else(|| format!("no such line in:\n{status}"))
    };
    let expected = match mode(Path::new("/proc/self/status"))?.as_str() {
        "conditional enabled" => "conditional disabled".to_owned(),
        other => other.to_owned(),
    };
    let launcher = start_spinner(timeout)?;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", launcher.id())).map_err(text)? {
        // The one that reads standard input ends with that.
        let Ok(mode) = mode(&thread.map_err(text)?.path().join("status")) else {
            continue;
        };
        if mode != expected {
            return Err(format!("a thread with {mode:?}, not {expected:?}"));
        }
        threads += 1;
    }
    end(launcher, libc::SIGKILL, Duration::from_secs(30))?;
    if threads < 4 {
        return Err(format!("only {threads} threads: it did not run yet"));
    }
    Ok(())
}

/// SIGSTOP and SIGCONT in the middle of everything do not disturb the Guest.
fn stop_and_continue(timeout: Duration) -> Outcome {
    let guest = format!("{HERE}/selftests/guests/registers");
    let launcher = command::start(&["lg", "run", &guest, "-m", "64M"]).map_err(text)?;
    let mut random = Random(99);
    let deadline = Instant::now() + timeout;
    while !launcher
        .ends_within(Duration::from_micros(random.below(5000)))
        .map_err(text)?
    {
        if Instant::now() > deadline {
            break;
        }
        launcher.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        launcher.signal(libc::SIGCONT);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    launcher.finish(left).map_err(text)?.expect(End::Exit(0))
}

/// SIGINT and SIGTERM end a Launcher at once although its Guest never gives up the CPU.
fn terminate(timeout: Duration) -> Outcome {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let launcher = start_spinner(timeout)?;
        let end = end(launcher, signal, Duration::from_secs(30))?;
        if ![End::Exit(128 + signal), End::Signal(signal)].contains(&end) {
            return Err(format!(
                "signal {signal} made the launcher end with {end:?}"
            ));
        }
    }
    expect_no_users()
}

/// Four Guests at a time, on however many CPUs, which check their registers and their FPU.
fn four_guests(timeout: Duration) -> Outcome {
    let paths =
        ["registers", "fpu", "fpu", "flush"].map(|name| format!("{HERE}/selftests/guests/{name}"));
    let guests: Vec<Running> = paths
        .iter()
        .map(|path| command::start(&["lg", "run", path, "-m", "64M"]).map_err(text))
        .collect::<Result<_, _>>()?;
    for guest in guests {
        guest.finish(timeout).map_err(text)?.expect(End::Exit(0))?;
    }
    Ok(())
}

/// Interrupts of the local timer that CPU 0 has had.
fn ticks() -> Result<u64, String> {
    let interrupts = fs::read_to_string("/proc/interrupts").map_err(text)?;
    let line = interrupts
        .lines()
        .find(|line| line.trim_start().starts_with("LOC:"));
    let count = line
        .and_then(|line| line.split_whitespace().nth(1))
        .ok_or("no LOC: in /proc/interrupts")?;
    count.parse().map_err(text)
}

/// A Guest that never gives up the CPU shares it with us: the tick ticks, timers fire in time, we get half of the CPU.
fn tick_while_a_guest_spins(timeout: Duration) -> Outcome {
    let launcher = start_spinner(timeout)?;
    pin_launcher(&launcher, 0)?;
    let affinity = pin(0, 0);
    let result = affinity.and_then(|()| watch_the_tick());
    let ended = end(launcher, libc::SIGKILL, Duration::from_secs(30))?;
    unpin();
    result?;
    if ended == End::Signal(libc::SIGKILL) {
        expect_no_users()
    } else {
        Err(format!(
            "the spinning guest's launcher ended with {ended:?}"
        ))
    }
}

/// CPUs go and come while a Guest runs: it moves on, and the module hears of each that comes.
fn cpu_goes_and_comes(timeout: Duration) -> Outcome {
    const STATES: &str = "/sys/devices/system/cpu/hotplug/states";
    let states = fs::read_to_string(STATES).map_err(text)?;
    if !states.lines().any(|line| line.ends_with(": lg:online")) {
        return Err(format!("the module hears of no CPU:\n{states}"));
    }
    let launcher = start_busy("system-calls-for-ever", timeout)?;
    for _ in 0..10 {
        for cpu in 1..online() {
            let switch = format!("/sys/devices/system/cpu/cpu{cpu}/online");
            // So that it has to move.
            pin_launcher(&launcher, cpu)?;
            fs::write(&switch, "0").map_err(text)?;
            fs::write(&switch, "1").map_err(text)?;
        }
    }
    match end(launcher, libc::SIGKILL, Duration::from_secs(30))? {
        End::Signal(libc::SIGKILL) => {}
        other => return Err(format!("the guest ended with {other:?}")),
    }
    expect_no_users()?;
    hello()
}

fn watch_the_tick() -> Outcome {
    let before = ticks()?;
    let start = Instant::now();
    let mut worst = Duration::ZERO;
    for _ in 0..50 {
        let slept = Instant::now();
        std::thread::sleep(Duration::from_millis(10));
        worst = worst.max(slept.elapsed());
    }
    // Work, measured in CPU time against real time.
    let mut work = 0u64;
    let busy = Instant::now();
    let cpu_before = cpu_time();
    while busy.elapsed() < Duration::from_secs(2) {
        work = std::hint::black_box(work + 1);
    }
    let share = (cpu_time() - cpu_before).as_secs_f64() / busy.elapsed().as_secs_f64();
    let ticks = ticks()? - before;
    let rate = ticks as f64 / start.elapsed().as_secs_f64();
    if worst > Duration::from_millis(500) {
        return Err(format!("a sleep of 10 ms took {} ms", worst.as_millis()));
    }
    if rate < 50.0 {
        return Err(format!(
            "the timer of CPU 0 ticked {rate:.0} times a second"
        ));
    }
    if !(0.2..=0.9).contains(&share) {
        return Err(format!(
            "we got {:.0} % of the CPU beside the guest",
            share * 100.0
        ));
    }
    Ok(())
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The module does not go while a Guest runs, nor while only the device is open.
fn unload_refused(timeout: Duration) -> Outcome {
    let launcher = start_spinner(timeout)?;
    let refused = unload();
    end(launcher, libc::SIGKILL, Duration::from_secs(30))?;
    if refused != Err(libc::EWOULDBLOCK) {
        return Err(format!("unloading under a guest: {refused:?}"));
    }
    let device = fs::File::open("/dev/lguest").map_err(text)?;
    if unload() != Err(libc::EWOULDBLOCK) {
        return Err("unloading under an open device".to_owned());
    }
    drop(device);
    expect_no_users()?;
    unload().map_err(|errno| format!("unloading an idle module: errno {errno}"))?;
    load()?;
    hello()
}

/// Pages that are free, or that the kernel would free at once.
fn free_pages() -> Result<i64, String> {
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(text)?;
    // Frees by RCU take a moment.
    std::thread::sleep(Duration::from_millis(300));
    let meminfo = fs::read_to_string("/proc/meminfo").map_err(text)?;
    let kib = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<i64>().ok()
    };
    // Each CPU keeps up to a thousand free pages for itself, which MemFree does not count.
    let zones = fs::read_to_string("/proc/zoneinfo").map_err(text)?;
    let kept = zones.lines().filter_map(|line| {
        line.trim()
            .strip_prefix("count:")?
            .trim()
            .parse::<i64>()
            .ok()
    });
    let free = kib("MemFree:").ok_or("no MemFree")? + kib("KReclaimable:").unwrap_or(0);
    Ok(free / 4 + kept.sum::<i64>())
}

/// A process that ends gives back what it had of the switcher, though not at once: hundreds of them leave no more than a
/// few do.
fn slots_come_back(timeout: Duration) -> Outcome {
    const ROUNDS: i64 = 150;
    let guest = format!("{HERE}/guests/hello");
    let rounds = |count| {
        (0..count).try_for_each(|_| {
            command::run(&[&format!("{HERE}/selftests/miniboot"), &guest], timeout)
                .map_err(text)?
                .expect(End::Exit(0))
        })
    };
    rounds(20)?;
    let before = free_pages()?;
    rounds(ROUNDS)?;
    let lost = before - free_pages()?;
    // The slot of one takes more than 10.
    if lost < 5 * ROUNDS {
        Ok(())
    } else {
        Err(format!("{ROUNDS} processes left {lost} pages behind"))
    }
}

/// Unloads and loads the module 50 times with a Guest in between; no page is lost on the way.
///
/// What the rest of the system frees late or takes for itself can be far more than a leak, but not again and
/// again: a leak is what most batches of rounds show.
fn reload(_: Duration) -> Outcome {
    const BATCHES: usize = 5;
    const ROUNDS: i64 = 10;
    let round = || {
        hello()?;
        expect_no_users()?;
        unload().map_err(|errno| format!("unloading: errno {errno}"))?;
        load()
    };
    // The first rounds fill caches which stay.
    (0..5).try_for_each(|_| round())?;
    let mut lost = Vec::new();
    for _ in 0..BATCHES {
        let before = free_pages()?;
        (0..ROUNDS).try_for_each(|_| round())?;
        lost.push(before - free_pages()?);
    }
    lost.sort_unstable();
    if lost[BATCHES / 2] < ROUNDS {
        Ok(())
    } else {
        Err(format!("batches of {ROUNDS} rounds lost {lost:?} pages"))
    }
}
