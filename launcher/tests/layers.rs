// SPDX-License-Identifier: GPL-2.0
//! No file of the Launcher's knows one that knows it, and no layer knows one above it: the map is in
//! the first comment of `lib.rs`.

#![forbid(unsafe_code)]

#[test]
fn each_layer_knows_only_those_below_it() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs");
    assert_eq!(layers::problems(root), [""; 0]);
}
