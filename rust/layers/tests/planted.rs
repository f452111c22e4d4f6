// SPDX-License-Identifier: GPL-2.0

//! What is wrong is found: small crates with one wrong arrow each.

use layers::problems;
use std::fs;
use std::path::PathBuf;

/// A crate of these files, in a folder of its own.
fn planted(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    for (path, text) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder.join("lib.rs")
}

const ROOT: &str = "//! A crate.\n//! ```text\n//!   top       all\n//!   mid, side  halves\n//!   low       one\n//! ```\n\
    mod low; mod mid; mod side; mod top; pub use low::Deep;\n";

#[test]
fn an_order_that_holds_is_no_problem() {
    let root = planted(
        "holds",
        &[
            ("lib.rs", ROOT),
            ("top.rs", "use crate::{mid::{self, A}, side::B as C, low};"),
            ("mid.rs", "fn f() { crate::low::g() } // crate::top"),
            (
                "side/mod.rs",
                "mod part; const T: &str = \"crate::top\"; #[cfg(test)] mod tests { use crate::top; }",
            ),
            ("side/part.rs", "use crate::Deep; /* /* */ super::super::top */ fn f<'a>(c: &'a char) {}"),
            ("low.rs", "const QUOTE: char = '\"'; const RAW: &str = r#\"crate::top \" \"#;"),
        ],
    );
    assert_eq!(problems(root), [""; 0]);
}

#[test]
fn who_looks_up_is_found() {
    let low = |text| {
        let files = [
            ("lib.rs", ROOT),
            ("top.rs", ""),
            ("mid.rs", ""),
            ("side.rs", ""),
            ("low.rs", text),
        ];
        problems(planted("up", &files))
    };
    let up = ["low names mid, which is above it"];
    assert_eq!(low("use crate::mid::A;"), up);
    assert_eq!(low("use crate::{\n    mid::{A, B}, //\n};"), up);
    assert_eq!(low("fn f() { super::mid::g(); }"), up);
    assert_eq!(low("macro_rules! m { () => { $crate::mid::g() } }"), up);
    assert_eq!(low("#[cfg(test)]\nmod tests {}\nuse crate::mid::*;"), up);
    assert_eq!(
        low("use crate::Unknown;"),
        ["low names something of the root file"]
    );
}

#[test]
fn who_is_not_in_the_map_is_found() {
    let root = ROOT.replace("mod low;", "mod low; mod new;");
    let files = [
        ("lib.rs", root.as_str()),
        ("top.rs", ""),
        ("mid.rs", ""),
        ("side.rs", ""),
        ("low.rs", ""),
        ("new.rs", "use crate::low;"),
    ];
    assert_eq!(
        problems(planted("new", &files)),
        ["new is on no line of the map"]
    );
}

#[test]
fn circles_are_found() {
    let files = [
        ("lib.rs", ROOT),
        ("top.rs", ""),
        ("mid.rs", "use crate::side;"),
        ("side/mod.rs", "mod part; use part::A;"),
        ("side/part.rs", "use crate::mid;"),
        ("low.rs", ""),
    ];
    assert_eq!(
        problems(planted("circle", &files)),
        ["a circle: mid, side, side::part"]
    );
}
