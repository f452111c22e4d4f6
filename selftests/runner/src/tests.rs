// SPDX-License-Identifier: GPL-2.0
//! The table of all tests.
//!
//! A new Guest or crime is one more line here; what it tests is written in its own file. A new script is
//! one more file in the directory of its group.

use crate::command::{self, End};
use crate::test::{text, Outcome, Row, Test, HERE};
use crate::{disk, fs, gdb, host, nmi, record, script, terminal, tmux, tools, vsock};
use std::time::Duration;

/// Bare Guests which test one mechanism each: they exit with 0, or panic and say what is wrong.
const BARE: [&str; 23] = [
    "registers",
    "segments",
    "fpu",
    "cr2",
    "exceptions",
    "protection",
    "accessed_dirty",
    "flush",
    "working_set",
    "foresight",
    "contexts",
    "compat",
    "timer",
    "halt",
    "interrupts",
    "syscalls",
    "memory",
    "emulated",
    "clock",
    "mmio",
    "debugged",
    "monitor",
    "exit_cost",
];

/// Bare Guests of several vCPUs, and how many those are.
const SEVERAL: [(&str, &[u32]); 2] = [("vcpus", &[2, 4, 8, 32]), ("shootdown", &[2, 4, 8])];

/// The end that a crime must have.
enum Fate {
    /// The Guest goes on, and exits with 0 after it has seen the exception or the error it deserves.
    Survives,
    /// The Host kills it; the reason contains this.
    Dies(&'static str),
    /// Its kernel panics; the message contains this.
    Panics(&'static str),
    /// It exits with this status.
    Exits(i32),
    /// It never ends, and is none the worse for the Host.
    Spins,
    /// It goes on, or dies, as its vCPUs meet.
    Either,
}
use Fate::{Dies, Either, Exits, Panics, Spins, Survives};

const DOUBLE_FAULT: Fate = Dies("double fault");
const BAD_ROOT: Fate = Dies("bad root");
const OUTSIDE: Fate = Dies("page table outside RAM");
const SLOT: Fate = Dies("touched the switcher's slot");
const NO_STACK: Fate = Panics("the shim of Xen's ABI: an event finds no stack of the kernel's");
const LAST_OFF: Fate = Panics("the shim of Xen's ABI: the kernel has stopped its last CPU");

/// Hostile Guests: program, crime, fate.
const HOSTILE: &[(&str, &str, Fate)] = &[
    ("other_vcpus", "bad-starts", Survives),
    ("other_vcpus", "bad-sets", Survives),
    ("other_vcpus", "start-at-garbage", DOUBLE_FAULT),
    ("other_vcpus", "die-on-another", DOUBLE_FAULT),
    ("other_vcpus", "shut-down-while-all-run", Survives),
    ("other_vcpus", "spin-on-all", Spins),
    ("other_vcpus", "flush-storm", Survives),
    ("other_vcpus", "two-stop-all-others", Survives),
    ("other_vcpus", "nmi-storm", Survives),
    ("other_vcpus", "write-to-others-pages", Either),
    ("roots", "root-outside", BAD_ROOT),
    ("roots", "root-past-the-end", BAD_ROOT),
    ("roots", "root-at-a-device", BAD_ROOT),
    ("roots", "root-at-the-end-of-addresses", BAD_ROOT),
    ("roots", "root-three-calls-deep", BAD_ROOT),
    ("roots", "root-of-zeros", DOUBLE_FAULT),
    ("roots", "root-of-garbage", DOUBLE_FAULT),
    ("roots", "root-becomes-zeros", DOUBLE_FAULT),
    ("roots", "table-outside", OUTSIDE),
    ("roots", "table-at-a-device", OUTSIDE),
    ("roots", "table-is-itself", Survives),
    ("roots", "reserved-bits", Survives),
    ("roots", "hole", SLOT),
    ("roots", "drop-the-current-root", Survives),
    ("roots", "many-roots", Survives),
    ("roots", "many-flushes", Survives),
    ("roots", "many-tables", Survives),
    ("roots", "garbage-in-use", Survives),
    ("events", "event-not-taken", DOUBLE_FAULT),
    ("events", "event-not-taken-by-a-handler", DOUBLE_FAULT),
    ("events", "no-stack", DOUBLE_FAULT),
    ("events", "non-canonical-stack", DOUBLE_FAULT),
    ("events", "stack-overflow", DOUBLE_FAULT),
    ("events", "entry-not-mapped", DOUBLE_FAULT),
    ("events", "bad-entries", Survives),
    ("events", "spin-with-interrupts-off", Spins),
    ("events", "system-calls-for-ever", Spins),
    ("events", "single-steps-for-ever", Spins),
    ("events", "hypercalls-for-ever", Spins),
    ("events", "spin-in-user-mode", Spins),
    ("events", "fault-for-ever", Spins),
    ("events", "fault-for-ever-in-the-kernel", Spins),
    ("events", "halt-for-ever", Spins),
    (
        "events",
        "halt-with-interrupts-off",
        Dies("halted with interrupts off"),
    ),
    ("events", "interrupt-storm", Spins),
    ("events", "eret-flags", Survives),
    ("events", "eret-cs", Survives),
    ("events", "eret-rip", Survives),
    ("events", "eret-rsp", Survives),
    ("events", "eret-gs-base", Survives),
    ("events", "eret-garbage", Survives),
    ("hypercalls", "unknown-numbers", Survives),
    ("hypercalls", "random-arguments", Survives),
    ("hypercalls", "console-outside", Survives),
    ("hypercalls", "tls", Survives),
    ("hypercalls", "cpu-node", Survives),
    ("hypercalls", "flush-kinds", Survives),
    ("hypercalls", "unknown-shutdown", Exits(255)),
    ("hypercalls", "exit-status-too-large", Exits(255)),
    ("hypercalls", "panic-without-message", Panics("")),
    ("hypercalls", "panic-message-outside", Panics("")),
    (
        "hypercalls",
        "panic-message-without-end",
        Panics("AAAAAAAAAAAAAAAA"),
    ),
    ("hypercalls", "from-the-end-of-the-lower-half", Survives),
    ("monitors", "bad-arguments", Survives),
    ("monitors", "twice", Survives),
    ("monitors", "entry-not-mapped", DOUBLE_FAULT),
    ("monitors", "entry-appears", Survives),
    ("monitors", "root-becomes-zeros", DOUBLE_FAULT),
    ("monitors", "root-of-garbage", DOUBLE_FAULT),
    ("monitors", "reserved-bits", DOUBLE_FAULT),
    ("monitors", "table-outside", OUTSIDE),
    ("monitors", "table-at-the-end-of-addresses", OUTSIDE),
    ("monitors", "code-at-a-device", Dies("access to GPA")),
    ("monitors", "table-is-itself", Survives),
    ("monitors", "calls-itself-for-ever", Spins),
    ("monitors", "the-switcher's-slot", SLOT),
    ("monitors", "map-over-the-shared-page", Survives),
    ("shared_page", "garbage-everywhere", Survives),
    ("shared_page", "garbage-from-a-handler", Survives),
    ("shared_page", "garbage-interrupt-flag", Survives),
    ("shared_page", "execute-the-shared-page", Survives),
    ("shared_page", "map-over-the-shared-page", Survives),
    ("shared_page", "beyond-the-shared-page", Survives),
    ("shared_page", "foreseen-garbage", Survives),
    ("shared_page", "foreseen-without-stack", DOUBLE_FAULT),
    (
        "shared_page",
        "foreseen-with-non-canonical-stack",
        DOUBLE_FAULT,
    ),
    ("shared_page", "foreseen-with-stack-in-the-slot", SLOT),
    ("shared_page", "foreseen-without-entry", DOUBLE_FAULT),
    ("shared_page", "foreseen-behind-another-event", DOUBLE_FAULT),
    ("switcher", "read-the-slot", SLOT),
    ("switcher", "read-the-slot's-end", SLOT),
    ("switcher", "write-the-slot", SLOT),
    ("switcher", "execute-the-slot", SLOT),
    ("switcher", "stack-in-the-slot", SLOT),
    ("switcher", "from-user-mode", Survives),
    ("switcher", "entries-in-the-slot", SLOT),
    ("switcher", "kernel-stack-in-the-slot", SLOT),
    ("switcher", "every-top-level-slot", Survives),
    ("switcher", "where-the-host-is", Survives),
    ("switcher", "breakpoints", Survives),
    ("instructions", "privileged", Survives),
    ("instructions", "not-even-emulated", Survives),
    ("instructions", "store-tables", Survives),
    ("instructions", "int-n", Survives),
    ("instructions", "popf", Survives),
    ("instructions", "trap-flag", Survives),
    ("instructions", "mov-ss", Survives),
    ("instructions", "selectors", Survives),
    ("instructions", "msrs", Survives),
    ("instructions", "32-bit", Survives),
    ("instructions", "protection-keys", Survives),
    ("instructions", "random-bytes", Survives),
];

/// The same for kernels of Xen's ABI. What the shim cannot go on from is a panic that says so.
const HOSTILE_XEN: &[(&str, &str, Fate)] = &[
    ("xen-hypercalls", "unknown-numbers", Survives),
    ("xen-hypercalls", "bad-pointers", Survives),
    ("xen-hypercalls", "pointers-over-the-end", Survives),
    ("xen-hypercalls", "random-arguments", Survives),
    ("xen-hypercalls", "multicall-in-multicall", Survives),
    ("xen-hypercalls", "multicall-without-end", Survives),
    ("xen-hypercalls", "segment-bases", Survives),
    ("xen-hypercalls", "descriptors", Survives),
    ("xen-hypercalls", "grants", Survives),
    ("xen-hypercalls", "vcpu-info", Survives),
    ("xen-hypercalls", "ports", Survives),
    ("xen-hypercalls", "shutdown-reasons", Survives),
    ("xen-memory", "mmu-update", Survives),
    ("xen-memory", "update-va-mapping", Survives),
    ("xen-memory", "mmuext", Survives),
    ("xen-memory", "root-outside", Survives),
    ("xen-memory", "root-of-zeros", NO_STACK),
    ("xen-memory", "table-outside", OUTSIDE),
    ("xen-memory", "pointer-to-nothing", Dies("access to GPA")),
    ("xen-memory", "hole", Survives),
    ("xen-memory", "hole-from-a-program", Survives),
    ("xen-memory", "read-the-slot", SLOT),
    ("xen-memory", "own-entries-for-the-hole", Survives),
    ("xen-memory", "overwrite-the-shim", DOUBLE_FAULT),
    (
        "xen-events",
        "no-traps",
        Panics("the shim of Xen's ABI: exception 3, error 0x0, before the kernel has a handler"),
    ),
    ("xen-events", "trap-in-the-slot", SLOT),
    (
        "xen-events",
        "trap-at-nothing",
        Panics("the shim of Xen's ABI: exception 14, error 0x10, before the kernel has a handler"),
    ),
    ("xen-events", "traps-not-canonical", Survives),
    ("xen-events", "stack-in-the-slot", SLOT),
    (
        "xen-events",
        "stack-not-mapped",
        Panics("the shim of Xen's ABI: exception 14 in the shim"),
    ),
    // #SS on a CPU, #GP on TCG.
    (
        "xen-events",
        "stack-not-canonical",
        Panics("the shim of Xen's ABI: exception 1"),
    ),
    ("xen-events", "kernel-stack-not-mapped", NO_STACK),
    ("xen-events", "iret-frames", Survives),
    ("xen-events", "iret-flags", Survives),
    (
        "xen-events",
        "iret-without-a-frame",
        Panics("the shim of Xen's ABI: exception 14 in the shim"),
    ),
    (
        "xen-events",
        "iret-without-failsafe",
        Panics("the shim of Xen's ABI: IRET with a frame that no CPU resumes"),
    ),
    ("xen-events", "programs", Survives),
    ("xen-events", "io-ports", Survives),
    ("xen-events", "registers-of-tables", Survives),
    ("xen-events", "event-storm", Survives),
    ("xen-events", "no-event-callback", Survives),
    ("xen-events", "block-for-ever", Spins),
    ("xen-events", "stop-the-cpu", LAST_OFF),
    ("xen-events", "spin-with-events-masked", Spins),
    ("xen-events", "hypercalls-for-ever", Spins),
    ("xen-events", "rings-of-garbage", Survives),
    ("xen-vcpus", "numbers", Survives),
    ("xen-vcpus", "states", Survives),
    ("xen-vcpus", "begin-in-the-shim", Either),
    ("xen-vcpus", "poll", Survives),
    ("xen-vcpus", "block", Survives),
    ("xen-vcpus", "ports-of-all", Survives),
    ("xen-vcpus", "off-and-on", Survives),
    ("xen-vcpus", "flushes-of-all", Survives),
    ("xen-vcpus", "all-off", LAST_OFF),
    (
        "xen-vcpus",
        "exception-on-another",
        Panics("the shim of Xen's ABI: exception 3, error 0x0, before the kernel has a handler"),
    ),
    ("xen-vcpus", "power-off-on-another", Survives),
];

/// The groups of tests that are programs: where time, terminals or system calls are what is tested.
const PROGRAMS: [(&str, &[Row]); 10] = [
    ("fs", fs::TESTS),
    ("gdb", gdb::TESTS),
    ("host", nmi::TESTS),
    ("host", host::TESTS),
    ("terminal", terminal::TESTS),
    ("terminal", tmux::TESTS),
    ("run", record::TESTS),
    ("tools", tools::TESTS),
    ("vsock", vsock::TESTS),
    ("disk", disk::TESTS),
];
/// The groups of tests that are scripts.
const SCRIPTS: [&str; 9] = [
    "root", "run", "tools", "fs", "disk", "net", "linux", "xen", "stock",
];

/// Time for a bare Guest, which takes a second or less where nothing is emulated.
const GUEST: Duration = Duration::from_secs(60);
/// The time for which a Guest that never ends is watched: long enough to see that the Host goes on.
const WATCH: Duration = Duration::from_millis(1500);

/// All tests, in the order in which they run.
///
/// # Errors
///
/// Fails when a script is not understood.
pub(crate) fn all() -> Result<Vec<Test>, String> {
    let mut tests = Vec::new();
    for (name, output) in [
        ("hello", "Hello from guest kernel mode"),
        ("ticks", "tick 5"),
        ("user", "exits with 42"),
    ] {
        tests.push(Test::new(
            format!("bare/example:{name}"),
            GUEST,
            move |timeout| {
                guest(
                    &format!("{HERE}/guests/{name}"),
                    "",
                    timeout,
                    &Survives,
                    output,
                )
            },
        ));
    }
    for name in BARE {
        tests.push(Test::new(format!("bare/{name}"), GUEST, move |timeout| {
            guest(
                &format!("{HERE}/selftests/guests/{name}"),
                "",
                timeout,
                &Survives,
                "",
            )
        }));
    }
    for (name, counts) in SEVERAL {
        tests.extend(counts.iter().map(|count| {
            Test::new(format!("bare/{name}:{count}"), GUEST, move |timeout| {
                let path = format!("{HERE}/selftests/guests/{name}");
                guest_of(*count, &path, "", timeout, &Survives, "")
            })
        }));
    }
    for (program, crime, fate) in HOSTILE.iter().chain(HOSTILE_XEN) {
        tests.push(Test::new(
            format!("hostile/{program}:{crime}"),
            GUEST,
            move |timeout| {
                let timeout = if matches!(fate, Spins) {
                    WATCH
                } else {
                    timeout
                };
                let path = format!("{HERE}/selftests/hostile/{program}");
                // The crimes of several vCPUs are those of four.
                let several = matches!(*program, "other_vcpus" | "xen-vcpus");
                let vcpus = if several { 4 } else { 1 };
                guest_of(vcpus, &path, &format!("crime={crime}"), timeout, fate, "")?;
                // The Host's next Guest runs.
                guest(
                    &format!("{HERE}/guests/hello"),
                    "",
                    GUEST,
                    &Survives,
                    "Hello from guest kernel mode",
                )
            },
        ));
    }
    for (group, rows) in PROGRAMS {
        tests.extend(rows.iter().map(|&(name, timeout, test)| {
            Test::new(
                format!("{group}/{name}"),
                Duration::from_secs(timeout),
                test,
            )
        }));
    }
    for group in SCRIPTS {
        tests.extend(script::tests(group)?);
    }
    Ok(tests)
}

/// Runs a bare Guest; `output` must be in what it prints.
fn guest(path: &str, command_line: &str, timeout: Duration, fate: &Fate, output: &str) -> Outcome {
    guest_of(1, path, command_line, timeout, fate, output)
}

/// The same of so many vCPUs.
fn guest_of(
    vcpus: u32,
    path: &str,
    command_line: &str,
    timeout: Duration,
    fate: &Fate,
    output: &str,
) -> Outcome {
    let smp = format!("--smp={vcpus}");
    let argv = [
        "lg",
        "run",
        path,
        "-m",
        "128M",
        &smp,
        "--append",
        command_line,
    ];
    let finished = command::run(&argv, timeout).map_err(text)?;
    let (end, text) = match fate {
        Survives => (End::Exit(0), output.to_owned()),
        Dies(reason) => (End::Exit(255), format!("the guest was killed: {reason}")),
        Panics(message) => (
            End::Exit(255),
            format!("the guest's kernel panicked: {message}"),
        ),
        Exits(status) => (End::Exit(*status), String::new()),
        Spins => (End::TimeOut, String::new()),
        Either if finished.expect(End::Exit(0)).is_ok() => return Ok(()),
        Either => (End::Exit(255), "the guest".into()),
    };
    finished.expect(end)?;
    if finished.output.contains(&text) {
        Ok(())
    } else {
        Err(finished.report(&format!("did not print {text:?} but:")))
    }
}
