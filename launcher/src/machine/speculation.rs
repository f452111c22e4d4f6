// SPDX-License-Identifier: GPL-2.0
//! The CPU's bugs of speculation: what lg asks the kernel for on its own behalf, and what `lg doctor`
//! says of the module.
//!
//! The module says itself what it does, in `/sys/module/lg/parameters/mitigations`. What each word is
//! good for is in `BUGS`; Documentation/threat-model.md has the same with the reasons.

#![forbid(unsafe_code)]

use std::fs;
use std::io;

use rustix::process::{control_speculative_feature, SpeculationFeature, SpeculationFeatureControl};

/// One file for each bug.
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";
/// The words of what the module does, with commas.
const MITIGATIONS: &str = "/sys/module/lg/parameters/mitigations";

/// Asks the kernel to let no other process's branches predict those of this thread and of the
/// threads that it starts, nor the other way round: a Guest is a process to it, and KVM has the
/// same between Guests without asking.
///
/// # Errors
///
/// `ENXIO`, `EPERM` or `ENODEV` where the kernel does not leave it to programs: it does it always,
/// or never, or the CPU needs none of it.
pub fn keep_predictions_apart() -> io::Result<()> {
    control_speculative_feature(
        SpeculationFeature::IndirectBranchSpeculation,
        SpeculationFeatureControl::DISABLE,
    )?;
    Ok(())
}

/// The words of the kernel and of the module.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Bug, and what the Host's kernel says of it.
    pub bugs: Vec<(String, String)>,
    /// Words of the module's; those with `no_` it would do but for its parameter.
    pub words: Vec<String>,
}

impl Told {
    /// Asks both. `None` without the module.
    pub fn gather() -> Option<Self> {
        let words = fs::read_to_string(MITIGATIONS).ok()?;
        let mut bugs: Vec<_> = fs::read_dir(VULNERABILITIES)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let text = fs::read_to_string(entry.path()).ok()?;
                Some((
                    entry.file_name().into_string().ok()?,
                    text.trim().to_owned(),
                ))
            })
            .collect();
        bugs.sort();
        Some(Self {
            bugs,
            words: words
                .trim()
                .split(',')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }

    fn says(&self, word: &str) -> bool {
        self.words.iter().any(|have| have == word)
    }
}

/// The meaning of each word.
const WORDS: [(&str, &str); 7] = [
    ("buffers", "VERW on each way to user mode"),
    ("rsb", "return predictions overwritten"),
    ("bhb", "branch history overwritten"),
    ("ibrs", "IBRS at each exit"),
    ("untrain", "returns untrained"),
    ("ibpb", "IBPB at each exit"),
    ("vmscape", "IBPB before lg itself runs"),
];

/// A bug that Linux 7.3 reports, the module's words that are for it, and what there is besides.
type Bug = (&'static str, &'static [&'static str], &'static str);

const BUGS: [Bug; 19] = [
    (
        "gather_data_sampling",
        &[],
        "the microcode's, for guests too",
    ),
    ("ghostwrite", &[], "no x86 CPU has it"),
    (
        "indirect_target_selection",
        &[],
        "the kernel's thunks in the module; no return or indirect branch in the switcher",
    ),
    ("itlb_multihit", &[], "guests have 4 KiB pages only"),
    (
        "l1tf",
        &[],
        "no page table of a guest's is the CPU's; what is not present is 0",
    ),
    ("mds", &["buffers"], ""),
    (
        "meltdown",
        &[],
        "nothing of the host's is mapped but the switcher",
    ),
    ("mmio_stale_data", &["buffers"], ""),
    ("old_microcode", &[], ""),
    ("reg_file_data_sampling", &["buffers"], ""),
    ("retbleed", &["untrain", "ibrs", "ibpb"], ""),
    ("spec_rstack_overflow", &["untrain", "ibpb"], ""),
    (
        "spec_store_bypass",
        &[],
        "as the kernel does for lg's process",
    ),
    (
        "spectre_v1",
        &[],
        "the guest's registers are cleared at each exit, and indexes of its making are masked",
    ),
    (
        "spectre_v2",
        &["rsb", "bhb", "ibrs", "ibpb"],
        "the guest's registers are cleared at each exit",
    ),
    ("srbds", &[], "the microcode's, for guests too"),
    ("tsa", &["buffers"], ""),
    ("tsx_async_abort", &["buffers"], ""),
    ("vmscape", &["vmscape", "ibpb"], ""),
];

/// The line about a bug that this CPU has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The file's name.
    pub bug: &'static str,
    /// The Host kernel's words, and what lg does.
    pub seen: String,
    /// The fix, where less is done than could be.
    pub fix: Option<&'static str>,
}

/// A row for each bug that the CPU has, and how many of those reported it has not.
pub fn rows(told: &Told) -> (Vec<Row>, usize) {
    let mut rows = Vec::new();
    let mut spared = 0;
    for (name, host) in &told.bugs {
        if host == "Not affected" {
            spared += 1;
            continue;
        }
        let (bug, words, besides) = BUGS.into_iter().find(|(bug, ..)| bug == name).unwrap_or((
            "another",
            &[],
            "this lg does not know it",
        ));
        let done = WORDS
            .iter()
            .filter(|(word, _)| words.contains(word) && told.says(word));
        let mut ours: Vec<_> = done.map(|(_, meaning)| *meaning).collect();
        ours.extend((!besides.is_empty()).then_some(besides));
        if ours.is_empty() {
            ours.push("nothing more");
        }
        let relaxed = words.iter().any(|word| told.says(&format!("no_{word}")));
        let fix = if relaxed {
            Some("load the module without its parameter mitigations=")
        } else if bug == "another" {
            Some("use a newer lg, or read what the kernel's Documentation/admin-guide/hw-vuln says of guests")
        } else if host.starts_with("Vulnerable") {
            Some("newer microcode, or none of the kernel's parameters that relax this; lg does no more than the kernel")
        } else if bug == "spectre_v2" && host.contains("Enhanced") && !told.says("ibpb") {
            // Documentation/admin-guide/hw-vuln/rsb.rst: to overwrite may not suffice, what closes
            // it for programs is SMEP, for KVM's Guests the VM exit. Neither is there for ours.
            Some("beside strangers' guests: modprobe lg mitigations=ibpb, for on Intel's CPUs of this kind to overwrite may not suffice")
        } else {
            None
        };
        let name = if bug == "another" {
            format!("{name}: ")
        } else {
            String::new()
        };
        let seen = format!("{name}{host} | lg: {}", ours.join(", "));
        rows.push(Row { bug, seen, fix });
    }
    (rows, spared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bug: &str, host: &str, words: &str) -> Told {
        Told {
            bugs: vec![(bug.into(), host.into())],
            words: words.split(',').map(str::to_owned).collect(),
        }
    }

    fn row(bug: &str, host: &str, words: &str) -> Row {
        let (mut rows, spared) = rows(&told(bug, host, words));
        assert_eq!((rows.len(), spared), (1, 0));
        rows.remove(0)
    }

    #[test]
    fn what_the_module_does_is_what_is_said() {
        let mds = "Mitigation: Clear CPU buffers; SMT vulnerable";
        let with = row("mds", mds, "buffers,rsb");
        assert_eq!(
            with.seen,
            format!("{mds} | lg: VERW on each way to user mode")
        );
        assert_eq!(with.fix, None);
        let without = row("mds", mds, "no_buffers,rsb");
        assert_eq!(without.seen, format!("{mds} | lg: nothing more"));
        assert!(without.fix.unwrap().contains("without its parameter"));
        // A relaxed mitigation is no matter of another bug's.
        assert_eq!(row("mds", mds, "buffers,no_rsb").fix, None);
    }

    #[test]
    fn enhanced_ibrs_wants_a_barrier() {
        let host = "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional";
        assert!(row("spectre_v2", host, "rsb")
            .fix
            .unwrap()
            .contains("mitigations=ibpb"));
        assert_eq!(row("spectre_v2", host, "rsb,ibpb").fix, None);
        assert_eq!(row("spectre_v2", "Mitigation: Retpolines", "rsb").fix, None);
    }

    #[test]
    fn a_host_that_is_vulnerable_or_has_a_new_bug() {
        assert!(row("retbleed", "Vulnerable", "rsb").fix.is_some());
        let new = row("rowbleed", "Mitigation: None of yours", "rsb");
        assert!(new.seen.starts_with("rowbleed: Mitigation: None of yours"));
        assert!(new.fix.unwrap().contains("newer lg"));
    }

    #[test]
    fn bugs_that_the_cpu_has_not_are_counted() {
        assert_eq!(rows(&told("mds", "Not affected", "rsb")), (vec![], 1));
    }

    /// The module's words, the meanings here, and the bugs' lists are of one mind.
    #[test]
    fn every_word_is_known() {
        let module = lg_core::mitigations::Set::NAMES.map(|(name, _)| name);
        assert_eq!(WORDS.map(|(word, _)| word), module);
        for word in module {
            assert!(
                BUGS.iter().any(|(_, words, _)| words.contains(&word)),
                "{word}"
            );
        }
        for (bug, words, _) in BUGS {
            assert!(words.iter().all(|word| module.contains(word)), "{bug}");
        }
    }
}
