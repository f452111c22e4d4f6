// SPDX-License-Identifier: GPL-2.0

//! The crates of this folder.

const NONE: [&str; 0] = [];

#[test]
fn the_module() {
    assert_eq!(layers::problems("../lg/lg.rs"), NONE);
}

#[test]
fn its_pure_half() {
    assert_eq!(layers::problems("../lg-core/src/lib.rs"), NONE);
}

#[test]
fn the_guests_crate() {
    assert_eq!(layers::problems("../lguest-guest/src/lib.rs"), NONE);
}

#[test]
fn what_all_guests_call() {
    assert_eq!(layers::problems("../lguest-call/src/lib.rs"), NONE);
}

#[test]
fn the_shim() {
    assert_eq!(layers::problems("../xen-shim/src/main.rs"), NONE);
}

#[test]
fn the_shims_pure_half() {
    assert_eq!(layers::problems("../xen-core/src/lib.rs"), NONE);
}

#[test]
fn this_one() {
    assert_eq!(layers::problems("src/lib.rs"), NONE);
}
