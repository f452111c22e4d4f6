// SPDX-License-Identifier: GPL-2.0
//! Loads and stores of a device's registers, by every form of instruction that a driver uses, in every register: the
//! Launcher's first virtio-mmio device answers.

#![no_std]
#![no_main]

use lguest_guest::event::vector;
use lguest_guest::paging::{pte, AddressSpace};
use lguest_guest::{command_line, entry, println};
use lguest_guest_tests::{code, in_kernel, User};

entry!(main);

/// Where `virtio_mmio.device=4K@GPA:IRQ` of the command line says that the first device is.
fn device() -> u64 {
    let argument = command_line()
        .split_once("virtio_mmio.device=4K@0x")
        .expect("no virtio_mmio.device= here")
        .1;
    let hex = argument
        .split_once(':')
        .expect("no interrupt in virtio_mmio.device=")
        .0;
    u64::from_str_radix(hex, 16).expect("an address in virtio_mmio.device=")
}

/// MagicValue of the virtio specification, section 4.2.2.
const MAGIC: u64 = 0x7472_6976;
const STATUS: u64 = 0x70;
const ACKNOWLEDGE_DRIVER: u32 = 3;
/// The address at which the device is mapped, low so that it fits into an instruction.
const AT: u64 = 0x50_0000;

fn main() -> u8 {
    let user = User::new();
    user.space
        .map(AT, device(), pte::WRITE | pte::USER | pte::NX);
    loads(&user);
    stores();
    println!("a device answers");
    0
}

fn loads(user: &User) {
    const ALL: u64 = u64::MAX;
    // Registers are 32 bits wide; what smaller loads give is the device's choice, what they keep of RAX is not.
    let cases = [
        (
            "MOV to EAX",
            ALL,
            MAGIC,
            code!("mov $-1, %rax", "mov 0x500000, %eax"),
        ),
        (
            "MOV to R9",
            ALL,
            MAGIC,
            code!("mov $-1, %r9", "mov 0x500000, %r9d", "mov %r9, %rax"),
        ),
        (
            "MOV to AL",
            !0xff,
            !0xff,
            code!("mov $-1, %rax", "mov 0x500000, %al"),
        ),
        (
            "MOV to AX",
            !0xffff,
            !0xffff,
            code!("mov $-1, %rax", "mov 0x500000, %ax"),
        ),
        (
            "MOVZX of a byte",
            !0xff,
            0,
            code!("mov $-1, %rax", "movzbl 0x500000, %eax"),
        ),
        (
            "MOVZX of a word",
            !0xffff,
            0,
            code!("mov $-1, %rax", "movzwl 0x500000, %eax"),
        ),
        (
            "by a register",
            ALL,
            MAGIC,
            code!("mov $0x500000, %ecx", "mov (%rcx), %eax"),
        ),
        (
            "by base, index and displacement",
            ALL,
            MAGIC,
            code!(
                "mov $0x4ffff0, %ecx",
                "mov $2, %edx",
                "mov 8(%rcx, %rdx, 4), %eax"
            ),
        ),
        (
            "through FS",
            ALL,
            MAGIC,
            code!(
                "mov $0x4fff00, %eax",
                "wrfsbase %rax",
                "mov %fs:0x100, %eax"
            ),
        ),
    ];
    for (name, mask, value, code) in cases {
        let frame = user.run(code);
        assert_eq!(
            frame.vector,
            vector::INVALID_OPCODE,
            "{name} in user mode: {frame:x?}"
        );
        assert_eq!(
            frame.rax & mask,
            value,
            "{name} in user mode: {:#x}",
            frame.rax
        );
    }
    // In Guest kernel mode the direct map reaches it too, if it is mapped there.
    AddressSpace::current().map(0xffff_a000_0000_0000, device(), pte::WRITE);
    let code = code!(
        "movabs $0xffffa00000000000, %rdx",
        "mov (%rdx), %eax",
        "mov %rax, 0x700000"
    );
    assert!(in_kernel(code).is_none());
    assert_eq!(
        lguest_guest_tests::peek(0x70_0000),
        MAGIC,
        "MOV in kernel mode"
    );
}

/// The status register keeps what is stored, until a 0 resets the device.
fn stores() {
    let status = AT + STATUS;
    assert_eq!(status, 0x50_0070, "the address in the code below");
    let stored = || lguest_guest_tests::peek32(status);
    let reset = || {
        assert!(in_kernel(code!("movl $0, 0x500070")).is_none());
        assert_eq!(stored(), 0, "a reset device");
    };
    for (name, code) in [
        ("MOV of a number", code!("movl $3, 0x500070")),
        ("MOV of EAX", code!("mov $3, %eax", "mov %eax, 0x500070")),
        ("MOV of R10", code!("mov $3, %r10d", "mov %r10d, 0x500070")),
    ] {
        reset();
        assert!(in_kernel(code).is_none());
        assert_eq!(stored(), ACKNOWLEDGE_DRIVER, "{name}");
    }
    reset();
}
