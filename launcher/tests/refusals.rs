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
        self.refused_as("LG0", arguments, what, why, fix);
    }

    /// The same, with this code, or the beginning of one.
    fn refused_as(&self, code: &str, arguments: &[&str], what: &str, why: &str, fix: &str) {
        let output = self.lg(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(output.stdout.is_empty());
        let lines: Vec<_> = text.lines().collect();
        let [first, second, third] = lines[..] else {
            panic!("not three lines: {text}")
        };
        assert!(
            first.starts_with(&format!("lg: error[{code}")) && first.contains(what),
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

/// An executable for `machine` of `class` (1: 32 bits, 2: 64 bits) whose only segment is itself, at
/// 16 MiB, and whose notes are `notes`.
fn elf(class: u8, machine: u16, notes: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    const BASE: u64 = 16 << 20;
    let notes_at = HEADER + 2 * SEGMENT;
    let length = notes_at + notes.len() as u64;
    let segment = |kind: u32, offset: u64, size: u64| {
        let words = [offset, BASE + offset, BASE + offset, size, size, 4];
        let words = words.into_iter().flat_map(u64::to_le_bytes);
        [kind, 5]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .chain(words)
    };
    let mut file = vec![
        0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    file.extend([2u16, machine].into_iter().flat_map(u16::to_le_bytes));
    file.extend(1u32.to_le_bytes());
    file.extend(
        [BASE + notes_at, HEADER, 0]
            .into_iter()
            .flat_map(u64::to_le_bytes),
    );
    file.extend(0u32.to_le_bytes());
    let sizes = [HEADER as u16, SEGMENT as u16, 2, 64, 0, 0];
    file.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
    file.extend(segment(1, 0, length));
    file.extend(segment(4, notes_at, notes.len() as u64));
    file.extend(notes);
    file
}

/// The note of a Guest that speaks `version` of the ABI and needs `features`.
fn note(version: u32, features: u32) -> Vec<u8> {
    let mut note: Vec<u8> = [7u32, 16, 1]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    note.extend(b"Lguest\0\0");
    note.extend([version, features].into_iter().flat_map(u32::to_le_bytes));
    note.extend((16u64 << 20).to_le_bytes());
    note
}

#[test]
fn kernels_that_cannot_run_here() {
    const X86_64: u16 = 62;
    const AARCH64: u16 = 183;
    const I386: u16 = 3;
    let scratch = Scratch::new("foreign");
    let refused = |code, file: Vec<u8>, why, fix| {
        fs::write(scratch.0.join("kernel"), file).unwrap();
        scratch.refused_as(code, &["run", "kernel"], "cannot run kernel", why, fix);
    };
    refused(
        "LG0006",
        elf(2, AARCH64, &note(1, 0)),
        "machine 183",
        "x86-64",
    );
    refused(
        "LG0007",
        elf(1, I386, &note(1, 0)),
        "32-bit",
        "CONFIG_64BIT",
    );
    refused(
        "LG0010",
        elf(2, X86_64, &[]),
        "no lguest support",
        "lguest-guest",
    );
    refused(
        "LG0011",
        elf(2, X86_64, &note(99, 0)),
        "version 99",
        "install the lg",
    );
    refused(
        "LG0012",
        elf(2, X86_64, &note(1, 4)),
        "features 0x4",
        "install the lg",
    );
    let mut cut = elf(2, X86_64, &note(1, 0));
    cut.truncate(100);
    refused("LG0005", cut, "damaged", "again");
}

#[test]
fn an_initrd_that_is_too_large() {
    let scratch = Scratch::new("initrd");
    fs::write(scratch.0.join("kernel"), elf(2, 62, &note(1, 0))).unwrap();
    let file = fs::File::create(scratch.0.join("large")).unwrap();
    file.set_len(3 << 30).unwrap();
    scratch.refused_as(
        "LG0017",
        &["run", "kernel", "--initrd", "large"],
        "the initrd is too large",
        "3072 MiB",
        "smaller",
    );
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

#[test]
fn disks() {
    let scratch = Scratch::new("disks");
    let file = |name: &str, content: &[u8]| fs::write(scratch.0.join(name), content).unwrap();
    file("odd", &[0; 1000]);
    file("empty", b"");
    file("image.qcow2", &[b"QFI\xfb".as_slice(), &[0; 508]].concat());
    file("good", &[0; 1024]);
    let refused = |disks: &[&str], what, why, fix| {
        let disks = disks.iter().flat_map(|disk| ["--disk", disk]);
        let arguments: Vec<_> = ["run"].into_iter().chain(disks).collect();
        scratch.refused(&arguments, what, why, fix);
    };
    refused(
        &["missing"],
        "missing cannot be a disk",
        "No such file",
        "may read",
    );
    refused(
        &["."],
        "cannot be a disk",
        "neither a file nor",
        "raw image",
    );
    refused(&["odd"], "odd cannot", "1000 bytes", "truncate -s 1024 odd");
    refused(&["empty,ro"], "empty cannot", "empty", "truncate");
    refused(
        &["image.qcow2"],
        "image.qcow2 cannot",
        "qcow2 image",
        "qemu-img convert -O raw image.qcow2 ",
    );
    refused(&["good", "good"], "good cannot", "in use", ",overlay");
    refused(&["good,ro", "good"], "good cannot", "in use", ",overlay");
    refused(&["good,ro"; 27], "27 disks", "26", "leave out");
}

#[test]
fn trees_that_cannot_be_configured() {
    let scratch = Scratch::new("trees");
    scratch.refused_as(
        "LG0046",
        &["config", "."],
        "no kernel tree",
        "Kconfig",
        "TREE",
    );
    fs::write(scratch.0.join("Kconfig"), "").unwrap();
    scratch.refused_as(
        "LG0047",
        &["config"],
        "there is no",
        "configuration",
        "tinyconfig",
    );
    scratch.refused_as(
        "LG0045",
        &["man", "nowhere"],
        "cannot write",
        "No such",
        "write there",
    );
}

#[test]
fn files_of_options() {
    let scratch = Scratch::new("options");
    fs::create_dir(scratch.0.join("below")).unwrap();
    let refused = |code, text: &str, what, why, fix| {
        fs::write(scratch.0.join("below/lg.toml"), text).unwrap();
        let arguments = ["run", "--config", "below/lg.toml"];
        scratch.refused_as(code, &arguments, what, why, fix);
    };
    refused(
        "LG0050",
        "rw = true\nmemory = 1G\n",
        "below/lg.toml:2: this is not TOML",
        "",
        "quotes",
    );
    refused(
        "LG0051",
        "memroy = '1G'",
        "lg.toml:1: there is no option memroy",
        "long options",
        "did you mean memory?",
    );
    refused(
        "LG0052",
        "\nrw = 'yes'",
        "lg.toml:2: rw has the wrong type",
        "a string",
        "--help",
    );
    refused(
        "LG0052",
        "memory = 'lots'",
        "lg.toml:1: memory has a value",
        "512M and 2G",
        "--help",
    );
    // Paths begin at the file's directory.
    refused(
        "LG0003",
        "kernel = 'vmlinux'",
        "cannot read ./below/vmlinux",
        "No such file",
        "exists",
    );
    scratch.refused_as(
        "LG0003",
        &["run", "--config", "missing.toml"],
        "cannot read missing.toml",
        "No such file",
        "exists",
    );
    // The command line counts more.
    scratch.refused(
        &["run", "--config", "below/lg.toml", "below/other"],
        "cannot read below/other",
        "No such file",
        "exists",
    );
}

#[test]
fn what_would_run_is_printed_or_refused() {
    const X86_64: u16 = 62;
    let scratch = Scratch::new("dry_run");
    fs::write(scratch.0.join("kernel"), elf(2, X86_64, &note(1, 0))).unwrap();
    let record = || -> serde_json::Value {
        let record = fs::read(scratch.0.join("record")).unwrap();
        serde_json::from_slice(&record).unwrap()
    };
    let lg = ["run", "--dry-run", "--json", "record", "kernel"];
    let output = scratch.lg(&lg);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("/kernel, a bare guest, entry 0x1000000\n"),
        "{text}"
    );
    let planned = record();
    assert_eq!(planned["reason"], "dry-run");
    assert_eq!(planned["plan"]["linux"], false);
    assert_eq!(planned["plan"]["devices"][0]["window"], "0xd0000000");

    let refused = [&lg[..], &["--", "true"]].concat();
    scratch.refused_as("LG0013", &refused, "runs no commands", "bare", "leave out");
    for (option, value) in [("--root", "/"), ("--rw", "-v"), ("--env", "A=b")] {
        let refused = ["run", "kernel", option, value];
        let fix = format!("leave out {option}");
        scratch.refused_as("LG0055", &refused, option, "bare", &fix);
    }
    let refused = record();
    assert_eq!(refused["status"], 125);
    assert_eq!(refused["code"], "LG0013");
    assert_eq!(refused["plan"], serde_json::Value::Null);
}
