// SPDX-License-Identifier: GPL-2.0
//! Puts `guest.ld` where the linker of a bare kernel finds it; `rust/lguest-guest/guest.toml` tells the linker to use it.

fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
    println!("cargo::rustc-link-search={}", env!("CARGO_MANIFEST_DIR"));
}
