// SPDX-License-Identifier: GPL-2.0
//! What a file system must do, in the current directory.

use crate::sys::{check, Map, PAGE};
use crate::Test;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::time::{Duration, SystemTime};

pub(crate) const TESTS: &[Test] = &[
    ("a shared mapping", shared_mapping),
    ("a private mapping", private_mapping),
    ("beyond 4 GiB", beyond_4_gib),
    ("a file without a name", without_a_name),
    ("appending", appending),
    ("renames", renames),
    ("links", links),
    ("permissions", permissions),
    ("extended attributes", attributes),
    ("times", times),
    ("nothing is from the future", no_future),
    ("holes", holes),
    (
        "a directory that shrinks while it is read",
        shrinking_directory,
    ),
    ("fsync", fsync),
];

fn open(path: &str) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap()
}

/// What is stored to the mapping is in the file, which stays there for others to look at.
fn shared_mapping() {
    let file = open("mapped");
    file.set_len(3 * PAGE as u64).unwrap();
    file.write_all_at(b"written", PAGE as u64).unwrap();
    let map = Map::new(3 * PAGE, libc::MAP_SHARED, file.as_raw_fd());
    assert_eq!(map.get(PAGE).to_le_bytes(), *b"written\0");
    map.set(2 * PAGE, u64::from_le_bytes(*b"mapped!\n"));
    // SAFETY: our own mapping.
    check("msync", unsafe {
        libc::msync(map.start().cast(), 3 * PAGE, libc::MS_SYNC)
    });
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 2 * PAGE as u64).unwrap();
    assert_eq!(bytes, *b"mapped!\n");
}

fn private_mapping() {
    let file = open("private");
    file.set_len(PAGE as u64).unwrap();
    let map = Map::new(PAGE, libc::MAP_PRIVATE, file.as_raw_fd());
    map.set(0, 1);
    drop(map);
    let mut bytes = [1; 8];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 8]);
    fs::remove_file("private").unwrap();
}

fn beyond_4_gib() {
    const FAR: u64 = (5 << 30) + 123;
    let file = open("large");
    file.write_all_at(b"far away", FAR).unwrap();
    assert_eq!(file.metadata().unwrap().len(), FAR + 8);
    assert!(file.metadata().unwrap().blocks() < 1000, "it is sparse");
    // SAFETY: takes numbers only.
    let data = check("lseek", unsafe {
        libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA)
    });
    assert!(
        (1..=FAR).contains(&(data as u64)),
        "the hole ends at {data}"
    );
    drop(file);
    let mut bytes = [0; 8];
    let file = File::open("large").unwrap();
    file.read_exact_at(&mut bytes, FAR).unwrap();
    assert_eq!(bytes, *b"far away");
    file.read_exact_at(&mut bytes, FAR - (1 << 30)).unwrap();
    assert_eq!(bytes, [0; 8]);
    fs::remove_file("large").unwrap();
}

fn without_a_name() {
    let mut file = open("unlinked");
    fs::remove_file("unlinked").unwrap();
    assert_eq!(
        File::open("unlinked").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    file.write_all(b"still here").unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.nlink()), (10, 0));
    file.set_len(5).unwrap();
    let mut bytes = [0; 5];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, *b"still");
}

fn appending() {
    let append = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open("log")
            .unwrap()
    };
    let (mut one, mut other) = (append(), append());
    for _ in 0..10 {
        one.write_all(b"one\n").unwrap();
        other.write_all(b"other\n").unwrap();
    }
    assert_eq!(
        fs::read_to_string("log").unwrap(),
        "one\nother\n".repeat(10)
    );
    fs::remove_file("log").unwrap();
}

fn rename(from: &str, to: &str, flags: u32) -> i32 {
    let (from, to) = (CString::new(from).unwrap(), CString::new(to).unwrap());
    let here = libc::AT_FDCWD;
    // SAFETY: both are strings.
    unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), flags) }
}

fn renames() {
    fs::write("a", "a").unwrap();
    fs::write("b", "b").unwrap();
    assert_eq!(rename("a", "b", libc::RENAME_NOREPLACE), -1);
    check("exchange", rename("a", "b", libc::RENAME_EXCHANGE));
    assert_eq!(fs::read("a").unwrap(), b"b");
    let open = File::open("b").unwrap();
    fs::rename("a", "b").unwrap();
    assert_eq!(fs::read("b").unwrap(), b"b");
    let mut old = String::new();
    (&open).read_to_string(&mut old).unwrap();
    assert_eq!(old, "a");
    // A directory moves with what is in it, and not into itself.
    fs::create_dir_all("d/e").unwrap();
    fs::rename("b", "d/e/f").unwrap();
    assert!(fs::rename("d", "d/e/d").is_err());
    fs::rename("d", "moved").unwrap();
    assert_eq!(fs::read("moved/e/f").unwrap(), b"b");
    assert_eq!(
        fs::remove_dir("moved").unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
    fs::remove_dir_all("moved").unwrap();
}

fn links() {
    fs::write("file", "content").unwrap();
    fs::hard_link("file", "hard").unwrap();
    let (file, hard) = (fs::metadata("file").unwrap(), fs::metadata("hard").unwrap());
    assert_eq!((file.ino(), file.nlink()), (hard.ino(), 2));
    fs::remove_file("file").unwrap();
    assert_eq!(fs::metadata("hard").unwrap().nlink(), 1);
    assert_eq!(fs::read("hard").unwrap(), b"content");

    symlink("hard", "soft").unwrap();
    symlink("/nowhere", "dangling").unwrap();
    assert_eq!(fs::read("soft").unwrap(), b"content");
    assert_eq!(
        fs::read_link("dangling").unwrap().to_str(),
        Some("/nowhere")
    );
    assert!(fs::read("dangling").is_err());
    for name in ["hard", "soft", "dangling"] {
        fs::remove_file(name).unwrap();
    }
}

fn permissions() {
    // SAFETY: takes a number.
    unsafe { libc::umask(0o027) };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o666);
    options.open("modes").unwrap();
    let mode = || fs::metadata("modes").unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o640);
    fs::set_permissions("modes", fs::Permissions::from_mode(0o501)).unwrap();
    assert_eq!(mode(), 0o501);
    assert_eq!(
        options.open("modes").unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    fs::remove_file("modes").unwrap();
}

fn attributes() {
    let file = open("attributes");
    let (fd, name) = (file.as_raw_fd(), c"user.test".as_ptr());
    let mut value = [0u8; 16];
    // SAFETY: all pointers are to as many bytes as the calls are told, or to strings.
    unsafe {
        check(
            "set",
            libc::fsetxattr(fd, name, b"value".as_ptr().cast(), 5, 0),
        );
        let length = libc::fgetxattr(fd, name, value.as_mut_ptr().cast(), 16);
        assert_eq!(check("get", length as i64), 5);
        let length = libc::flistxattr(fd, value.as_mut_ptr().cast(), 16);
        assert!(check("list", length as i64) >= 10);
        check("remove", libc::fremovexattr(fd, name));
        assert_eq!(libc::fgetxattr(fd, name, std::ptr::null_mut(), 0), -1);
    }
    fs::remove_file("attributes").unwrap();
}

fn times() {
    let file = open("times");
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(then).unwrap();
    assert_eq!(fs::metadata("times").unwrap().modified().unwrap(), then);
    (&file).write_all(b"x").unwrap();
    assert!(fs::metadata("times").unwrap().modified().unwrap() > then);
    fs::remove_file("times").unwrap();
}

/// On a share, the time of a new file is the Host's: make(1) complains when ours is behind.
fn no_future() {
    for _ in 0..20 {
        let made = open("new").metadata().unwrap().modified().unwrap();
        if let Ok(ahead) = made.duration_since(SystemTime::now()) {
            panic!("a new file is {ahead:?} in the future");
        }
        fs::remove_file("new").unwrap();
    }
}

fn holes() {
    let file = open("holes");
    file.write_all_at(&[1; 16 * PAGE], 0).unwrap();
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (at, length) = (4 * PAGE as i64, 4 * PAGE as i64);
    // SAFETY: takes numbers only.
    unsafe {
        check("punch", libc::fallocate(file.as_raw_fd(), mode, at, length));
        let hole = libc::lseek(file.as_raw_fd(), 0, libc::SEEK_HOLE);
        assert_eq!(check("lseek", hole), at);
    }
    let mut bytes = [2; 1];
    file.read_exact_at(&mut bytes, 5 * PAGE as u64).unwrap();
    assert_eq!(bytes, [0]);
    assert_eq!(file.metadata().unwrap().len(), 16 * PAGE as u64);
    fs::remove_file("holes").unwrap();
}

fn shrinking_directory() {
    fs::create_dir("shrinking").unwrap();
    for n in 0..500 {
        fs::write(format!("shrinking/{n}"), "").unwrap();
    }
    let mut seen = 0;
    for entry in fs::read_dir("shrinking").unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 500);
    fs::remove_dir("shrinking").unwrap();
}

fn fsync() {
    let file = open("synced");
    (&file).write_all(b"x").unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    File::open(".").unwrap().sync_all().unwrap();
    fs::remove_file("synced").unwrap();
}
