// SPDX-License-Identifier: GPL-2.0
//! A hostile Guest is a set of crimes, of which the command line names one (`crime=NAME`). The runner knows how each must
//! end: dead with a reason, or, where the processor answers a crime with an exception, with status 0 after the Guest has
//! seen that exception.

#![no_std]

use lguest_guest::{command_line, println};

/// A name and what is done under it.
pub type Crime = (&'static str, fn());

/// Commits the crime that the command line names. Status 0: the Guest survived it.
pub fn commit(crimes: &[Crime]) -> u8 {
    let name = command_line()
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("crime="))
        .expect("the command line has no crime=NAME");
    let crime = crimes.iter().find(|(known, _)| *known == name);
    let (_, crime) = crime.unwrap_or_else(|| panic!("there is no crime {name:?} here"));
    crime();
    println!("{name}: survived");
    0
}
