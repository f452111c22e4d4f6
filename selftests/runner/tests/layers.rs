// SPDX-License-Identifier: GPL-2.0
//! No module of the runner's knows one that knows it, nor one above it on the map in `main.rs`.

#![forbid(unsafe_code)]

#[test]
fn each_layer_knows_only_those_below_it() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/src/main.rs");
    assert_eq!(layers::problems(root), [""; 0]);
}
