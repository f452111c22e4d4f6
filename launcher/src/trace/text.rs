// SPDX-License-Identifier: GPL-2.0
//! A trace as text: a line for each record.

use lguest_abi::*;

use crate::trace::event::{vector_name, Event, Reason};
use crate::trace::file::Trace;
use crate::trace::symbols::Symbols;

/// What stands above the lines of one vCPU.
pub const HEAD: &str =
    "      time us   guest us    lg us  mode    why it left, where, and what came of it\n";

/// What stands above the lines of `trace`.
pub fn head(trace: &Trace) -> String {
    match trace.several {
        true => format!("CPU {HEAD}"),
        false => HEAD.into(),
    }
}

/// The line of a record of `trace`.
pub fn line(trace: &Trace, event: &Event, symbols: &Symbols) -> String {
    let (guest, host) = event.ticks();
    let times = match event.is_brief() {
        true => format!("{:>13} {:>10} {:>8}", '-', '-', '-'),
        false => format!(
            "{:13.3} {:10.3} {:8.3}",
            trace.microseconds(event.entered),
            trace.duration(guest),
            trace.duration(host)
        ),
    };
    let mode = match (event.is_entry(), event.user_mode) {
        (false, _) => "-",
        (true, true) => "user",
        (true, false) => "kernel",
    };
    let cpu = match trace.several {
        true => format!("{:3} ", event.vcpu),
        false => String::new(),
    };
    let mut line = format!("{cpu}{times}  {mode:<6}  {}", what(event, symbols));
    for part in came_of(event) {
        line += "; ";
        line += &part;
    }
    line + "\n"
}

/// Why it left, and where.
fn what(event: &Event, symbols: &Symbols) -> String {
    let place = |address: u64| match event.user_mode {
        true => format!("{address:#x}"),
        false => symbols.name(address),
    };
    let kind = event.kind();
    let at = place(event.rip);
    match event.reason {
        Reason::Launcher => kind,
        Reason::Hypercall if event.is_brief() => format!("{kind} at {at}"),
        Reason::Hypercall => format!("{kind}{} at {at}", arguments(event)),
        Reason::Syscall if !event.is_brief() => {
            format!("{kind} {}{} at {at}", event.rax, words(&event.arguments))
        }
        Reason::PageFault => format!("{kind}: {} {:#x} at {at}", event.access(), event.address),
        _ if event.error != 0 => format!("{kind}, error {:#x}, at {at}", event.error),
        _ => format!("{kind} at {at}"),
    }
}

/// The arguments of a hypercall, as many as it has.
fn arguments(event: &Event) -> String {
    let count = match u32::try_from(event.rax) {
        Ok(LHCALL_ERET | LHCALL_HALT | LHCALL_IRQ_WINDOW) => 0,
        Ok(LHCALL_WRITE_CR3 | LHCALL_SET_TIMER | LHCALL_SET_CPUNODE | LHCALL_DROP_ROOT) => 1,
        Ok(LHCALL_FLUSH_TLB | LHCALL_SHUTDOWN | LHCALL_CONSOLE | LHCALL_NOTIFY) => 2,
        Ok(LHCALL_SET_TLS) => 2,
        _ => 3,
    };
    words(&event.arguments[..count])
}

fn words(words: &[u64]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("{word:#x}")).collect();
    format!("({})", words.join(", "))
}

/// What came of it, beyond what the kind says.
fn came_of(event: &Event) -> Vec<String> {
    let mut parts = Vec::new();
    let (calls, returns) = (event.direct_syscalls, event.direct_erets);
    if (calls, returns) != (0, 0) {
        parts.push(format!(
            "before: {calls} direct system calls, {returns} direct returns"
        ));
    }
    if event.hypercall().is_some() && event.result as i64 != 0 && event.exit().is_none() {
        let result = event.result as i64;
        if (-4095..0).contains(&result) {
            parts.push(format!("result {result}"));
        }
    }
    if event.did(LGUEST_TRACE_GAVE_EXCEPTION) {
        parts.push(format!("the guest gets {}", vector_name(event.given)));
    }
    if event.did(LGUEST_TRACE_GAVE_INTERRUPT) {
        parts.push(format!(
            "the guest gets interrupt {}",
            interrupt(event.given)
        ));
    }
    if let Some(exit) = event.exit() {
        parts.push(format!("to lg: {exit}"));
    }
    parts
}

/// An interrupt of the Guest's.
fn interrupt(vector: u8) -> String {
    let vector = u32::from(vector);
    let lines = LGUEST_VECTOR_LINE0..LGUEST_VECTOR_LINE0 + LGUEST_LINES;
    match vector {
        LGUEST_VECTOR_TIMER => "of its timer".into(),
        _ if lines.contains(&vector) => format!("of device {}", vector - LGUEST_VECTOR_LINE0),
        _ => format!("{vector:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::file::tests::small;

    #[test]
    fn lines_say_it() {
        let trace = Trace::parse(&small()).unwrap();
        let lines = trace.events.iter();
        let lines: Vec<_> = lines
            .map(|event| line(&trace, event, &Symbols::default()))
            .collect();
        assert_eq!(
            lines[0].trim(),
            "0.000      0.500    3.000  kernel  page fault, filled: write 0xffff888001234560 at \
             0xffffffff81000010; before: 3 direct system calls, 2 direct returns"
        );
        assert_eq!(
            lines[1].trim(),
            "4.000      1.000    1.000  kernel  hypercall console(0x2000, 0x5) at 0x0; to lg: console"
        );
    }

    #[test]
    fn of_several_vcpus_each_line_says_which() {
        let mut trace = Trace::parse(&small()).unwrap();
        let short = line(&trace, &trace.events[0], &Symbols::default());
        trace.several = true;
        trace.events[0].vcpu = 5;
        let long = line(&trace, &trace.events[0], &Symbols::default());
        assert_eq!(long, format!("  5 {short}"));
        assert_eq!(head(&trace), format!("CPU {HEAD}"));
    }

    #[test]
    fn interrupts_have_names() {
        assert_eq!(interrupt(0xec), "of its timer");
        assert_eq!(interrupt(0x32), "of device 2");
        assert_eq!(interrupt(0xff), "0xff");
    }
}
