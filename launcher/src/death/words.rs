// SPDX-License-Identifier: GPL-2.0
//! What a Guest has died of, in words, and where the book has more.

/// A kind of death.
#[derive(Debug)]
pub(super) struct Words {
    /// A part of the reason, by which it is known.
    known_by: &'static str,
    /// What it means.
    pub(super) meaning: &'static str,
    /// The chapter to read.
    pub(super) chapter: &'static str,
}

/// The kernel's own end.
pub(super) const PANIC: Words = Words {
    known_by: "",
    meaning: "The guest's kernel found something that it cannot go on with, said so in its log, and told lg. To lg \
              this is a hypercall as any other: nothing was done that may not be done. The backtrace begins at that \
              hypercall; what went wrong is further down, behind panic().",
    chapter: "Documentation/debugging.md#the-guest-died",
};

/// What has no words of its own.
const OTHER: Words = Words {
    known_by: "",
    meaning: "The guest did what no guest may do, and lg.ko took its vCPU away.",
    chapter: "Documentation/threat-model.md#what-a-guest-can-do-and-what-stops-it",
};

/// The deaths that lg.ko and lg know.
const ALL: [Words; 10] = [
    Words {
        known_by: "before hypercall SET_ENTRIES",
        meaning: "The CPU raised an exception for an instruction of the guest's. An exception goes to the handler of \
                  the guest's kernel, but this kernel had not said yet where that is (hypercall SET_ENTRIES). So \
                  there was nobody to tell. The instruction at RIP is the one that went wrong.",
        chapter: "Documentation/guest-kernel.md#what-a-kernel-at-cpl3-cannot-do-and-what-it-does-instead",
    },
    Words {
        known_by: "double fault",
        meaning: "The guest was just being told of an event, had not yet fetched what lg.ko had written down for it \
                  in the shared page, and raised another one. There is one place for that, so the second event would \
                  overwrite the first: as a CPU does, lg.ko gives up. Often the handler itself, its stack or its \
                  page tables are what is wrong: look at the page walk.",
        chapter: "Documentation/world-switch.md#leave",
    },
    Words {
        known_by: "bad root",
        meaning: "The guest's kernel loaded CR3, the root of its page tables, with an address at which the guest has \
                  no RAM. There is nothing to walk, so it could not have fetched one more instruction.",
        chapter: "Documentation/shadow-memory.md#two-roots-for-each-of-the-guests",
    },
    Words {
        known_by: "page table outside RAM",
        meaning: "An entry of the guest's page tables leads to a table that is not in the guest's RAM. A CPU would \
                  read whatever answers there; lg.ko reads nothing that is not the guest's. The page walk shows which \
                  entry it is.",
        chapter: "Documentation/shadow-memory.md#a-fault-in-full",
    },
    Words {
        known_by: "touched the switcher's slot",
        meaning: "The guest's kernel touched the part of the address space in which lg's switcher lies, the code that \
                  takes the CPU from one world to the other. It is mapped in both worlds and must not be the guest's \
                  in either, so the attempt is the end.",
        chapter: "Documentation/world-switch.md#enter",
    },
    Words {
        known_by: "unexpected ",
        meaning: "The CPU raised an exception that code at CPL3 cannot raise. Either this is a fault of lg's, or of \
                  the machine that it runs on.",
        chapter: "Documentation/debugging.md#is-it-lg-or-qemu",
    },
    Words {
        known_by: "halted with interrupts off",
        meaning: "The guest's kernel turned its interrupts off and halted. Only an interrupt ends a halt, so it could \
                  never have gone on. Kernels end like that after they have said why in their log.",
        chapter: "Documentation/guest-kernel.md#what-a-kernel-at-cpl3-cannot-do-and-what-it-does-instead",
    },
    Words {
        known_by: "memory error",
        meaning: "The machine lost what was in a page of the guest's memory. It is not the guest's fault, and not \
                  lg's.",
        chapter: "Documentation/threat-model.md#machine-checks-and-nmis",
    },
    Words {
        known_by: "bug in lg",
        meaning: "An exception was raised in the switcher, at CPL0, where there must be none. The guest may have \
                  found a hole: please report this, with the whole of this text.",
        chapter: "Documentation/debugging.md#reading-the-switchers-mind",
    },
    Words {
        known_by: "which is not RAM",
        meaning: "The guest's kernel reached for an address at which there is no RAM. Devices are there, and lg does \
                  by itself what the instruction would do; but this instruction it does not know.",
        chapter: "Documentation/devices.md",
    },
];

/// The words for a reason of lg.ko's or lg's.
pub(super) fn of(reason: &str) -> &'static Words {
    let known = ALL.iter().find(|words| reason.contains(words.known_by));
    known.unwrap_or(&OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of lg.ko, in the order in which it has them.
    #[test]
    fn lg_ko_knows_no_other_deaths() {
        let source = include_str!("../../../rust/lg/blame.rs");
        let texts = source.split("impl fmt::Display for Death").nth(1).unwrap();
        let texts = texts.split("impl Death").next().unwrap();
        let texts: Vec<_> = texts.split('"').skip(1).step_by(2).collect();
        assert_eq!(texts.len(), ALL.len() - 1, "{texts:?}");
        for (text, words) in texts.iter().zip(&ALL) {
            assert!(text.contains(words.known_by), "{text}: {words:?}");
            assert_eq!(of(text).known_by, words.known_by);
        }
        assert!(of("something else").meaning.starts_with("The guest did"));
    }

    #[test]
    fn chapters_and_their_sections_are_there() {
        for words in ALL.iter().chain([&PANIC, &OTHER]) {
            let (file, section) = (words.chapter.split_once('#')).unwrap_or((words.chapter, ""));
            let file = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&file).expect(&file);
            let headings = text.lines().filter_map(|line| line.strip_prefix("## "));
            let mut anchors = headings.map(|heading| {
                let kept = |c: &char| c.is_alphanumeric() || "- ".contains(*c);
                let kept: String = heading.chars().filter(kept).collect();
                kept.to_lowercase().replace(' ', "-")
            });
            let found = section.is_empty() || anchors.any(|anchor| anchor == section);
            assert!(found, "{}", words.chapter);
        }
    }
}
