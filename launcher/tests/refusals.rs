// SPDX-License-Identifier: GPL-2.0
//! The program itself: what it refuses before there is a Guest, with which words and which exit
//! status.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A directory of the test's own, which goes away with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn lg(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lg"))
            .args(arguments)
            .current_dir(&self.0)
            .env_remove("KBUILD_OUTPUT")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs lg, which must fail, and print the three lines, with these words on each.
    fn refused(&self, arguments: &[&str], what: &str, why: &str, fix: &str) {
        let output = self.lg(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(output.stdout.is_empty());
        let lines: Vec<_> = text.lines().collect();
        let [first, second, third] = lines[..] else {
            panic!("not three lines: {text}")
        };
        assert!(
            first.starts_with("lg: error[LG0") && first.contains(what),
            "{text}"
        );
        assert!(
            second.starts_with("     why: ") && second.contains(why),
            "{text}"
        );
        assert!(
            third.starts_with("     fix: ") && third.contains(fix),
            "{text}"
        );
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn no_kernel() {
    let scratch = Scratch::new("no_kernel");
    if !fs::exists("/usr/lib/lg/vmlinux").unwrap() {
        scratch.refused(
            &["run"],
            "no kernel",
            "arch/x86/boot/bzImage",
            "lg run KERNEL",
        );
    }
    scratch.refused(
        &["run", "missing"],
        "cannot read missing",
        "No such file",
        "exists",
    );
    scratch.refused(&["run", "."], "cannot read .", "directory", "exists");
}

#[test]
fn not_a_guest() {
    let scratch = Scratch::new("not_a_guest");
    fs::write(scratch.0.join("text"), "hello").unwrap();
    scratch.refused(
        &["run", "text"],
        "cannot run text",
        "neither an ELF",
        "vmlinux",
    );
    // A program of this machine: an ELF file for x86-64, and not a kernel.
    let program = env!("CARGO_BIN_EXE_lg");
    scratch.refused(&["run", program], "cannot run", "fixed addresses", "again");
}

#[test]
fn the_usual_kernels_are_found() {
    let scratch = Scratch::new("usual");
    fs::create_dir_all(scratch.0.join("arch/x86/boot")).unwrap();
    fs::write(scratch.0.join("arch/x86/boot/bzImage"), "not really").unwrap();
    scratch.refused(&["run"], "arch/x86/boot/bzImage", "neither", "vmlinux");
    fs::write(scratch.0.join("vmlinux"), "neither this").unwrap();
    scratch.refused(&["run"], "cannot run vmlinux", "neither", "vmlinux");
}

#[test]
fn command_lines_that_make_no_sense() {
    let scratch = Scratch::new("usage");
    for arguments in [
        &["run", "-m", "lots"][..],
        &["run", "-m", "1M"],
        &["run", "--timeout", "soon"],
        &["run", "one", "two"],
        &["walk"],
        &[],
    ] {
        let output = scratch.lg(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    let help = scratch.lg(&["run", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("Ctrl-a x"));
}
