// SPDX-License-Identifier: GPL-2.0
//! Makes the Rust of the contract from its C header with the `bindgen` program.

use std::path::PathBuf;
use std::process::Command;

const HEADERS: [&str; 2] = ["src/abi.h", "../../include/uapi/linux/lguest.h"];

fn main() {
    for header in HEADERS {
        println!("cargo::rerun-if-changed={header}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join("abi.rs");
    let status = Command::new("bindgen")
        .args([
            "--use-core",
            "--with-derive-default",
            "--with-derive-partialeq",
            "--default-enum-style=consts",
        ])
        .args(["--allowlist-item=(LGUEST|LHCALL|lguest)_.*|boot_params|setup_header"])
        .args(["--rust-target=1.82", "--rust-edition=2021"])
        .arg(HEADERS[0])
        .arg("-o")
        .arg(out)
        // The layout is that of all x86-64; the headers are Linux's.
        .args(["--", "--target=x86_64-unknown-linux-gnu"])
        .status()
        .expect(
            "cannot run bindgen, which makes the Rust of lguest.h; install the package `bindgen`",
        );
    assert!(status.success(), "bindgen failed on {}", HEADERS[0]);
}
