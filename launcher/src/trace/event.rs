// SPDX-License-Identifier: GPL-2.0
//! One record: an entry of the Guest, the exit that ended it, and what came of that. The contract's `struct
//! lguest_trace_record`, checked.

use lguest_abi::*;
use serde::Serialize;

use crate::report::stats;

/// The size of a record in bytes, in the ring as in a file.
pub const SIZE: usize = size_of::<lguest_trace_record>();

/// The reason why the Guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // as in the header
pub enum Reason {
    Launcher,
    Hypercall,
    Syscall,
    Syscall32,
    Interrupted,
    Interrupt,
    Nmi,
    MachineCheck,
    PageFault,
    Int80,
    Protection,
    Exception,
    Impossible,
    Switcher,
}

/// All reasons, at their numbers.
const REASONS: [(u32, Reason); 14] = [
    (LGUEST_TRACE_LAUNCHER, Reason::Launcher),
    (LGUEST_TRACE_HYPERCALL, Reason::Hypercall),
    (LGUEST_TRACE_SYSCALL, Reason::Syscall),
    (LGUEST_TRACE_SYSCALL32, Reason::Syscall32),
    (LGUEST_TRACE_INTERRUPTED, Reason::Interrupted),
    (LGUEST_TRACE_INTERRUPT, Reason::Interrupt),
    (LGUEST_TRACE_NMI, Reason::Nmi),
    (LGUEST_TRACE_MACHINE_CHECK, Reason::MachineCheck),
    (LGUEST_TRACE_PAGE_FAULT, Reason::PageFault),
    (LGUEST_TRACE_INT80, Reason::Int80),
    (LGUEST_TRACE_PROTECTION, Reason::Protection),
    (LGUEST_TRACE_EXCEPTION, Reason::Exception),
    (LGUEST_TRACE_IMPOSSIBLE, Reason::Impossible),
    (LGUEST_TRACE_SWITCHER, Reason::Switcher),
];

/// The names of the exits to the Launcher, at their numbers. 0 is a call that failed: as a rule, a signal.
const EXITS: [(u32, &str); 8] = [
    (0, "signal"),
    (LGUEST_EXIT_MMIO, "mmio"),
    (LGUEST_EXIT_NOTIFY, "notify"),
    (LGUEST_EXIT_CONSOLE, "console"),
    (LGUEST_EXIT_SHUTDOWN, "shutdown"),
    (LGUEST_EXIT_DEATH, "death"),
    (LGUEST_EXIT_DEBUG, "debug"),
    (LGUEST_EXIT_TRACE, "trace"),
];

const DID: u32 = LGUEST_TRACE_FILLED
    | LGUEST_TRACE_SPURIOUS
    | LGUEST_TRACE_INJECTED
    | LGUEST_TRACE_MMIO
    | LGUEST_TRACE_GAVE_EXCEPTION
    | LGUEST_TRACE_GAVE_INTERRUPT
    | LGUEST_TRACE_EMULATED
    | LGUEST_TRACE_HALTED
    | LGUEST_TRACE_RETURNED;

/// The mnemonics of the exceptions, at their vectors.
const EXCEPTIONS: [&str; 32] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS",
    "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP", "#22", "#23", "#24", "#25",
    "#26", "#27", "#HV", "#VC", "#SX", "#31",
];

/// The name of an exception, or the number of an interrupt.
pub fn vector_name(vector: u8) -> String {
    match EXCEPTIONS.get(usize::from(vector)) {
        Some(name) => (*name).into(),
        None => format!("{vector:#04x}"),
    }
}

/// In a file, the uppermost byte of a record's number is the vCPU's: none of them gets that far.
const VCPU_SHIFT: u32 = 56;

/// Says in `record`, as the ring has it, whose it is.
pub fn set_vcpu(record: &mut [u8; SIZE], vcpu: u8) {
    record[VCPU_SHIFT as usize / 8] = vcpu;
}

/// One record. Times are in ticks of the time stamp counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // as in the header
pub struct Event {
    pub vcpu: u8,
    pub number: u64,
    pub entered: u64,
    pub left: u64,
    pub done: u64,
    pub rip: u64,
    pub rsp: u64,
    pub root: u64,
    pub address: u64,
    pub rax: u64,
    pub arguments: [u64; 3],
    pub result: u64,
    pub error: u32,
    pub direct_syscalls: u32,
    pub direct_erets: u32,
    pub spurious: u32,
    pub reason: Reason,
    #[serde(skip)]
    did: u16,
    pub vector: u8,
    pub user_mode: bool,
    pub given: u8,
    #[serde(skip)]
    exit: u8,
}

impl Event {
    /// Reads a record; what is wrong with it otherwise.
    pub fn parse(bytes: &[u8; SIZE]) -> Result<Self, &'static str> {
        let (quads, rest) = bytes.split_at(104);
        let quad = |index: usize| {
            let bytes = quads[8 * index..8 * index + 8].try_into();
            u64::from_le_bytes(bytes.expect("8 of them"))
        };
        let double = |index: usize| {
            let bytes = rest[4 * index..4 * index + 4].try_into();
            u32::from_le_bytes(bytes.expect("4 of them"))
        };
        let reason = u32::from(double(4) as u16);
        let reason = REASONS.iter().find(|(number, _)| *number == reason);
        let event = Self {
            vcpu: (quad(0) >> VCPU_SHIFT) as u8,
            number: quad(0) & !(u64::MAX << VCPU_SHIFT),
            entered: quad(1),
            left: quad(2),
            done: quad(3),
            rip: quad(4),
            rsp: quad(5),
            root: quad(6),
            address: quad(7),
            rax: quad(8),
            arguments: [quad(9), quad(10), quad(11)],
            result: quad(12),
            error: double(0),
            direct_syscalls: double(1),
            direct_erets: double(2),
            spurious: double(3),
            reason: reason.ok_or("it has an unknown reason")?.1,
            did: (double(4) >> 16) as u16,
            vector: rest[20],
            user_mode: rest[21] != 0,
            given: rest[22],
            exit: rest[23],
        };
        if u32::from(event.did) & !DID != 0 || rest[21] > 1 {
            return Err("it has unknown flags");
        }
        if usize::from(event.exit) >= EXITS.len() {
            return Err("it has an unknown exit");
        }
        if event.entered > event.left || event.left > event.done {
            return Err("its times run backwards");
        }
        Ok(event)
    }

    /// It is one of the last exits as the module keeps them always: without times, for which 0 stands, which the time
    /// stamp counter never is; and without what came of it, or the arguments of a hypercall.
    pub fn is_brief(&self) -> bool {
        self.entered == 0
    }

    /// Is this, one of `LGUEST_TRACE_FILLED` and the others, what came of it?
    pub fn did(&self, what: u32) -> bool {
        u32::from(self.did) & what != 0
    }

    /// The Guest was in: this is not just the time that the Launcher took.
    pub fn is_entry(&self) -> bool {
        self.reason != Reason::Launcher
    }

    /// The name of the exit to the Launcher that followed.
    pub fn exit(&self) -> Option<&'static str> {
        let exits = self.did(LGUEST_TRACE_RETURNED).then_some(EXITS);
        exits.map(|exits| exits[usize::from(self.exit)].1)
    }

    /// The number of a hypercall, as the counters have it.
    pub fn hypercall(&self) -> Option<u64> {
        (self.reason == Reason::Hypercall).then_some(self.rax)
    }

    /// The kind of the exit and of what came of it, for people: what is counted together.
    pub fn kind(&self) -> String {
        match self.reason {
            Reason::Launcher => "in lg".into(),
            Reason::Hypercall => {
                let name = u32::try_from(self.rax).ok().and_then(stats::hypercall);
                format!("hypercall {}", name.unwrap_or("unknown"))
            }
            Reason::Syscall => "system call".into(),
            Reason::Syscall32 => "system call of 32-bit code".into(),
            Reason::Interrupted => "nothing: interrupted on the way".into(),
            Reason::Interrupt => "interrupt of the host".into(),
            Reason::Nmi => "NMI".into(),
            Reason::MachineCheck => "machine check".into(),
            Reason::PageFault if self.is_brief() => "page fault".into(),
            Reason::PageFault => format!("page fault, {}", self.fault()),
            Reason::Int80 => "int 0x80".into(),
            Reason::Protection if self.did(LGUEST_TRACE_EMULATED) => {
                "privileged instruction".into()
            }
            Reason::Protection | Reason::Exception => {
                format!("exception {}", vector_name(self.vector))
            }
            Reason::Impossible => "impossible".into(),
            Reason::Switcher => "exception in the switcher".into(),
        }
    }

    /// The same, where the record before it ended with this exit to the Launcher.
    pub fn kind_after(&self, exit: Option<&'static str>) -> String {
        match self.is_entry() {
            true => self.kind(),
            false => format!("in lg: {}", exit.unwrap_or("start")),
        }
    }

    /// What came of a page fault.
    fn fault(&self) -> &'static str {
        for (what, name) in [
            (LGUEST_TRACE_FILLED, "filled"),
            (LGUEST_TRACE_SPURIOUS, "spurious"),
            (LGUEST_TRACE_INJECTED, "the guest's"),
            (LGUEST_TRACE_MMIO, "a device's"),
            (LGUEST_TRACE_GAVE_EXCEPTION, "not canonical"),
        ] {
            if self.did(what) {
                return name;
            }
        }
        "not settled"
    }

    /// The access behind a page fault.
    pub fn access(&self) -> &'static str {
        match (self.error & 2 != 0, self.error & 16 != 0) {
            (_, true) => "fetch",
            (true, _) => "write",
            (false, _) => "read",
        }
    }

    /// Ticks in the Guest, and then outside of it.
    pub fn ticks(&self) -> (u64, u64) {
        (self.left - self.entered, self.done - self.left)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The bytes of a record.
    pub(crate) fn bytes(record: &lguest_trace_record) -> [u8; SIZE] {
        let r = record;
        let mut bytes = Vec::new();
        let quads = [
            r.number,
            r.entered,
            r.left,
            r.done,
            r.rip,
            r.rsp,
            r.root,
            r.address,
            r.rax,
            r.arguments[0],
            r.arguments[1],
            r.arguments[2],
            r.result,
        ];
        quads.iter().for_each(|q| bytes.extend(q.to_le_bytes()));
        for double in [r.error, r.direct_syscalls, r.direct_erets, r.spurious] {
            bytes.extend(double.to_le_bytes());
        }
        for half in [r.reason, r.did] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend([r.vector, r.user_mode, r.given, r.exit]);
        bytes.try_into().unwrap()
    }

    /// A page fault that was filled.
    pub(crate) fn fault() -> lguest_trace_record {
        lguest_trace_record {
            number: 7,
            entered: 1000,
            left: 1500,
            done: 4500,
            rip: 0xffff_ffff_8100_0010,
            rsp: 0xffff_8880_0000_1000,
            root: 0x1000,
            address: 0xffff_8880_0123_4560,
            error: 2,
            direct_syscalls: 3,
            direct_erets: 2,
            spurious: 1,
            reason: LGUEST_TRACE_PAGE_FAULT as u16,
            did: LGUEST_TRACE_FILLED as u16,
            vector: 14,
            ..Default::default()
        }
    }

    /// A hypercall after which the Launcher had to do something.
    pub(crate) fn console() -> lguest_trace_record {
        lguest_trace_record {
            number: 8,
            entered: 5000,
            left: 6000,
            done: 7000,
            rax: LHCALL_CONSOLE.into(),
            arguments: [0x2000, 5, 0],
            reason: LGUEST_TRACE_HYPERCALL as u16,
            did: LGUEST_TRACE_RETURNED as u16,
            exit: LGUEST_EXIT_CONSOLE as u8,
            ..Default::default()
        }
    }

    pub(crate) fn event(record: &lguest_trace_record) -> Event {
        Event::parse(&bytes(record)).unwrap()
    }

    #[test]
    fn records_are_read() {
        let fault = event(&fault());
        assert_eq!((fault.number, fault.entered, fault.root), (7, 1000, 0x1000));
        assert_eq!(fault.address, 0xffff_8880_0123_4560);
        assert_eq!(fault.ticks(), (500, 3000));
        assert_eq!((fault.direct_syscalls, fault.direct_erets), (3, 2));
        assert_eq!(
            (fault.kind(), fault.access()),
            ("page fault, filled".into(), "write")
        );
        assert_eq!((fault.exit(), fault.hypercall()), (None, None));
        let console = event(&console());
        assert_eq!(console.kind(), "hypercall console");
        assert_eq!(console.exit(), Some("console"));
        assert_eq!(console.arguments, [0x2000, 5, 0]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let bad = |change: fn(&mut lguest_trace_record)| {
            let mut record = fault();
            change(&mut record);
            Event::parse(&bytes(&record)).unwrap_err()
        };
        assert!(bad(|r| r.reason = 14).contains("reason"));
        assert!(bad(|r| r.did = 0x100).contains("flags"));
        assert!(bad(|r| r.user_mode = 2).contains("flags"));
        assert!(bad(|r| r.exit = 8).contains("exit"));
        assert!(bad(|r| r.left = 999).contains("backwards"));
        assert!(bad(|r| r.done = 1499).contains("backwards"));
    }

    #[test]
    fn reasons_and_exits_are_at_their_numbers() {
        for (index, (number, _)) in REASONS.into_iter().enumerate() {
            assert_eq!(index, number as usize);
        }
        for (index, (number, _)) in EXITS.into_iter().enumerate() {
            assert_eq!(index, number as usize);
        }
    }
}
