// SPDX-License-Identifier: GPL-2.0
//! Every hypercall with bad arguments, and hypercalls that do not exist.

#![no_std]
#![no_main]

use lguest_guest::abi::{
    LGUEST_CONSOLE_MAX, LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE, LGUEST_FLUSH_RANGE, LGUEST_SHARED_VA,
    LGUEST_SHUTDOWN_PANIC, LGUEST_SHUTDOWN_POWEROFF, LGUEST_VECTOR_TIMER, LHCALL_CONSOLE,
    LHCALL_COUNT, LHCALL_DROP_ROOT, LHCALL_FLUSH_TLB, LHCALL_HALT, LHCALL_IRQ_WINDOW,
    LHCALL_SET_CPUNODE, LHCALL_SET_ENTRIES, LHCALL_SET_TIMER, LHCALL_SET_TLS,
};
use lguest_guest::event::{self, set_handler, vector};
use lguest_guest::hypercall::{console, hypercall, set_cpunode, set_tls, shutdown};
use lguest_guest::paging::{gpa_to_ptr, ram_end};
use lguest_guest::{entry, irq};
use lguest_guest_tests::{code, in_kernel_with, Random, User};
use lguest_hostile_guests::commit;

entry!(main);

const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;

fn main() -> u8 {
    commit(&[
        ("unknown-numbers", unknown_numbers),
        ("random-arguments", random_arguments),
        ("console-outside", console_outside),
        ("tls", tls),
        ("cpu-node", cpu_node),
        ("flush-kinds", flush_kinds),
        ("unknown-shutdown", || shutdown(99, 0)),
        ("exit-status-too-large", || {
            shutdown(LGUEST_SHUTDOWN_POWEROFF, 0x1_0000_0003)
        }),
        ("panic-without-message", || {
            shutdown(LGUEST_SHUTDOWN_PANIC, 0)
        }),
        ("panic-message-outside", || {
            shutdown(LGUEST_SHUTDOWN_PANIC, u64::MAX)
        }),
        ("panic-message-without-end", panic_message_without_end),
        (
            "from-the-end-of-the-lower-half",
            from_the_end_of_the_lower_half,
        ),
    ])
}

fn unknown_numbers() {
    let mut random = Random(6);
    let numbers =
        (u64::from(LHCALL_COUNT)..300).chain((0..1000).map(|_| random.number() | (1 << 20)));
    for number in numbers.chain([u64::MAX, 1 << 32, (1 << 32) + u64::from(LHCALL_HALT)]) {
        assert_eq!(
            hypercall(number, [number; 5]),
            ENOSYS,
            "hypercall {number:#x}"
        );
    }
}

/// Thousands of calls with arguments that are small, at a boundary or anything. Not those that end the Guest or wait.
fn random_arguments() {
    const NUMBERS: [u32; 9] = [
        LHCALL_SET_ENTRIES,
        LHCALL_FLUSH_TLB,
        LHCALL_SET_TIMER,
        LHCALL_IRQ_WINDOW,
        LHCALL_CONSOLE,
        LHCALL_SET_TLS,
        LHCALL_SET_CPUNODE,
        LHCALL_DROP_ROOT,
        LHCALL_COUNT,
    ];
    let mut random = Random(7);
    let user = User::new();
    irq::disable();
    for _ in 0..20_000 {
        let number = NUMBERS[random.number() as usize % NUMBERS.len()];
        let arguments = core::array::from_fn(|_| match random.number() % 6 {
            0 => random.number() % 4,
            1 => u64::MAX,
            2 => ram_end() - random.number() % 3,
            3 => 1 << (random.number() % 64),
            4 => random.number() | (0xffff << 48),
            _ => random.number(),
        });
        // Text of the Guest's own choice on the console is no crime, only long.
        if number == LHCALL_CONSOLE && arguments[1] < 4097 {
            continue;
        }
        let result = hypercall(u64::from(number), arguments);
        assert!(
            [0, EINVAL, ENOSYS].contains(&result),
            "hypercall {number} with {arguments:x?}: {result}"
        );
    }
    event::init();
    hypercall(u64::from(LHCALL_SET_TIMER), [u64::MAX; 5]);
    set_handler(u64::from(LGUEST_VECTOR_TIMER), Some(|_| ()));
    assert_eq!(
        user.run(code!("nop")).vector,
        vector::INVALID_OPCODE,
        "the guest is as it was"
    );
}

fn console_outside() {
    let end = ram_end();
    for (gpa, len) in [
        (end, 1),
        (end - 1, 2),
        (end - 4096, 4097),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (0, u64::MAX),
        (0xd000_0000, 4),
        (1 << 38, 1),
        (u64::MAX - 4095, 4096),
        (0, u64::from(LGUEST_CONSOLE_MAX) + 1),
    ] {
        assert_eq!(
            console(gpa, len),
            EINVAL,
            "CONSOLE of {len:#x} bytes at {gpa:#x}"
        );
    }
    assert_eq!(console(end - 1, 0), 0, "CONSOLE of nothing");
    // SAFETY: the last bytes of RAM are nobody's.
    unsafe { gpa_to_ptr::<[u8; 4]>(end - 4).write_volatile(*b"end\n") };
    assert_eq!(console(end - 4, 4), 0, "CONSOLE of the last bytes of RAM");
}

/// Descriptors that would be a way out: other privilege levels, gates, TSS, LDT, 64-bit code.
fn tls() {
    const DATA: u64 = 0x00cf_f200_0000_ffff;
    const CODE64: u64 = 0x00af_fa00_0000_ffff;
    for dpl in 0..3 {
        assert_eq!(
            set_tls(0, DATA & !(3 << 45) | (dpl << 45)),
            EINVAL,
            "a descriptor of DPL {dpl}"
        );
    }
    assert_eq!(set_tls(0, CODE64), EINVAL, "64-bit code");
    for kind in 0..16 {
        assert_eq!(
            set_tls(1, DATA & !(0x1f << 40) | (kind << 40)),
            EINVAL,
            "a system segment of type {kind}"
        );
    }
    assert_eq!(
        set_tls(2, DATA & !(1 << 47)),
        EINVAL,
        "a descriptor that is not present"
    );
    for index in [3, 4, u64::MAX, 1 << 32] {
        assert_eq!(set_tls(index, DATA), EINVAL, "TLS entry {index:#x}");
    }

    // Whatever is let through must be harmless to load, to use, and to keep over exits.
    let user = User::new();
    let mut random = Random(8);
    let mut accepted = 0;
    for _ in 0..5000 {
        let wanted = random.number()
            | if random.number() % 4 == 0 {
                0
            } else {
                0xf000 << 32
            };
        if set_tls(0, wanted) == 0 {
            accepted += 1;
            user.run(code!(
                "mov $0x63, %eax",
                "mov %eax, %fs",
                "mov %eax, %gs",
                "mov %eax, %ds",
                "mov %eax, %es",
                "int $0x80"
            ));
            user.run(code!(
                "mov $0x63, %eax",
                "push %rax",
                "push $0x400000",
                "lretq"
            ));
            user.run(code!("mov $0x63, %eax", "mov %eax, %ss", "push %rax"));
            in_kernel_with(
                code!("mov $0x63, %eax", "mov %eax, %fs", "mov %fs:(%rsi), %rax"),
                0,
            );
        }
    }
    assert!(accepted > 100, "only {accepted} descriptors were accepted");
}

fn cpu_node() {
    for limit in [1 << 20, u64::MAX, 1 << 32] {
        assert_eq!(set_cpunode(limit), EINVAL, "SET_CPUNODE {limit:#x}");
    }
}

fn flush_kinds() {
    for kind in [4, 5, 255, u32::MAX] {
        assert_eq!(
            lguest_guest::hypercall::flush_tlb(kind, 0),
            EINVAL,
            "FLUSH_TLB {kind}"
        );
    }
    for gva in [
        0x8000_0000_0000,
        u64::MAX,
        0xffff_8780_0000_0000,
        LGUEST_SHARED_VA as u64,
        1 << 63,
    ] {
        assert_eq!(
            lguest_guest::hypercall::flush_tlb(LGUEST_FLUSH_ONE, gva),
            0,
            "FLUSH_ONE {gva:#x}"
        );
    }
    flush_ranges();
}

fn flush_ranges() {
    let upper = LGUEST_SHARED_VA as u64;
    for (first, end, result) in [
        (0, 0x1000, 0),
        (0x1000, 0x1000, 0),
        (0x1001, 0x1002, 0),
        (0, 1 << 47, 0),
        ((1 << 47) - 1, 1 << 47, 0),
        (upper, upper + 0x1000, 0),
        (upper, u64::MAX, 0),
        ((0x8780 << 32) | (0xffff << 48), u64::MAX, 0),
        // Backwards, from half to half, in none of them, and around.
        (0x2000, 0x1000, EINVAL),
        (0, u64::MAX, EINVAL),
        (0x1000, upper, EINVAL),
        (upper, 0x1000, EINVAL),
        (0, (1 << 47) + 1, EINVAL),
        (1 << 47, (1 << 47) + 0x1000, EINVAL),
        (upper, 0, EINVAL),
        (0, 0, EINVAL),
        (u64::MAX, u64::MAX - 1, EINVAL),
    ] {
        let arguments = [LGUEST_FLUSH_RANGE.into(), first, end, 0, 0];
        assert_eq!(
            hypercall(LHCALL_FLUSH_TLB.into(), arguments),
            result,
            "FLUSH_RANGE from {first:#x} to {end:#x}"
        );
    }
}

fn panic_message_without_end() {
    let last = ram_end() - 4096;
    // SAFETY: the last page of RAM is nobody's.
    unsafe { gpa_to_ptr::<u8>(last).write_bytes(b'A', 4096) };
    shutdown(LGUEST_SHUTDOWN_PANIC, last);
}

/// SYSCALL is the last instruction of the lower half: the next one is at an address that is not canonical, which SYSRET on
/// some processors would load at CPL 0.
fn from_the_end_of_the_lower_half() {
    const LAST: u64 = 0x7fff_ffff_f000;
    let user = User::new();
    let page = user.space.map_new_user(LAST);
    // SAFETY: a page of ours.
    unsafe { gpa_to_ptr::<[u8; 2]>(page + 4094).write_volatile([0x0f, 0x05]) };
    let mut frame = user.load(code!("nop"));
    frame.rip = LAST + 4094;
    lguest_guest::user::run(&mut frame);
    assert!(frame.from_user());
    // And back to there: ERET must refuse, or the fetch fault.
    if frame.vector == vector::SYSCALL {
        assert_eq!(frame.rip, 0x8000_0000_0000);
    }
    // In Guest kernel mode: the same page, for the kernel.
    user.space.map(LAST, page, lguest_guest::paging::pte::WRITE);
    hypercall(
        u64::from(LHCALL_FLUSH_TLB),
        [u64::from(LGUEST_FLUSH_ALL), 0, 0, 0, 0],
    );
    let frame = in_kernel_with(
        code!("mov $3, %eax", "mov $0, %edi", "jmp *%rsi"),
        LAST + 4094,
    );
    assert_eq!(
        frame
            .expect("the next instruction cannot be fetched")
            .vector,
        vector::GENERAL_PROTECTION
    );
}
