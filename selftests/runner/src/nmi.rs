// SPDX-License-Identifier: GPL-2.0
//! Do NMIs reach the Host wherever they hit a Guest? (`selftests/module/lg_nmi.c` sends them.)

use crate::busy::{online, pin_launcher, start_busy};
use crate::command::{End, Running};
use crate::module::{insert, remove};
use crate::test::{text, Outcome, Row};
use std::fs;
use std::time::Duration;

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[("nmi-storm", 300, storm), ("nmi-at-once", 180, at_once)];

const MODULE: &str = "/usr/lib/lg/selftests/lg_nmi.ko";
const PARAMETERS: &str = "/sys/module/lg_nmi/parameters";

/// Guests that spend their time in the switcher: on the way from one of their modes to the other, and in
/// and out.
const BUSY: [&str; 3] = [
    "system-calls-for-ever",
    "single-steps-for-ever",
    "hypercalls-for-ever",
];
/// Those of them that are interrupted by nothing else, so that an NMI that is not taken at once waits.
const SYSTEM_CALLS: [&str; 2] = ["system-calls-for-ever", "single-steps-for-ever"];

/// Runs `test` with such a Guest on the last CPU, whose number it gets.
fn beside(crime: &str, timeout: Duration, test: impl Fn(usize) -> Outcome) -> Outcome {
    insert(MODULE)?;
    let outcome = start_busy(crime, timeout).and_then(|launcher| {
        let cpu = online() - 1;
        let outcome = pin_launcher(&launcher, cpu).and_then(|()| test(cpu));
        end(launcher)?;
        outcome.map_err(|error| format!("{crime}: {error}"))
    });
    let removed = remove(c"lg_nmi").map_err(|errno| format!("lg_nmi stays: error {errno}"));
    outcome.and(removed)
}

fn end(launcher: Running) -> Outcome {
    launcher.signal(libc::SIGKILL);
    let finished = launcher.finish(Duration::from_secs(30)).map_err(text)?;
    finished.expect(End::Signal(libc::SIGKILL))
}

/// So many NMIs that they hit everything: the switcher, the Host's handler of the one before. The CPU
/// takes another one afterwards, and goes on.
fn storm(timeout: Duration) -> Outcome {
    BUSY.iter().try_for_each(|crime| {
        beside(crime, timeout, |cpu| {
            fs::write(format!("{PARAMETERS}/storm"), format!("{cpu} 100000")).map_err(text)
        })
    })
}

/// An NMI that hits the switcher does not wait until the Guest, which does nothing but system calls, is
/// interrupted: that would be most of them. A few come together with an interrupt by chance. Nor does one
/// get lost behind the #DB that a system call has brought with it.
fn at_once(timeout: Duration) -> Outcome {
    SYSTEM_CALLS
        .iter()
        .try_for_each(|crime| at_once_beside(crime, timeout))
}

fn at_once_beside(crime: &str, timeout: Duration) -> Outcome {
    const COUNT: u32 = 500;
    beside(crime, timeout, |cpu| {
        fs::write(format!("{PARAMETERS}/measure"), format!("{cpu} {COUNT}")).map_err(text)?;
        let late = fs::read_to_string(format!("{PARAMETERS}/late")).map_err(text)?;
        let late: u32 = late.trim().parse().map_err(text)?;
        if late > COUNT / 10 {
            return Err(format!("{late} of {COUNT} NMIs waited for an interrupt"));
        }
        println!("# {late} of {COUNT} NMIs came with an interrupt");
        Ok(())
    })
}
