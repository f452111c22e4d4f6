// SPDX-License-Identifier: GPL-2.0
//! A bare kernel of Xen's ABI, as small as it can be: hypercalls, exceptions that are caught, programs, and text. What is
//! bad about it is in its programs (`src/bin`), of which the command line names a crime (`crime=NAME`) as for the hostile
//! Guests of lg's own contract. It ends by powering off, or by a crash if something is not as it should be.

#![no_std]

// The functions that compiled code calls.
use lguest_call as _;

mod boot;
mod tables;
mod trap;

pub use boot::{call, crash, power_off, print, start_info, Buffer, BASE};
pub use tables::{entry, gpa_of, map_program, page, Page, PROGRAM, PROGRAM_STACK};
pub use trap::{catch, peek, poke, program, set_traps, Caught, FAILSAFE, SYSTEM_CALL};

/// Errors that a hypercall returns.
pub use xen_abi::number::error;

/// Prints a line on the console.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {
        $crate::print(format_args!("{}\n", format_args!($($arguments)*)))
    };
}

/// A name and what is done under it.
pub type Crime = (&'static str, fn());

/// Commits the crime that the command line names, and powers off.
pub fn commit(crimes: &[Crime]) -> ! {
    let line = &start_info().cmd_line;
    let end = line.iter().position(|&byte| byte == 0).unwrap_or(0);
    let line = core::str::from_utf8(&line[..end]).unwrap_or("");
    let name = line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("crime="))
        .expect("the command line has no crime=NAME");
    let crime = crimes.iter().find(|(known, _)| *known == name);
    let (_, crime) = crime.unwrap_or_else(|| panic!("there is no crime {name:?} here"));
    crime();
    println!("{name}: survived");
    power_off()
}

/// Makes `fn main() -> !` the kernel's program.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[no_mangle]
        extern "C" fn xen_main() -> ! {
            let main: fn() -> ! = $main;
            main()
        }
    };
}

/// A generator of numbers that look random (xorshift64*), for tests that must be repeatable.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Addresses at which a pointer must not be: user mode's half without a page, the hole, the switcher's slot, numbers that
/// are no addresses, and the end of them.
pub const BAD_POINTERS: [u64; 12] = [
    1,
    0x40_0000,
    0x7fff_ffff_f000,
    1 << 47,
    1 << 63,
    0xffff_8000_0000_0000,
    0xffff_8080_0000_0000,
    0xffff_8700_0000_0000,
    0xffff_8700_4000_0000,
    0xffff_8780_0000_0000,
    0xffff_c000_0000_0000,
    u64::MAX,
];
