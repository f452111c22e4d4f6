// SPDX-License-Identifier: GPL-2.0
//! The smallest Guest: says hello and leaves with status 0.

#![no_std]
#![no_main]

use lguest_guest::{command_line, entry, println, shared_read};

entry!(main);

fn main() -> u8 {
    println!("Hello from guest kernel mode at CPL {}.", cpl());
    println!(
        "Time stamp counter: {} kHz. Command line: \"{}\".",
        shared_read!(tsc_khz),
        command_line()
    );
    0
}

/// The privilege level of the CPU, which is not the one that a kernel expects.
fn cpl() -> u16 {
    let cs: u16;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {0:x}, cs", out(reg) cs, options(nomem, nostack)) };
    cs & 3
}
