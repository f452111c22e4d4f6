// SPDX-License-Identifier: GPL-2.0
//! Segment selectors and the bases of FS and GS come through every kind of exit; user mode has a GS base of its own; TLS
//! descriptors and the CPU-node limit are what the Guest set.

#![no_std]
#![no_main]

use core::arch::asm;
use lguest_guest::event::{set_handler, vector, Frame};
use lguest_guest::{abi, entry, hypercall, println, shared_read, shared_write, user};
use lguest_guest_tests::{code, poke, Code, User, DATA};

entry!(main);

const FS_BASE: u64 = 0x0000_1234_5678_9000;
const KERNEL_GS_BASE: u64 = 0xffff_8abc_def0_1230;
const USER_GS_BASE: u64 = 0x0000_7654_3210_fed0;

fn fs_base() -> u64 {
    let base;
    // SAFETY: reads a register.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack)) };
    base
}

fn gs_base() -> u64 {
    let base;
    // SAFETY: as above.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack)) };
    base
}

fn set_bases(fs: u64, gs: u64) {
    // SAFETY: nothing of Rust's is reached through FS or GS.
    unsafe { asm!("wrfsbase {}", "wrgsbase {}", in(reg) fs, in(reg) gs, options(nomem, nostack)) };
}

/// DS, ES, FS and GS.
fn selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u32, u32, u32, u32);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov %ds, {:e}", "mov %es, {:e}", "mov %fs, {:e}", "mov %gs, {:e}",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(att_syntax, nomem, nostack));
    }
    [ds as u16, es as u16, fs as u16, gs as u16]
}

/// The bases are 0, or the descriptors', afterwards.
fn set_selectors(selectors: [u16; 4]) {
    let [ds, es, fs, gs] = selectors.map(u32::from);
    // SAFETY: 64-bit code uses no base but those of FS and GS, and nothing of Rust's is reached through them.
    unsafe {
        asm!("mov {:e}, %ds", "mov {:e}, %es", "mov {:e}, %fs", "mov {:e}, %gs",
            in(reg) ds, in(reg) es, in(reg) fs, in(reg) gs, options(att_syntax, nomem, nostack));
    }
}

fn lsl(selector: u32) -> Option<u32> {
    let (limit, valid): (u32, u8);
    // SAFETY: reads a descriptor.
    unsafe {
        asm!("xor {limit:e}, {limit:e}", "lsl {selector:e}, {limit:e}", "setz {valid}",
            selector = in(reg) selector, limit = out(reg) limit, valid = out(reg_byte) valid,
            options(att_syntax, nomem, nostack));
    }
    (valid != 0).then_some(limit)
}

fn resume(_: &mut Frame) {}

fn main() -> u8 {
    let user = User::new();
    set_handler(vector::BREAKPOINT, Some(resume));
    for selectors in [[0, 0, 0, 0], [0x2b, 0x2b, 0, 0], [0x2b, 0x23, 0x2b, 0x33]] {
        in_kernel_mode(selectors);
    }
    in_user_mode(&user);
    tls(&user);
    cpu_node();
    println!("selectors, bases and descriptors are right");
    0
}

fn in_kernel_mode(wanted: [u16; 4]) {
    let exits: [(&str, fn()); 3] = [
        ("a hypercall", || {
            assert_eq!(hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0), 0)
        }),
        ("a page fault that the Host fills", || {
            hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
            poke(DATA, 1);
        }),
        // SAFETY: the handler resumes after it.
        ("a breakpoint", || unsafe { asm!("int3") }),
    ];
    for (name, exit) in exits {
        set_selectors(wanted);
        set_bases(FS_BASE, KERNEL_GS_BASE);
        exit();
        assert_eq!(
            (fs_base(), gs_base()),
            (FS_BASE, KERNEL_GS_BASE),
            "bases after {name}"
        );
        assert_eq!(selectors(), wanted, "selectors after {name}");
    }
}

fn in_user_mode(user: &User) {
    let exits = [
        ("nothing", code!("rdfsbase %rax", "rdgsbase %rbx")),
        (
            "a fill",
            code!("movabs %al, 0x700010", "rdfsbase %rax", "rdgsbase %rbx"),
        ),
        (
            "a breakpoint",
            code!("int3", "rdfsbase %rax", "rdgsbase %rbx"),
        ),
        (
            "a system call",
            code!("syscall", "rdfsbase %rax", "rdgsbase %rbx"),
        ),
    ];
    set_handler(vector::SYSCALL, Some(resume));
    set_bases(FS_BASE, KERNEL_GS_BASE);
    shared_write!(user_gs_base, USER_GS_BASE);
    for (name, code) in exits {
        hypercall::flush_tlb(abi::LGUEST_FLUSH_ALL, 0);
        let frame = user.run(code);
        assert_eq!(
            (frame.rax, frame.rbx),
            (FS_BASE, USER_GS_BASE),
            "user mode after {name}"
        );
        assert_eq!(
            (fs_base(), gs_base()),
            (FS_BASE, KERNEL_GS_BASE),
            "kernel mode after {name}"
        );
    }
    for code in [code!("wrgsbase %rdi", "syscall"), code!("wrgsbase %rdi")] {
        let mut frame = user.load(code);
        frame.rdi = 0x1_2345;
        user::run(&mut frame);
        assert_eq!(
            shared_read!(user_gs_base),
            0x1_2345,
            "user mode's own GS base"
        );
        assert_eq!(
            gs_base(),
            KERNEL_GS_BASE,
            "the kernel's GS base after user mode changed its own"
        );
    }
    set_handler(vector::SYSCALL, None);
}

/// A DPL3 32-bit data segment of 4 GiB, present, writable.
fn data_descriptor(base: u64) -> u64 {
    0x00cf_f200_0000_ffff | ((base & 0xff_ffff) << 16) | (((base >> 24) & 0xff) << 56)
}

fn tls(user: &User) {
    let load: [Code; 3] = [
        code!("mov $0x63, %eax", "mov %eax, %fs", "rdfsbase %rax"),
        code!("mov $0x6b, %eax", "mov %eax, %fs", "rdfsbase %rax"),
        code!("mov $0x73, %eax", "mov %eax, %fs", "rdfsbase %rax"),
    ];
    for (i, code) in (0u64..).zip(load) {
        let base = 0x1234_0000 + i;
        assert_eq!(hypercall::set_tls(i, data_descriptor(base)), 0, "SET_TLS");
        let frame = user.run(code);
        assert_eq!(
            (frame.vector, frame.rax),
            (vector::INVALID_OPCODE, base),
            "a TLS segment's base"
        );
        assert_eq!(hypercall::set_tls(i, 0), 0, "SET_TLS to 0");
        let frame = user.run(code);
        assert_eq!(
            frame.vector,
            vector::GENERAL_PROTECTION,
            "a TLS segment that is no more"
        );
    }
    set_selectors([0x2b, 0x2b, 0, 0]);
}

fn cpu_node() {
    for limit in [0, 0x12345, 0xfffff] {
        assert_eq!(hypercall::set_cpunode(limit), 0, "SET_CPUNODE");
        assert_eq!(lsl(0x7b), Some(limit as u32), "LSL of CPU and node number");
    }
    for selector in [0x08, 0x10, 0x18, 0x40] {
        assert_eq!(
            lsl(selector),
            None,
            "LSL of {selector:#x}, which is the Host's"
        );
    }
}
