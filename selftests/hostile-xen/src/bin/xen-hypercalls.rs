// SPDX-License-Identifier: GPL-2.0
//! Xen's hypercalls with arguments that make no sense.

#![no_std]
#![no_main]

use core::mem::size_of;
use lguest_hostile_xen::error::*;
use lguest_hostile_xen::{
    call, commit, entry, page, set_traps, start_info, Random, BAD_POINTERS, BASE,
};
use xen_abi::event_channel;
use xen_abi::memory::{grant_op, grant_status, GrantSetupTable, DOMID_SELF};
use xen_abi::number::{self, *};
use xen_abi::vcpu::{
    callback, sched, vcpu_op, MulticallEntry, RegisterVcpuInfo, SchedPoll, SetSingleshotTimer,
    VcpuInfo,
};

entry!(main);

const UNKNOWN: u32 = 63;

fn main() -> ! {
    set_traps();
    commit(&[
        ("unknown-numbers", unknown_numbers),
        ("bad-pointers", bad_pointers),
        ("pointers-over-the-end", pointers_over_the_end),
        ("random-arguments", random_arguments),
        ("multicall-in-multicall", multicall_in_multicall),
        ("multicall-without-end", multicall_without_end),
        ("segment-bases", segment_bases),
        ("descriptors", descriptors),
        ("grants", grants),
        ("vcpu-info", vcpu_info),
        ("ports", ports),
        ("shutdown-reasons", shutdown_reasons),
    ])
}

fn unknown_numbers() {
    for number in [4, 7, 11, 16, 19, 28, 34, 35, 40, 41, 48, 55, UNKNOWN] {
        assert_eq!(call(number, &[number.into(); 6]), ENOSYS, "{number}");
    }
    let mut random = Random(31);
    for _ in 0..1000 {
        let number = random.number() as u32 | (1 << 20);
        assert_eq!(call(number, &[random.number(); 6]), ENOSYS, "{number:#x}");
    }
}

/// Hypercalls whose argument number `.2` is a pointer to what they read.
const READERS: [(u32, &[u64], usize); 16] = [
    (SET_TRAP_TABLE, &[], 0),
    (MMU_UPDATE, &[0, 1, 0, DOMID_SELF], 0),
    (SET_GDT, &[0, 16], 0),
    (MEMORY_OP, &[9], 1),
    (MEMORY_OP, &[11], 1),
    (MULTICALL, &[0, 1], 0),
    (XEN_VERSION, &[version::GET_FEATURES], 1),
    (CONSOLE_IO, &[console::WRITE, 8], 2),
    (GRANT_TABLE_OP, &[grant_op::SETUP_TABLE, 0, 1], 1),
    (VCPU_OP, &[vcpu_op::SET_SINGLESHOT_TIMER, 0], 2),
    (VCPU_OP, &[vcpu_op::REGISTER_VCPU_INFO, 0], 2),
    (MMUEXT_OP, &[0, 1, 0, DOMID_SELF], 0),
    (SCHED_OP, &[sched::SHUTDOWN], 1),
    (SCHED_OP, &[sched::POLL], 1),
    (CALLBACK_OP, &[callback::REGISTER], 1),
    (EVENT_CHANNEL_OP, &[event_channel::op::SEND], 1),
];

fn at(number: u32, arguments: &[u64], place: usize, pointer: u64) -> i64 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    all[place] = pointer;
    call(number, &all)
}

fn bad_pointers() {
    for (number, arguments, place) in READERS {
        for pointer in BAD_POINTERS {
            assert_eq!(
                at(number, arguments, place, pointer),
                EFAULT,
                "{number} {arguments:x?} at {pointer:#x}"
            );
        }
    }
    // Those that only write.
    for pointer in BAD_POINTERS {
        assert_eq!(
            call(XEN_VERSION, &[version::EXTRAVERSION, pointer]),
            EFAULT,
            "EXTRAVERSION"
        );
        assert_eq!(call(MEMORY_OP, &[12, pointer]), EFAULT, "MACHPHYS_MAPPING");
    }
}

/// The structure begins on the last page that is mapped.
fn pointers_over_the_end() {
    let edge = BASE + edge();
    for (number, arguments, place) in READERS {
        for before in [1, 2, 3] {
            // Text may be as short, and a list of one entry is read entry by entry.
            if number != CONSOLE_IO && number != SET_TRAP_TABLE {
                assert_eq!(
                    at(number, arguments, place, edge - before),
                    EFAULT,
                    "{number} {arguments:x?}, {before} before the end"
                );
            }
        }
    }
}

/// GPA of the end of what the Launcher has mapped: the first page in its tables that is not there.
fn edge() -> u64 {
    (0..start_info().nr_pages)
        .map(|frame| frame * 4096)
        .find(|gpa| {
            let entry = lguest_hostile_xen::entry(BASE + gpa);
            // SAFETY: an entry of our tables.
            unsafe { entry.read_volatile() & 1 == 0 }
        })
        .expect("all of RAM is mapped")
}

/// Thousands of calls with anything. Not those which end the Guest, or wait, or write to RAM where it is told: the kernel
/// may harm itself as it likes.
fn random_arguments() {
    const NUMBERS: [u32; 14] = [
        SET_TRAP_TABLE,
        SET_GDT,
        FPU_TASKSWITCH,
        SET_DEBUGREG,
        GET_DEBUGREG,
        SET_TIMER_OP,
        VM_ASSIST,
        VCPU_OP,
        SET_SEGMENT_BASE,
        MMUEXT_OP,
        CALLBACK_OP,
        EVENT_CHANNEL_OP,
        PHYSDEV_OP,
        GRANT_TABLE_OP,
    ];
    let mut random = Random(32);
    for _ in 0..20_000 {
        let number = NUMBERS[random.number() as usize % NUMBERS.len()];
        let arguments: [u64; 6] = core::array::from_fn(|_| match random.number() % 5 {
            0 => random.number() % 16,
            1 => BAD_POINTERS[random.number() as usize % BAD_POINTERS.len()],
            2 => 1 << (random.number() % 64),
            3 => DOMID_SELF,
            _ => random.number() | (1 << 62),
        });
        // That would be the end: `stop-the-cpu`.
        if (number, arguments[0]) != (VCPU_OP, vcpu_op::DOWN) {
            call(number, &arguments);
        }
    }
    set_traps();
    assert_eq!(call(UNKNOWN, &[]), ENOSYS);
}

fn entry_of(number: u32, args: &[u64]) -> MulticallEntry {
    let mut entry = MulticallEntry {
        op: number.into(),
        result: 0x5555,
        ..MulticallEntry::default()
    };
    entry.args[..args.len()].copy_from_slice(args);
    entry
}

fn multicall(list: &mut [MulticallEntry]) -> i64 {
    call(MULTICALL, &[list.as_mut_ptr() as u64, list.len() as u64])
}

fn multicall_in_multicall() {
    let mut inner = [entry_of(UNKNOWN, &[])];
    let mut list = [
        entry_of(UNKNOWN, &[]),
        entry_of(MULTICALL, &[inner.as_mut_ptr() as u64, 1]),
        entry_of(IRET, &[]),
        entry_of(FPU_TASKSWITCH, &[1]),
    ];
    assert_eq!(multicall(&mut list), 0);
    let results = list.map(|entry| entry.result);
    assert_eq!(results, [ENOSYS, EINVAL, EINVAL, 0]);
    assert_eq!(inner[0].result, 0x5555, "the inner list was run");
    // A list that contains itself, and is changed by what it calls.
    let own = list.as_mut_ptr() as u64;
    list[0] = entry_of(MULTICALL, &[own, u64::MAX]);
    assert_eq!(multicall(&mut list), 0);
    assert_eq!(list[0].result, EINVAL);
}

/// The list ends where memory does.
fn multicall_without_end() {
    let edge = BASE + edge();
    let list = edge - 4 * size_of::<MulticallEntry>() as u64;
    for i in 0..4 {
        let at = list + i * size_of::<MulticallEntry>() as u64;
        // SAFETY: the last page that the Launcher has mapped is padding, and nobody's.
        unsafe { (at as *mut MulticallEntry).write_volatile(entry_of(UNKNOWN, &[])) };
    }
    for count in [(1 << 32) - 1, 1 << 32, u64::MAX, u64::MAX / 64] {
        assert_eq!(call(MULTICALL, &[list, count]), EFAULT, "{count:#x}");
        for (number, extra) in [(MMU_UPDATE, 0), (MMUEXT_OP, 0)] {
            let result = call(number, &[edge - 8, count, extra, DOMID_SELF]);
            // Only the low half of the count is looked at.
            assert!(
                result == EFAULT || count as u32 == 0 && result == 0,
                "{number} with {count:#x}: {result}"
            );
        }
    }
}

fn segment_bases() {
    for which in 0..3 {
        for base in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff, 0x8000_0000_0000] {
            assert_eq!(
                call(SET_SEGMENT_BASE, &[which, base]),
                EINVAL,
                "{which}: {base:#x}"
            );
        }
        assert_eq!(call(SET_SEGMENT_BASE, &[which, 0xffff_8780_0000_0000]), 0);
        assert_eq!(call(SET_SEGMENT_BASE, &[which, 0]), 0);
    }
    assert_eq!(call(SET_SEGMENT_BASE, &[4, 0]), EINVAL);
    // Selectors that cannot be loaded are null.
    for selector in (0..0x1_0000).step_by(7) {
        assert_eq!(
            call(SET_SEGMENT_BASE, &[segment::GS_USER_SELECTOR, selector]),
            0,
            "{selector:#x}"
        );
    }
}

/// System segments, gates, other privilege levels, in the places of TLS; and descriptors where there is no GDT.
fn descriptors() {
    let gdt = page();
    let frames = [gdt.frame()];
    assert_eq!(call(SET_GDT, &[frames.as_ptr() as u64, 16]), 0);
    assert_eq!(call(SET_GDT, &[frames.as_ptr() as u64, 513]), EINVAL);
    let outside = [start_info().nr_pages];
    assert_eq!(call(SET_GDT, &[outside.as_ptr() as u64, 16]), EINVAL);
    let mut random = Random(33);
    for i in 0..2000 {
        let descriptor = random.number();
        let at = gdt.frame() * 4096 + 8 * (i % 16);
        call(UPDATE_DESCRIPTOR, &[at, descriptor]);
    }
    for bad in [
        1,
        4,
        start_info().nr_pages * 4096,
        1 << 46,
        1 << 52,
        u64::MAX,
        u64::MAX - 7,
    ] {
        assert_eq!(call(UPDATE_DESCRIPTOR, &[bad, 0]), EINVAL, "{bad:#x}");
    }
}

fn grants() {
    let list = page();
    let setup = |nr_frames, frame_list, count| {
        let mut table = GrantSetupTable {
            dom: DOMID_SELF as u16,
            nr_frames,
            frame_list,
            status: 7,
            ..GrantSetupTable::default()
        };
        let result = call(
            GRANT_TABLE_OP,
            &[grant_op::SETUP_TABLE, (&raw mut table) as u64, count],
        );
        (result, table.status)
    };
    assert_eq!(setup(32, list.gva(), 1), (0, grant_status::OKAY));
    for many in [33, 1 << 16, u32::MAX] {
        assert_eq!(setup(many, list.gva(), 1), (0, grant_status::GENERAL_ERROR));
    }
    for pointer in BAD_POINTERS {
        assert_eq!(setup(1, pointer, 1).0, EFAULT, "{pointer:#x}");
    }
    for count in [0, 2, u64::MAX] {
        assert_eq!(setup(1, list.gva(), count), (EINVAL, 7), "{count}");
    }
    for op in [
        grant_op::MAP_GRANT_REF,
        grant_op::UNMAP_GRANT_REF,
        grant_op::COPY,
        99,
        u64::MAX,
    ] {
        assert_eq!(call(GRANT_TABLE_OP, &[op, list.gva(), 1]), ENOSYS, "{op}");
    }
}

/// Not in RAM, over the end of a page, not aligned, and twice.
fn vcpu_info() {
    let page = page();
    let register = |mfn, offset| {
        let wanted = RegisterVcpuInfo {
            mfn,
            offset,
            ..RegisterVcpuInfo::default()
        };
        call(
            VCPU_OP,
            &[vcpu_op::REGISTER_VCPU_INFO, 0, (&raw const wanted) as u64],
        )
    };
    let last = 4096 - size_of::<VcpuInfo>() as u32;
    for (mfn, offset) in [
        (start_info().nr_pages, 0),
        (u64::MAX, 0),
        (1 << 52, 0),
        (page.frame(), last + 8),
        (page.frame(), 4096),
        (page.frame(), u32::MAX - 7),
        (page.frame(), 4),
    ] {
        assert_eq!(register(mfn, offset), EINVAL, "{mfn:#x} + {offset:#x}");
    }
    assert_eq!(register(page.frame(), last), 0);
    assert_eq!(register(page.frame(), 0), EINVAL, "a second time");
    for cpu in [1, 31, 32, u64::MAX] {
        assert_eq!(call(VCPU_OP, &[vcpu_op::IS_UP, cpu]), ENOENT, "vCPU {cpu}");
    }
    let timer = SetSingleshotTimer {
        timeout_abs_ns: u64::MAX,
        ..SetSingleshotTimer::default()
    };
    let set = [vcpu_op::SET_SINGLESHOT_TIMER, 0, (&raw const timer) as u64];
    assert_eq!(call(VCPU_OP, &set), 0);
}

fn ports() {
    use event_channel::{op, BindPirq, BindVirq, Port};
    for port in [0, 4096, 4097, u32::MAX] {
        for op in [op::CLOSE, op::SEND, op::UNMASK] {
            let argument = Port { port };
            let result = call(EVENT_CHANNEL_OP, &[op, (&raw const argument) as u64]);
            assert_eq!(result, EINVAL, "{op} of port {port}");
        }
    }
    for virq in [24, 32, u32::MAX] {
        let mut bind = BindVirq {
            virq,
            ..BindVirq::default()
        };
        let result = call(EVENT_CHANNEL_OP, &[op::BIND_VIRQ, (&raw mut bind) as u64]);
        assert_eq!(result, EINVAL, "VIRQ {virq}");
    }
    for pirq in [256, u32::MAX] {
        let mut bind = BindPirq {
            pirq,
            ..BindPirq::default()
        };
        let result = call(EVENT_CHANNEL_OP, &[op::BIND_PIRQ, (&raw mut bind) as u64]);
        assert_eq!(result, EINVAL, "PIRQ {pirq}");
    }
    // Until there is none left, and all back.
    let mut bound = 0;
    loop {
        let mut bind = event_channel::BindIpi::default();
        match call(EVENT_CHANNEL_OP, &[op::BIND_IPI, (&raw mut bind) as u64]) {
            0 => bound += 1,
            error => {
                assert_eq!(error, ENOSPC, "after {bound} ports");
                break;
            }
        }
        assert!(bound < 5000, "ports without end");
    }
    for port in 3..4096 {
        let argument = Port { port };
        call(EVENT_CHANNEL_OP, &[op::CLOSE, (&raw const argument) as u64]);
    }
    let poll = SchedPoll {
        nr_ports: 129,
        ..SchedPoll::default()
    };
    let result = call(SCHED_OP, &[sched::POLL, (&raw const poll) as u64]);
    assert_eq!(result, EINVAL, "a poll of 129 ports");
    let list = [4096u32];
    let poll = SchedPoll {
        ports: list.as_ptr() as u64,
        nr_ports: 1,
        timeout: 1,
        ..SchedPoll::default()
    };
    let result = call(SCHED_OP, &[sched::POLL, (&raw const poll) as u64]);
    assert_eq!(result, EINVAL, "a poll of port 4096");
    let poll = SchedPoll {
        timeout: 1,
        ..SchedPoll::default()
    };
    let result = call(SCHED_OP, &[sched::POLL, (&raw const poll) as u64]);
    assert_eq!(result, 0, "a poll until long ago");
}

fn shutdown_reasons() {
    for reason in [2u32, 4, 5, 99, u32::MAX] {
        let result = call(SCHED_OP, &[sched::SHUTDOWN, (&raw const reason) as u64]);
        assert_eq!(result, EINVAL, "reason {reason}");
    }
    for command in [5, 99, u64::MAX] {
        assert_eq!(call(number::SCHED_OP, &[command, 0]), ENOSYS);
    }
}
