// SPDX-License-Identifier: GPL-2.0
//! The table of all tests.
//!
//! A new guest, crime or script is one more line here; what it tests is written in its own file.

use crate::command::{self, End};
use crate::kernel_log::complaint_in;
use crate::{disk, gdb, host, root, run, terminal, tmux, tools, vsock, Outcome, Test};
use std::fs;
use std::time::Duration;

/// Where the programs are on the test machine.
const HERE: &str = "/usr/lib/lg";

/// Bare guests which test one mechanism each: they exit with 0, or panic and say what is wrong.
const BARE: [&str; 19] = [
    "registers",
    "segments",
    "fpu",
    "cr2",
    "exceptions",
    "protection",
    "accessed_dirty",
    "flush",
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
];

/// How a crime must end.
enum Fate {
    /// The guest goes on, and exits with 0 after it has seen the exception or the error it deserves.
    Survives,
    /// The Host kills it; the reason contains this.
    Dies(&'static str),
    /// Its kernel panics; the message contains this.
    Panics(&'static str),
    /// It exits with this status.
    Exits(i32),
    /// It never ends, and is none the worse for the Host.
    Spins,
}
use Fate::{Dies, Exits, Panics, Spins, Survives};

const DOUBLE_FAULT: Fate = Dies("double fault");
const BAD_ROOT: Fate = Dies("bad root");
const OUTSIDE: Fate = Dies("page table outside RAM");
const SLOT: Fate = Dies("touched the switcher's slot");

/// Hostile guests: program, crime, fate.
const HOSTILE: &[(&str, &str, Fate)] = &[
    ("roots", "root-outside", BAD_ROOT),
    ("roots", "root-past-the-end", BAD_ROOT),
    ("roots", "root-at-a-device", BAD_ROOT),
    ("roots", "root-at-the-end-of-addresses", BAD_ROOT),
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
    ("shared_page", "garbage-everywhere", Survives),
    ("shared_page", "garbage-from-a-handler", Survives),
    ("shared_page", "garbage-interrupt-flag", Survives),
    ("shared_page", "execute-the-shared-page", Survives),
    ("shared_page", "map-over-the-shared-page", Survives),
    ("shared_page", "beyond-the-shared-page", Survives),
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

/// Time for a bare guest, which takes a second or less where nothing is emulated.
const GUEST: Duration = Duration::from_secs(60);
/// How long a guest that never ends is watched.
const WATCH: Duration = Duration::from_millis(1500);

/// All tests, in the order in which they run.
pub(crate) fn all() -> Vec<Test> {
    let mut tests = Vec::new();
    for (name, output) in [
        ("hello", "Hello from guest kernel mode"),
        ("ticks", "tick 5"),
        ("user", "exits with 42"),
    ] {
        add(
            &mut tests,
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
        );
    }
    for name in BARE {
        add(&mut tests, format!("bare/{name}"), GUEST, move |timeout| {
            guest(
                &format!("{HERE}/selftests/guests/{name}"),
                "",
                timeout,
                &Survives,
                "",
            )
        });
    }
    for (program, crime, fate) in HOSTILE {
        add(
            &mut tests,
            format!("hostile/{program}:{crime}"),
            GUEST,
            move |timeout| {
                let timeout = if matches!(fate, Spins) {
                    WATCH
                } else {
                    timeout
                };
                let path = format!("{HERE}/selftests/hostile/{program}");
                guest(&path, &format!("crime={crime}"), timeout, fate, "")?;
                // The Host's next guest runs.
                guest(
                    &format!("{HERE}/guests/hello"),
                    "",
                    GUEST,
                    &Survives,
                    "Hello from guest kernel mode",
                )
            },
        );
    }
    for (group, rows) in [
        ("fs", crate::fs::TESTS),
        ("gdb", gdb::TESTS),
        ("host", host::TESTS),
        ("terminal", terminal::TESTS),
        ("terminal", tmux::TESTS),
        ("root", root::TESTS),
        ("run", run::TESTS),
        ("tools", tools::TESTS),
        ("vsock", vsock::TESTS),
        ("disk", disk::TESTS),
    ] {
        for (name, timeout, test) in rows {
            add(
                &mut tests,
                format!("{group}/{name}"),
                Duration::from_secs(*timeout),
                test,
            );
        }
    }
    for script in scripts("net") {
        let name = script.trim_end_matches(".sh").to_owned();
        let path = format!("{HERE}/selftests/net/{script}");
        add(
            &mut tests,
            format!("net/{name}"),
            Duration::from_secs(120),
            move |timeout| {
                let finished = command::run(&["sh", &path], timeout).map_err(|e| e.to_string())?;
                finished.expect(End::Exit(0))
            },
        );
    }
    for script in scripts("linux") {
        let name = script.trim_end_matches(".sh").to_owned();
        add(
            &mut tests,
            format!("linux/{name}"),
            Duration::from_secs(180),
            move |timeout| linux(&script, timeout),
        );
    }
    tests
}

fn add(
    tests: &mut Vec<Test>,
    name: String,
    timeout: Duration,
    run: impl Fn(Duration) -> Outcome + 'static,
) {
    tests.push(Test {
        name,
        timeout,
        run: Box::new(run),
    });
}

/// Runs a bare guest; `output` must be in what it prints.
fn guest(path: &str, command_line: &str, timeout: Duration, fate: &Fate, output: &str) -> Outcome {
    let argv = ["lg", "run", path, "-m", "128M", "--append", command_line];
    let finished = command::run(&argv, timeout).map_err(|error| error.to_string())?;
    let (end, text) = match fate {
        Survives => (End::Exit(0), output.to_owned()),
        Dies(reason) => (End::Exit(255), format!("the guest was killed: {reason}")),
        Panics(message) => (
            End::Exit(255),
            format!("the guest's kernel panicked: {message}"),
        ),
        Exits(status) => (End::Exit(*status), String::new()),
        Spins => (End::TimeOut, String::new()),
    };
    finished.expect(end)?;
    if finished.output.contains(&text) {
        Ok(())
    } else {
        Err(finished.report(&format!("did not print {text:?} but:")))
    }
}

/// The status of `lg run` when the guest's kernel has panicked.
const PANICKED: i32 = 255;

/// The scripts of selftests/linux, each of which the guest's shell runs, or of selftests/net, for the Host's.
fn scripts(directory: &str) -> Vec<String> {
    let mut scripts: Vec<String> = fs::read_dir(format!("{HERE}/selftests/{directory}"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".sh") && name != "lib.sh")
        .collect();
    scripts.sort();
    scripts
}

/// Runs a script as the guest's command. Its first lines may say `# expect: STATUS` and `# prints: TEXT`, when it is not
/// 0 and anything.
fn linux(script: &str, timeout: Duration) -> Outcome {
    let text = |error: std::io::Error| error.to_string();
    let source = fs::read_to_string(format!("{HERE}/selftests/linux/{script}")).map_err(text)?;
    let header = |key| source.lines().find_map(|line| line.strip_prefix(key));
    let status = header("# expect: ")
        .unwrap_or("0")
        .parse()
        .map_err(|_| "a bad `# expect:`")?;
    let memory = header("# memory: ").unwrap_or("256M");
    let initrd = initrd().map_err(text)?;
    let path = format!("/selftests/{script}");
    let argv = [
        "lg", "run", "-v", "-m", memory, "--initrd", &initrd, "--", "sh", &path,
    ];
    let finished = command::run(&argv, timeout).map_err(text)?;
    finished.expect(End::Exit(status))?;
    if let Some(complaint) = complaint_in(&finished.output).filter(|_| status != PANICKED) {
        return Err(finished.report(&format!("the guest's log: {complaint}")));
    }
    match header("# prints: ") {
        Some(text) if !finished.output.contains(text) => {
            Err(finished.report(&format!("did not print {text:?} but:")))
        }
        _ => Ok(()),
    }
}

/// The archive with busybox, and behind it the programs and scripts of the tests. (Linux unpacks archives that follow
/// one another, each at a multiple of four bytes.)
pub(crate) fn initrd() -> std::io::Result<String> {
    const PATH: &str = "/tmp/selftests.cpio";
    if !fs::exists(PATH)? {
        let mut archive = fs::read(format!("{HERE}/busybox.cpio"))?;
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(fs::read(format!("{HERE}/selftests/linux.cpio"))?);
        fs::write(PATH, archive)?;
    }
    Ok(PATH.to_owned())
}
