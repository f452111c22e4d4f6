// SPDX-License-Identifier: GPL-2.0
//! Puts `shim.ld` where the linker finds it; `scripts/build-shim` tells the linker to use it.

fn main() {
    println!("cargo::rerun-if-changed=shim.ld");
    println!("cargo::rustc-link-search={}", env!("CARGO_MANIFEST_DIR"));
}
