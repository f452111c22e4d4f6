// SPDX-License-Identifier: GPL-2.0
//! Traps, stacks, returns, and events.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lguest_hostile_xen::{
    call, catch, commit, entry, map_program, page, power_off, program, set_traps, start_info,
    Random, BAD_POINTERS, BASE, FAILSAFE, PROGRAM, PROGRAM_STACK, SYSTEM_CALL,
};
use xen_abi::event_channel::{op, BindIpi, Port};
use xen_abi::number::physdev::{self, SetIobitmap};
use xen_abi::number::{
    CALLBACK_OP, EVENT_CHANNEL_OP, IRET, PHYSDEV_OP, SCHED_OP, SET_GDT, SET_TIMER_OP,
    SET_TRAP_TABLE, STACK_SWITCH, UPDATE_DESCRIPTOR, UPDATE_VA_MAPPING, VCPU_OP, XEN_VERSION,
};
use xen_abi::vcpu::{
    callback, sched, vcpu_op, CallbackRegister, IretFrame, SharedInfo, TrapInfo, TRAP_MASKS_EVENTS,
};

entry!(main);

const BREAKPOINT: u64 = 3;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
/// The switcher's slot, and an address where nothing is.
const SLOT: u64 = 0xffff_8780_0000_0000;
const NOTHING: u64 = 0xffff_c000_0000_0000;
const CS64: u64 = 0x33;
const CS32: u64 = 0x23;
const IF: u64 = 1 << 9;

fn main() -> ! {
    commit(&[
        ("no-traps", || {
            // SAFETY: ends the Guest.
            unsafe { asm!("int3") }
        }),
        ("trap-in-the-slot", || trap_at(SLOT)),
        ("trap-at-nothing", || trap_at(NOTHING)),
        ("traps-not-canonical", traps_not_canonical),
        ("stack-in-the-slot", || stack_at(SLOT + 0x1000)),
        ("stack-not-mapped", || stack_at(NOTHING)),
        ("stack-not-canonical", || stack_at(1 << 62)),
        ("kernel-stack-not-mapped", kernel_stack_not_mapped),
        ("iret-frames", iret_frames),
        ("iret-flags", iret_flags),
        ("iret-without-a-frame", iret_without_a_frame),
        ("iret-without-failsafe", iret_without_failsafe),
        ("programs", programs),
        ("io-ports", io_ports),
        ("registers-of-tables", registers_of_tables),
        ("event-storm", event_storm),
        ("no-event-callback", no_event_callback),
        ("block-for-ever", block_for_ever),
        ("stop-the-cpu", || {
            call(VCPU_OP, &[vcpu_op::DOWN, 0]);
        }),
        ("spin-with-events-masked", || loop {
            core::hint::spin_loop();
        }),
        ("hypercalls-for-ever", || loop {
            call(XEN_VERSION, &[0, 0]);
        }),
        ("rings-of-garbage", rings_of_garbage),
    ])
}

/// The handler of the next breakpoint.
fn trap_at(address: u64) {
    let list = [
        TrapInfo {
            vector: 3,
            flags: TRAP_MASKS_EVENTS | 3,
            address,
            ..TrapInfo::default()
        },
        TrapInfo::default(),
    ];
    assert_eq!(call(SET_TRAP_TABLE, &[list.as_ptr() as u64]), 0);
    // SAFETY: ends the Guest.
    unsafe { asm!("int3") }
}

fn traps_not_canonical() {
    for address in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff] {
        let list = [
            TrapInfo {
                vector: 3,
                address,
                ..TrapInfo::default()
            },
            TrapInfo::default(),
        ];
        assert_eq!(
            call(SET_TRAP_TABLE, &[list.as_ptr() as u64]),
            lguest_hostile_xen::error::EINVAL
        );
        for kind in 0..9 {
            let wanted = CallbackRegister {
                kind,
                address,
                ..CallbackRegister::default()
            };
            let result = call(
                CALLBACK_OP,
                &[callback::REGISTER, (&raw const wanted) as u64],
            );
            assert_eq!(result, lguest_hostile_xen::error::EINVAL);
        }
    }
}

/// A program's system call finds this stack.
fn stack_at(sp: u64) {
    set_traps();
    map_program(&[0x0f, 0x05]);
    assert_eq!(call(STACK_SWITCH, &[0, sp]), 0);
    program(&start(PROGRAM, CS64));
}

fn start(rip: u64, cs: u64) -> IretFrame {
    IretFrame {
        rip,
        cs,
        rflags: IF | 2,
        rsp: PROGRAM_STACK,
        ss: 0x2b,
        ..IretFrame::default()
    }
}

fn kernel_stack_not_mapped() {
    set_traps();
    // SAFETY: ends the Guest.
    unsafe { asm!("mov {0}, %rsp", "int3", in(reg) NOTHING, options(att_syntax)) };
}

/// Every selector, and instruction pointers that cannot be: a program, the kernel, or the failsafe callback.
fn iret_frames() {
    set_traps();
    map_program(&[0xcc]);
    for cs in 0..0x1_0000 {
        // Low RPLs are the kernel, whose way this is not.
        if cs & 3 != 3 {
            continue;
        }
        let caught = program(&start(PROGRAM, cs | (0xab << 32)));
        match cs {
            0x33 | 0xe033 => {
                assert_eq!(
                    (caught.vector, caught.cs & 0xffff),
                    (BREAKPOINT, CS64),
                    "{cs:#x}"
                )
            }
            0x23 | 0xe023 => {
                assert_eq!(
                    (caught.vector, caught.cs & 0xffff),
                    (BREAKPOINT, CS32),
                    "{cs:#x}"
                )
            }
            _ => assert_eq!((caught.vector, caught.rip), (FAILSAFE, PROGRAM), "{cs:#x}"),
        }
    }
    for (rip, cs) in [
        (1 << 47, CS64),
        (1 << 63, CS64),
        (0xffff_7fff_ffff_ffff, CS64),
        (1 << 32, CS32),
        (u64::MAX, CS32),
    ] {
        assert_eq!(program(&start(rip, cs)).vector, FAILSAFE, "{rip:#x}");
    }
    for ss in 0..0x1_0000 {
        let frame = IretFrame {
            ss,
            ..start(PROGRAM, CS64)
        };
        let expected = match ss {
            0x2b | 0xe02b | 0x63 | 0x6b | 0x73 => BREAKPOINT,
            _ => FAILSAFE,
        };
        assert_eq!(program(&frame).vector, expected, "{ss:#x}");
    }
    // Where there is nothing: the program's fault.
    for (rip, cs, vector) in [
        (PROGRAM + 4096, CS64, PAGE_FAULT),
        (0x7fff_ffff_ffff, CS64, PAGE_FAULT),
        (BASE, CS64, PAGE_FAULT),
        (SLOT, CS64, PAGE_FAULT),
        (u64::MAX, CS64, PAGE_FAULT),
        (0xffff_ffff, CS32, PAGE_FAULT),
    ] {
        let caught = program(&start(rip, cs));
        assert_eq!(
            (caught.vector, caught.rip, caught.cs & 3),
            (vector, rip, 3),
            "{rip:#x}"
        );
    }
}

/// IOPL, VM, NT, the trap flag, and all others at random.
fn iret_flags() {
    set_traps();
    map_program(&[0x90, 0xcc]);
    let mut random = Random(51);
    for i in 0..500 {
        let mut frame = start(PROGRAM, CS64);
        frame.rflags = match i {
            0..64 => 1 << i,
            64 => u64::MAX,
            _ => random.number(),
        };
        frame.rsp = random.number();
        let caught = program(&frame);
        // A trap after the first instruction, or the breakpoint.
        let trapped = (frame.rflags >> 8) & 1 != 0;
        let expected = if trapped {
            (1, PROGRAM + 1)
        } else {
            (BREAKPOINT, PROGRAM + 2)
        };
        assert_eq!((caught.vector, caught.rip), expected, "{:#x}", frame.rflags);
        assert_eq!(
            caught.rflags & ((3 << 12) | (1 << 17)),
            0,
            "IOPL or VM in {:#x}",
            caught.rflags
        );
        assert_eq!(caught.rsp, frame.rsp);
    }
}

fn iret_without_a_frame() {
    // SAFETY: ends the Guest.
    unsafe {
        asm!("mov {0}, %rsp", "syscall", in(reg) NOTHING, in("rax") u64::from(IRET),
            options(att_syntax, noreturn))
    }
}

fn iret_without_failsafe() {
    program(&start(1 << 47, CS64));
}

/// Ports that a program may have, and bitmaps that are none.
fn io_ports() {
    const PORT: u32 = 0x80;
    set_traps();
    // out %al, $0x80; in $0x80, %ax; int3
    map_program(&[0xe6, 0x80, 0x66, 0xe5, 0x80, 0xcc]);
    let refused = || program(&start(PROGRAM, CS64)).vector == GENERAL_PROTECTION;
    let iopl = |iopl| call(PHYSDEV_OP, &[physdev::SET_IOPL, (&raw const iopl) as u64]);
    let bitmap = |bitmap: u64, nr_ports| {
        let wanted = SetIobitmap {
            bitmap,
            nr_ports,
            pad: 0,
        };
        call(
            PHYSDEV_OP,
            &[physdev::SET_IOBITMAP, (&raw const wanted) as u64],
        )
    };
    let all = [0_u8; (PORT / 8) as usize + 2].as_ptr() as u64;
    assert!(refused());
    for level in [1, 2] {
        assert_eq!(iopl(level), 0);
        assert!(refused());
    }
    assert_eq!(iopl(3_u32), 0);
    for cs in [CS64, CS32] {
        let caught = program(&start(PROGRAM, cs));
        assert_eq!((caught.vector, caught.rip), (BREAKPOINT, PROGRAM + 6));
    }
    assert_eq!(iopl(4), lguest_hostile_xen::error::EINVAL);
    assert_eq!(iopl(0), 0);
    assert!(refused());
    // The second access takes two.
    assert_eq!(bitmap(all, PORT + 1), 0);
    assert_eq!(program(&start(PROGRAM, CS64)).rip, PROGRAM + 2);
    assert_eq!(bitmap(all, PORT + 2), 0);
    assert_eq!(program(&start(PROGRAM, CS64)).vector, BREAKPOINT);
    assert_eq!(
        bitmap(all, physdev::IO_PORTS + 1),
        lguest_hostile_xen::error::EINVAL
    );
    // What is behind the pointer is looked at when a program wants a port, and not before.
    for pointer in [0, NOTHING, SLOT, 1 << 62, u64::MAX, NOTHING - 0x11] {
        assert_eq!(bitmap(pointer, physdev::IO_PORTS), 0);
        assert!(refused(), "{pointer:#x}");
    }
    assert_eq!(bitmap(all, 0), 0);
    assert!(refused());

    // cli; sti; int3: for 32-bit code that may have all ports, and no other.
    map_program(&[0xfa, 0xfb, 0xcc]);
    assert_eq!(
        call(
            xen_abi::number::MMUEXT_OP,
            &[flush().as_ptr() as u64, 1, 0, xen_abi::memory::DOMID_SELF]
        ),
        0
    );
    let end = |cs| {
        let caught = program(&start(PROGRAM, cs));
        (caught.vector, caught.rip)
    };
    let (done, refused) = ((BREAKPOINT, PROGRAM + 3), (GENERAL_PROTECTION, PROGRAM));
    let mut ports = [0_u8; physdev::IO_PORTS as usize / 8];
    assert_eq!(end(CS32), refused);
    assert_eq!(bitmap(ports.as_ptr() as u64, physdev::IO_PORTS), 0);
    assert_eq!((end(CS32), end(CS64)), (done, refused));
    assert_eq!(bitmap(ports.as_ptr() as u64, physdev::IO_PORTS - 1), 0);
    assert_eq!(end(CS32), refused);
    ports[ports.len() - 1] = 0x80;
    assert_eq!(
        bitmap(
            core::hint::black_box(&ports).as_ptr() as u64,
            physdev::IO_PORTS
        ),
        0
    );
    assert_eq!(end(CS32), refused);
    assert_eq!(bitmap(NOTHING, physdev::IO_PORTS), 0);
    assert_eq!(end(CS32), refused);
    assert_eq!(iopl(3), 0);
    assert_eq!((end(CS32), end(CS64)), (done, refused));
}

extern "C" fn sgdt(gva: u64) {
    // SAFETY: if it cannot be written there, the fault is what the test wants.
    unsafe { asm!("sgdt ({})", in(reg) gva, options(att_syntax, nostack)) };
}

extern "C" fn sidt(gva: u64) {
    // SAFETY: as above.
    unsafe { asm!("sidt ({})", in(reg) gva, options(att_syntax, nostack)) };
}

extern "C" fn sldt(gva: u64) {
    // SAFETY: as above.
    unsafe { asm!("sldt ({})", in(reg) gva, options(att_syntax, nostack)) };
}

/// Where a processor has UMIP, the kernel's SGDT is done for it, to where it could write itself; and that of no program is.
fn registers_of_tables() {
    // SAFETY: every processor with 64-bit mode has leaf 7.
    if unsafe { core::arch::x86_64::__cpuid_count(7, 0) }.ecx & (1 << 2) == 0 {
        return;
    }
    set_traps();
    let stored = |instruction: extern "C" fn(u64)| {
        let mut bytes = [0xcc_u8; 16];
        let caught = catch(instruction, bytes.as_mut_ptr() as u64);
        assert_eq!(caught, None);
        bytes
    };
    let table = |limit: u16, base: u64| {
        let mut bytes = [0xcc; 16];
        bytes[..2].copy_from_slice(&limit.to_le_bytes());
        bytes[2..10].copy_from_slice(&base.to_le_bytes());
        bytes
    };
    assert_eq!(stored(sgdt), table(0, 0), "there is none yet");
    assert_eq!(stored(sidt), table(0, 0));
    assert_eq!(stored(sldt)[..3], [0, 0, 0xcc]);
    let gdt = page();
    let frames = [gdt.frame()];
    assert_eq!(call(SET_GDT, &[frames.as_ptr() as u64, 16]), 0);
    const DESCRIPTOR: u64 = 0x00af_9a00_0000_ffff;
    let second = gdt.frame() * 4096 + 8;
    assert_eq!(call(UPDATE_DESCRIPTOR, &[second, DESCRIPTOR]), 0);
    let [_, _, b0, b1, b2, b3, b4, b5, b6, b7, ..] = stored(sgdt);
    let base = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    assert_eq!(stored(sgdt), table(16 * 8 - 1, base));
    // SAFETY: the kernel may read its GDT there.
    let second = unsafe { (base as *const u64).add(1).read_volatile() };
    assert_eq!(second, DESCRIPTOR);
    for instruction in [sgdt, sidt, sldt] {
        for gva in BAD_POINTERS {
            let caught = catch(instruction, gva).map(|caught| (caught.vector, caught.error));
            assert_eq!(caught, Some((GENERAL_PROTECTION, 0)), "{gva:#x}");
        }
    }
    // sgdt -16(%rsp); int3
    map_program(&[0x0f, 0x01, 0x44, 0x24, 0xf0, 0xcc]);
    let caught = program(&start(PROGRAM, CS64));
    assert_eq!((caught.vector, caught.rip), (GENERAL_PROTECTION, PROGRAM));
}

/// What programs may not do, and may.
fn programs() {
    set_traps();
    for (code, vector, error) in [
        (&[0x0f, 0x05][..], SYSTEM_CALL, 0),
        (&[0xcd, 0x80], 0x80, 0),
        (&[0xcc], BREAKPOINT, 0),
        (&[0xf4], GENERAL_PROTECTION, 0),
        (&[0xfa], GENERAL_PROTECTION, 0),
        // int $0x20 and int $14
        (&[0xcd, 0x20], GENERAL_PROTECTION, (0x20 << 3) | 2),
        (&[0xcd, 14], GENERAL_PROTECTION, (14 << 3) | 2),
        (&[0x0f, 0x30], GENERAL_PROTECTION, 0),
        (&[0x0f, 0x22, 0xd8], GENERAL_PROTECTION, 0),
        (&[0x0f, 0x0b], 6, 0),
        (&[0x0f, 0x34], GENERAL_PROTECTION, 0),
    ] {
        map_program(code);
        call(
            xen_abi::number::MMUEXT_OP,
            &[flush().as_ptr() as u64, 1, 0, xen_abi::memory::DOMID_SELF],
        );
        let caught = program(&start(PROGRAM, CS64));
        if code == [0x0f, 0x34] && caught.vector == 6 {
            // SYSENTER in 64-bit mode is #UD on AMD.
            continue;
        }
        assert_eq!((caught.vector, caught.error), (vector, error), "{code:x?}");
        assert_eq!(caught.cs & 3, 3, "{code:x?}");
    }
}

fn flush() -> [xen_abi::memory::MmuExtOp; 1] {
    [xen_abi::memory::MmuExtOp {
        cmd: xen_abi::memory::ext::TLB_FLUSH_ALL,
        ..Default::default()
    }]
}

// The callback counts, takes what is pending, and returns to where it came from.
global_asm!(
    r#"
    .pushsection .text.callback, "ax"
    .globl event_callback, events, shared_info
event_callback:
    pop %rcx
    pop %r11
    push $0
    push %rcx
    push %r11
    push %rax
    incq events(%rip)
    mov shared_info(%rip), %rax
    movb $0, (%rax)
    movq $0, 8(%rax)
    movq $0, 2048(%rax)
    mov ${IRET}, %eax
    syscall
    ud2
    .popsection
    .pushsection .bss.callback, "aw", @nobits
    .balign 8
events:
    .skip 8
shared_info:
    .skip 8
    .popsection
    "#,
    IRET = const IRET,
    options(att_syntax)
);

extern "C" {
    fn event_callback();
    static events: AtomicU64;
    static shared_info: AtomicU64;
}

/// The page of the domain, mapped; and the callback, registered.
fn set_events() -> *mut SharedInfo {
    const AT: u64 = 0xffff_c000_1000_0000;
    // SAFETY: an entry of our tables.
    unsafe { lguest_hostile_xen::entry(AT).write_volatile(0) };
    let entry = start_info().shared_info | 0x63;
    assert_eq!(call(UPDATE_VA_MAPPING, &[AT, entry, 0]), 0);
    // SAFETY: an aligned integer.
    unsafe { shared_info.store(AT, Relaxed) };
    let wanted = CallbackRegister {
        kind: callback::EVENT,
        flags: 1,
        address: event_callback as usize as u64,
        ..CallbackRegister::default()
    };
    let result = call(
        CALLBACK_OP,
        &[callback::REGISTER, (&raw const wanted) as u64],
    );
    assert_eq!(result, 0);
    AT as *mut SharedInfo
}

fn seen() -> u64 {
    // SAFETY: an aligned integer.
    unsafe { events.load(Relaxed) }
}

/// An IPI to oneself, thousands of times, with the port and all events masked or not.
fn event_storm() {
    set_traps();
    let info = set_events();
    let mut bind = BindIpi::default();
    assert_eq!(
        call(EVENT_CHANNEL_OP, &[op::BIND_IPI, (&raw mut bind) as u64]),
        0
    );
    assert!(bind.port < 64, "the callback looks at the first ports");
    let port = Port { port: bind.port };
    let send = || call(EVENT_CHANNEL_OP, &[op::SEND, (&raw const port) as u64]);
    // SAFETY: the page of the domain, of which all is numbers.
    let set = move |masked: bool, port_masked: bool| unsafe {
        let mask = &raw mut (*info).evtchn_mask[0];
        mask.write_volatile(if port_masked { u64::MAX } else { 0 });
        let vcpu = &raw mut (*info).vcpu_info[0];
        (&raw mut (*vcpu).evtchn_upcall_mask).write_volatile(masked.into());
    };
    for n in 1..=5000 {
        set(false, false);
        assert_eq!(send(), 0);
        assert_eq!(seen(), n, "an event for each");
        set(true, false);
        assert_eq!((send(), send(), seen()), (0, 0, n), "events are masked");
        // SAFETY: as above.
        unsafe {
            (&raw mut (*info).evtchn_pending[0]).write_volatile(0);
            (&raw mut (*info).vcpu_info[0].evtchn_upcall_pending).write_volatile(0);
        }
        set(false, true);
        assert_eq!((send(), seen()), (0, n), "the port is masked");
        // SAFETY: as above.
        unsafe { (&raw mut (*info).evtchn_pending[0]).write_volatile(0) };
    }
    // Garbage in all words that both sides write.
    let mut random = Random(52);
    for _ in 0..2000 {
        // SAFETY: as above.
        unsafe {
            let words = info.cast::<u64>();
            for i in (0..3).chain(256..384) {
                words.add(i).write_volatile(random.number());
            }
        }
        send();
        call(EVENT_CHANNEL_OP, &[op::UNMASK, (&raw const port) as u64]);
    }
}

/// Events are there, and nobody has said where to.
fn no_event_callback() {
    set_traps();
    let mut bind = BindIpi::default();
    assert_eq!(
        call(EVENT_CHANNEL_OP, &[op::BIND_IPI, (&raw mut bind) as u64]),
        0
    );
    for _ in 0..100 {
        call(SET_TIMER_OP, &[1]);
        let port = Port { port: bind.port };
        assert_eq!(
            call(EVENT_CHANNEL_OP, &[op::SEND, (&raw const port) as u64]),
            0
        );
    }
}

/// Nothing will ever come.
fn block_for_ever() {
    set_events();
    call(SCHED_OP, &[sched::BLOCK, 0]);
    // It waits, or the kernel looks again and waits again.
    loop {
        call(SCHED_OP, &[sched::BLOCK, 0]);
    }
}

/// The Launcher's rings, with indices that run backwards and requests that are none; and its ports, called.
fn rings_of_garbage() {
    set_traps();
    let info = start_info();
    let mut random = Random(53);
    for _ in 0..300 {
        for frame in [info.store_mfn, info.console_mfn] {
            let ring = (BASE + frame * 4096) as *mut u64;
            for i in 0..512 {
                let word = match random.number() % 3 {
                    0 => random.number(),
                    1 => random.number() % 8,
                    _ => u64::MAX << (random.number() % 64),
                };
                // SAFETY: the rings are mapped, and the Launcher takes anything.
                unsafe { ring.add(i).write_volatile(word) };
            }
        }
        for port in [info.store_evtchn, info.console_evtchn] {
            let port = Port { port };
            call(EVENT_CHANNEL_OP, &[op::SEND, (&raw const port) as u64]);
        }
        call(SCHED_OP, &[sched::YIELD, 0]);
    }
    power_off();
}
