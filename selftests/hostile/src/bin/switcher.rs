// SPDX-License-Identifier: GPL-2.0
//! A Guest that looks for the switcher and for the Host.

#![no_std]
#![no_main]

use lguest_guest::event::{set_handler, vector, Frame};
use lguest_guest::paging::{ram_end, AddressSpace};
use lguest_guest::{abi, entry, hypercall, irq, shared_read};
use lguest_guest_tests::{arm, code, in_kernel_with, peek, poke, Code, User};
use lguest_hostile_guests::commit;

entry!(main);

const SLOT: u64 = 0xffff_8780_0000_0000;
/// Bytes of address space behind one top-level entry.
const SLOT_SIZE: u64 = 1 << 39;

fn main() -> u8 {
    commit(&[
        ("read-the-slot", || drop_value(peek(SLOT))),
        ("read-the-slot's-end", || {
            drop_value(peek(SLOT + SLOT_SIZE - 8))
        }),
        ("write-the-slot", || poke(SLOT + 0x1000, 0)),
        ("execute-the-slot", || {
            drop_value(in_kernel_with(code!("jmp *%rsi"), SLOT))
        }),
        ("stack-in-the-slot", || {
            drop_value(in_kernel_with(
                code!("mov %rsi, %rsp", "push %rax"),
                SLOT + 0x1000,
            ))
        }),
        ("from-user-mode", from_user_mode),
        ("entries-in-the-slot", entries_in_the_slot),
        ("kernel-stack-in-the-slot", kernel_stack_in_the_slot),
        ("every-top-level-slot", every_top_level_slot),
        ("where-the-host-is", where_the_host_is),
        ("breakpoints", breakpoints),
    ])
}

fn drop_value<T>(_: T) {}

fn accesses() -> [Code; 3] {
    [
        code!("mov (%rsi), %rax"),
        code!("mov %rax, (%rsi)"),
        code!("jmp *%rsi"),
    ]
}

/// For user mode the switcher's slot is like any other place in the kernel half.
fn from_user_mode() {
    let user = User::new();
    for offset in (0..0x80_000).step_by(0x1000).chain([SLOT_SIZE - 4096]) {
        for (code, error) in accesses().into_iter().zip([4, 6, 0x14]) {
            let frame = user.run_with(code, SLOT + offset);
            assert_eq!(
                (frame.vector, frame.error_code),
                (vector::PAGE_FAULT, error),
                "at {:#x}",
                SLOT + offset
            );
            assert_eq!(shared_read!(cr2), SLOT + offset);
        }
    }
}

/// The next event is delivered to the switcher's own text.
fn entries_in_the_slot() {
    assert_eq!(hypercall::set_entries(SLOT, SLOT, SLOT), 0);
    // SAFETY: ends the Guest.
    unsafe { core::arch::asm!("ud2") };
}

fn kernel_stack_in_the_slot() {
    let user = User::new();
    let mut frame = user.load(code!("nop"));
    // The stub of the event at the end of the code pushes to where KERNEL_RSP points.
    set_handler(
        vector::BREAKPOINT,
        Some(|_| lguest_guest::shared_write!(kernel_rsp, SLOT + 0x2000)),
    );
    frame.rip = user.load(code!("int3", "nop")).rip;
    lguest_guest::user::run(&mut frame);
}

/// The kernel half is empty where the Guest has put nothing.
fn every_top_level_slot() {
    let user = User::new();
    let root = lguest_guest::paging::gpa_to_ptr::<u64>(AddressSpace::current().0);
    for slot in 256..512u64 {
        let gva = (0xffff << 48) | (slot << 39);
        // SAFETY: reads our own root.
        let mapped = unsafe { root.add(slot as usize).read_volatile() } != 0;
        for offset in [0, 0x1000, 0x20_0000, 0x4000_0000, SLOT_SIZE - 8] {
            for (code, error) in accesses().into_iter().zip([0, 2, 0x10]) {
                let frame = user.run_with(code, gva + offset);
                assert_eq!(frame.vector, vector::PAGE_FAULT, "{gva:#x} from user mode");
                if !mapped && ![270, 271].contains(&slot) {
                    let frame = in_kernel_with(code, gva + offset).expect("a fault");
                    assert_eq!(
                        (frame.vector, frame.error_code),
                        (vector::PAGE_FAULT, error),
                        "{gva:#x}"
                    );
                }
            }
        }
    }
}

/// The Host's kernel text and its map of all memory lie where the Guest's own do: under the Host's CR3, and not here.
fn where_the_host_is() {
    let user = User::new();
    let text = (0xffff_ffff_8020_0000..0xffff_ffff_ffff_0000).step_by(1 << 20);
    let memory = (0xffff_8880_0000_0000 + ram_end()..0xffff_8881_0000_0000).step_by(16 << 20);
    for gva in text.chain(memory) {
        for (code, error) in accesses().into_iter().zip([0, 2, 0x10]) {
            let frame = in_kernel_with(code, gva).unwrap_or_else(|| panic!("{gva:#x} is there"));
            assert_eq!(
                (frame.vector, frame.error_code),
                (vector::PAGE_FAULT, error),
                "{gva:#x}"
            );
            let frame = user.run_with(code, gva);
            assert_eq!(
                (frame.vector, frame.error_code),
                (vector::PAGE_FAULT, error | 4),
                "{gva:#x}"
            );
        }
    }
}

/// Hardware breakpoints on the switcher's addresses, on the Guest's, on everything. The Host may fault the instructions or
/// ignore them, but no breakpoint may fire outside the Guest.
fn breakpoints() {
    let user = User::new();
    set_handler(
        vector::DEBUG,
        Some(|frame: &mut Frame| panic!("a breakpoint fired: {frame:x?}")),
    );
    for address in [
        SLOT,
        SLOT + 0x1000,
        SLOT + 0x2000,
        abi::LGUEST_SHARED_VA as u64,
        main as usize as u64,
    ] {
        for dr7 in [0x401, 0x4ff, 0x000f_05ff, 0xffff_07ff, 0xffff_2755] {
            in_kernel_with(code!("mov %rsi, %dr0"), address);
            in_kernel_with(code!("mov %rsi, %dr1"), address + 8);
            in_kernel_with(code!("mov %rsi, %dr2"), address + 0x100);
            in_kernel_with(code!("mov %rsi, %dr3"), address + 0x800);
            in_kernel_with(code!("mov %rsi, %dr6"), 0);
            in_kernel_with(code!("mov %rsi, %dr7"), dr7);
            assert_eq!(hypercall::flush_tlb(0, 0), 0);
            assert_eq!(user.run(code!("nop")).vector, vector::INVALID_OPCODE);
            assert_eq!(user.run(code!("syscall")).vector, vector::SYSCALL);
            irq::disable();
            arm(10_000);
            irq::halt();
        }
    }
    in_kernel_with(code!("mov %rsi, %dr7"), 0x400);
}
