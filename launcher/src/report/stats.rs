// SPDX-License-Identifier: GPL-2.0
//! The counters of `--stats`.

use std::fmt::Write;

use lguest_abi::*;

/// Names of the hypercalls, at their numbers.
const HYPERCALLS: [(u32, &str); LHCALL_COUNT as usize] = [
    (LHCALL_ERET, "eret"),
    (LHCALL_SET_ENTRIES, "set_entries"),
    (LHCALL_WRITE_CR3, "write_cr3"),
    (LHCALL_FLUSH_TLB, "flush_tlb"),
    (LHCALL_SET_TIMER, "set_timer"),
    (LHCALL_HALT, "halt"),
    (LHCALL_IRQ_WINDOW, "irq_window"),
    (LHCALL_SHUTDOWN, "shutdown"),
    (LHCALL_CONSOLE, "console"),
    (LHCALL_NOTIFY, "notify"),
    (LHCALL_SET_TLS, "set_tls"),
    (LHCALL_SET_CPUNODE, "set_cpunode"),
    (LHCALL_DROP_ROOT, "drop_root"),
    (LHCALL_SET_MONITOR, "set_monitor"),
    (LHCALL_START_VCPU, "start_vcpu"),
    (LHCALL_STOP_VCPU, "stop_vcpu"),
    (LHCALL_VCPU_STATE, "vcpu_state"),
    (LHCALL_SEND_IPI, "send_ipi"),
    (LHCALL_FLUSH_VCPUS, "flush_vcpus"),
    (LHCALL_WAIT, "wait"),
    (LHCALL_KICK, "kick"),
    (LHCALL_STOP_OTHERS, "stop_others"),
    (LHCALL_SET_NMI, "set_nmi"),
    (LHCALL_RETURN_NMI, "return_nmi"),
];

/// The counters, with the header's names.
pub fn counters(stats: &lguest_stats) -> Vec<(String, u64)> {
    macro_rules! fields {
        ($($field:ident)*) => { vec![$((stringify!($field).to_string(), stats.$field)),*] };
    }
    let mut counters = fields! {
        entries interrupts nmis page_faults pf_filled pf_injected pf_spurious pf_mmio prefilled
        exceptions emulated irqs halts direct_syscalls direct_erets direct_faults sections
        msr_writes cr3_loads tlb_flushes shadow_pages shadow_recycled known_pages
    };
    for (number, name) in HYPERCALLS {
        counters.push((
            format!("hypercall {name}"),
            stats.hypercalls[number as usize],
        ));
    }
    counters
}

/// The name of a hypercall.
pub fn hypercall(number: u32) -> Option<&'static str> {
    let found = HYPERCALLS.iter().find(|(known, _)| *known == number);
    found.map(|(_, name)| *name)
}

/// One line per counter, with that of each vCPU behind it where there are several.
pub fn table(stats: &lguest_stats, each: &[lguest_stats]) -> String {
    let each: Vec<_> = each.iter().map(counters).collect();
    let mut table = String::new();
    for (n, (name, value)) in counters(stats).into_iter().enumerate() {
        let _ = write!(table, "{name:<24} {value:>12}");
        for vcpu in &each {
            let _ = write!(table, " {:>10}", vcpu[n].1);
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_there() {
        // Distinct values, one for each u64 of the struct, by its own Debug output.
        let mut stats = lguest_stats {
            entries: 11,
            known_pages: 22,
            ..Default::default()
        };
        stats.hypercalls[LHCALL_NOTIFY as usize] = 33;
        let table = table(&stats, &[]);
        let fields = size_of::<lguest_stats>() / 8 - stats.hypercalls.len();
        assert_eq!(table.lines().count(), fields + LHCALL_COUNT as usize);
        for (name, value) in [
            ("entries", "11"),
            ("known_pages", "22"),
            ("hypercall notify", "33"),
        ] {
            let line = table.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line.ends_with(&format!(" {value}")), "{line}");
        }
    }

    #[test]
    fn hypercalls_are_at_their_numbers() {
        for (index, (number, _)) in HYPERCALLS.into_iter().enumerate() {
            assert_eq!(index, number as usize);
        }
    }
}
