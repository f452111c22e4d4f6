// SPDX-License-Identifier: GPL-2.0
//! Memory keeps what is written to it, whatever the Host does with its pages meanwhile: for selftests/host/src/bin/taken.rs.
//!
//! Round after round it finds in each page what it has left there, and leaves something else; then it tells the round. It
//! powers off when somebody has written to the page before these.

#![no_std]
#![no_main]

use lguest_guest::entry;
use lguest_guest::paging::{gpa_of, gpa_to_ptr, ram_end, PAGE};
use lguest_guest::println;

entry!(main);

/// Where the pages begin.
const FIRST: u64 = 8 << 20;

/// Two words of a page, one of them the last: half a page that is wrong is wrong.
fn words(gpa: u64) -> [*mut u64; 2] {
    [gpa, gpa + PAGE - 8].map(gpa_to_ptr)
}

fn main() -> u8 {
    assert!(gpa_of(main as *const u8) < FIRST);
    let pages = || (FIRST..ram_end()).step_by(PAGE as usize);
    let stop = gpa_to_ptr::<u64>(FIRST - PAGE);
    let mut round = 0u64;
    // SAFETY: RAM past the image that nobody has been given, and where nothing of Rust's is.
    while unsafe { stop.read_volatile() } == 0 {
        for gpa in pages() {
            for word in words(gpa) {
                // SAFETY: as above.
                let found = unsafe { word.read_volatile() };
                let left = if round == 0 { 0 } else { gpa + round };
                assert_eq!(found, left, "at {word:?} in round {round}");
                // SAFETY: as above.
                unsafe { word.write_volatile(gpa + round + 1) };
            }
        }
        round += 1;
        println!("round {round}");
    }
    0
}
