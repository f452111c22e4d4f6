// SPDX-License-Identifier: GPL-2.0
//! These tests try what a file system must do, in the current directory.

use crate::sys::{check, in_child, spawn, wait, Map, PAGE};
use crate::Test;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::{Command, ExitCode};
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
    ("holes", holes),
    (
        "a directory that shrinks while it is read",
        shrinking_directory,
    ),
    ("fsync", fsync),
    ("a file made without a name", made_without_a_name),
    ("when it was made", when_made),
    ("copies", copies),
    ("locks of processes", locks_of_processes),
    ("locks of open files", locks_of_open_files),
    ("who waits for a lock can be interrupted", interrupted_lock),
    ("access control lists", access_control_lists),
    ("a directory of another group", another_group),
];
/// For a share, whose times are the Host's.
pub(crate) const FUTURE: &[Test] = &[("nothing is from the future", no_future)];

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
    let fd = file.as_raw_fd();
    let set = |name: &CStr| {
        // SAFETY: the pointers are to a string, and to as many bytes as the call is told.
        unsafe { libc::fsetxattr(fd, name.as_ptr(), b"value".as_ptr().cast(), 5, 0) }
    };
    let mut name = c"user.test";
    let mut done = set(name);
    // Before Linux 6.6, tmpfs has those of the system alone.
    if done != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
        name = c"trusted.test";
        done = set(name);
    }
    check("set", done);
    let name = name.as_ptr();
    let mut value = [0u8; 16];
    // SAFETY: all pointers are to as many bytes as the calls are told, or to strings.
    unsafe {
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

fn made_without_a_name() {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let mut file = options.custom_flags(libc::O_TMPFILE).open(".").unwrap();
    file.write_all(b"content").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let link = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let (here, name) = (libc::AT_FDCWD, c"named".as_ptr());
    // SAFETY: both are strings.
    check("linkat", unsafe {
        libc::linkat(here, link.as_ptr(), here, name, libc::AT_SYMLINK_FOLLOW)
    });
    assert_eq!(fs::read("named").unwrap(), b"content");
    assert_eq!(fs::metadata("named").unwrap().mode() & 0o7777, 0o600);
    fs::remove_file("named").unwrap();
}

fn when_made() {
    let before = SystemTime::now() - Duration::from_secs(5);
    let file = open("made");
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_modified(then).unwrap();
    let made = fs::metadata("made").unwrap().created().unwrap();
    assert!(made > before, "{made:?}");
    fs::remove_file("made").unwrap();
}

fn copies() {
    let (from, to) = (open("from"), open("to"));
    from.write_all_at(&[7; 4 * PAGE], 0).unwrap();
    let (mut from_offset, mut to_offset) = (PAGE as i64, 0);
    // SAFETY: both offsets are ours.
    let copied = check("copy_file_range", unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &mut from_offset,
            to.as_raw_fd(),
            &mut to_offset,
            2 * PAGE,
            0,
        ) as i64
    });
    assert_eq!(copied, 2 * PAGE as i64);
    assert_eq!(fs::read("to").unwrap(), [7; 2 * PAGE]);
    for name in ["from", "to"] {
        fs::remove_file(name).unwrap();
    }
}

/// Asks for a lock of the bytes in `range`; 0, or errno.
fn lock_range(file: &File, command: i32, lock_type: i32, range: std::ops::Range<i64>) -> i32 {
    let lock = libc::flock {
        l_type: lock_type as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.start,
        l_len: range.end - range.start,
        l_pid: 0,
    };
    // SAFETY: the structure is ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap(),
    }
}

fn locks_of_processes() {
    use libc::{EAGAIN, F_OFD_SETLK, F_RDLCK, F_SETLK, F_SETLKW, F_UNLCK, F_WRLCK};
    let file = open("locked");
    assert_eq!(lock_range(&file, F_SETLK, F_WRLCK, 0..100), 0);
    // As often as it likes.
    assert_eq!(lock_range(&file, F_SETLK, F_WRLCK, 0..100), 0);
    let other = |lock_type, range: std::ops::Range<i64>| {
        in_child(|| {
            let other = open("locked");
            lock_range(&other, F_SETLK, lock_type, range)
        })
    };
    assert_eq!(other(F_WRLCK, 50..60), EAGAIN);
    assert_eq!(other(F_RDLCK, 99..100), EAGAIN);
    assert_eq!(other(F_WRLCK, 100..200), 0);
    // Part of it becomes shared, and part of it free.
    assert_eq!(lock_range(&file, F_SETLK, F_RDLCK, 40..60), 0);
    assert_eq!(lock_range(&file, F_SETLK, F_UNLCK, 60..70), 0);
    assert_eq!(other(F_RDLCK, 40..70), 0);
    assert_eq!(other(F_WRLCK, 60..70), 0);
    assert_eq!(other(F_WRLCK, 40..60), EAGAIN);
    // What a child inherits is the file, not the lock.
    let inherits = in_child(|| lock_range(&file, F_SETLK, F_WRLCK, 0..10));
    assert_eq!(inherits, EAGAIN);
    // An open file's own are none of the process's.
    assert_eq!(lock_range(&file, F_OFD_SETLK, F_WRLCK, 0..10), EAGAIN);
    let own = open("locked");
    assert_eq!(lock_range(&own, F_OFD_SETLK, F_WRLCK, 60..70), 0);
    assert_eq!(lock_range(&file, F_SETLK, F_WRLCK, 60..70), EAGAIN);
    // Who waits gets it from who ends, though a child of his has the file open.
    let holds = Map::shared(PAGE);
    // SAFETY: takes numbers only.
    check("prctl", unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
    });
    let holder = spawn(|| {
        let file = open("locked");
        assert_eq!(lock_range(&file, F_SETLK, F_WRLCK, 200..300), 0);
        let heir = spawn(|| loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        });
        holds.set(0, heir as u64);
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    });
    while holds.get(0) == 0 {
        std::thread::yield_now();
    }
    let waiter = spawn(|| {
        holds.set(8, 1);
        lock_range(&file, F_SETLKW, F_WRLCK, 200..300)
    });
    while holds.get(8) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(other(F_WRLCK, 200..300), EAGAIN);
    // SAFETY: a child of ours.
    check("kill", unsafe { libc::kill(holder, libc::SIGKILL) });
    wait(holder);
    assert_eq!(wait(waiter), 0);
    // It has all of our files open too: what they hold goes when it is gone.
    let heir = holds.get(0) as i32;
    // SAFETY: it is ours since the holder's end.
    check("kill", unsafe { libc::kill(heir, libc::SIGKILL) });
    wait(heir);
    // The first close of the file takes all of the process's.
    drop(open("locked"));
    assert_eq!(other(F_WRLCK, 0..60), 0);
    drop(own);
    assert_eq!(other(F_WRLCK, 60..70), 0);
    fs::remove_file("locked").unwrap();
}

/// 0, or errno.
fn lock_file(file: &File, operation: i32) -> i32 {
    // SAFETY: takes numbers only.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap(),
    }
}

fn locks_of_open_files() {
    use libc::{EAGAIN, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN};
    let (one, other) = (open("locked"), open("locked"));
    assert_eq!(lock_file(&one, LOCK_EX), 0);
    assert_eq!(lock_file(&other, LOCK_SH | LOCK_NB), EAGAIN);
    // Both kinds are independent.
    let range = lock_range(&other, libc::F_SETLK, libc::F_WRLCK, 0..10);
    assert_eq!(range, 0);
    assert_eq!(lock_file(&one, LOCK_SH), 0);
    assert_eq!(lock_file(&other, LOCK_SH | LOCK_NB), 0);
    assert_eq!(lock_file(&one, LOCK_EX | LOCK_NB), EAGAIN);
    assert_eq!(lock_file(&other, LOCK_UN), 0);
    assert_eq!(lock_file(&one, LOCK_EX | LOCK_NB), 0);
    // It stays until the last who has it open closes it.
    let heir = one.try_clone().unwrap();
    drop(one);
    assert_eq!(lock_file(&other, LOCK_EX | LOCK_NB), EAGAIN);
    let inherited = heir.as_raw_fd();
    let waiter = spawn(|| {
        // SAFETY: the child's, which nobody there uses.
        unsafe { libc::close(inherited) };
        lock_file(&open("locked"), LOCK_EX)
    });
    drop(heir);
    assert_eq!(wait(waiter), 0);
    fs::remove_file("locked").unwrap();
}

fn interrupted_lock() {
    extern "C" fn nothing(_: i32) {}
    let file = open("locked");
    assert_eq!(lock_file(&file, libc::LOCK_EX), 0);
    let range = lock_range(&file, libc::F_SETLK, libc::F_WRLCK, 0..10);
    assert_eq!(range, 0);
    let waits = Map::shared(PAGE);
    let asks: [fn() -> i32; 2] = [
        || lock_file(&open("locked"), libc::LOCK_EX),
        || lock_range(&open("locked"), libc::F_SETLKW, libc::F_WRLCK, 0..10),
    ];
    for ask in asks {
        for signal in [libc::SIGUSR1, libc::SIGKILL] {
            waits.set(0, 0);
            let waiter = spawn(|| {
                // SAFETY: a handler that does nothing, and does not restart the call.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = nothing as *const () as usize;
                    libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
                }
                waits.set(0, 1);
                ask()
            });
            while waits.get(0) == 0 {
                std::thread::yield_now();
            }
            // It may come before the wait, so until it is over.
            let status = loop {
                let mut status = 0;
                // SAFETY: a child of ours; writes the status.
                let ended = unsafe {
                    libc::kill(waiter, signal);
                    libc::waitpid(waiter, &mut status, libc::WNOHANG)
                };
                if check("waitpid", ended) != 0 {
                    break status;
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            match signal {
                libc::SIGKILL => assert!(libc::WIFSIGNALED(status)),
                _ => assert_eq!(libc::WEXITSTATUS(status), libc::EINTR),
            }
        }
    }
    fs::remove_file("locked").unwrap();
}

/// Runs a script with locks of both kinds on all of `path`, as soon as nobody else has any.
pub(crate) fn run_with_locks(path: &str, script: &str) -> ExitCode {
    let file = open_to_lock(path);
    assert_eq!(lock_file(&file, libc::LOCK_EX), 0);
    let range = lock_range(&file, libc::F_SETLKW, libc::F_WRLCK, 0..0);
    assert_eq!(range, 0);
    let status = Command::new("sh").args(["-euc", script]).status();
    ExitCode::from(u8::from(!status.unwrap().success()))
}

/// Succeeds if somebody else has locks of both kinds on `path`.
pub(crate) fn is_locked(path: &str) -> ExitCode {
    let file = open_to_lock(path);
    let results = [
        lock_file(&file, libc::LOCK_EX | libc::LOCK_NB),
        lock_range(&file, libc::F_SETLK, libc::F_WRLCK, 0..0),
    ];
    println!("{results:?}");
    ExitCode::from(u8::from(results != [libc::EAGAIN; 2]))
}

fn open_to_lock(path: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap()
}

/// An access control list as it is stored: entries of tag, permissions and id.
fn access_list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn access_control_lists() {
    const NOBODY: u32 = u32::MAX;
    let set = |path: &str, name: &std::ffi::CStr, list: &[u8]| {
        let path = CString::new(path).unwrap();
        // SAFETY: strings, and as many bytes as the call is told.
        check("setxattr", unsafe {
            libc::setxattr(
                path.as_ptr(),
                name.as_ptr(),
                list.as_ptr().cast(),
                list.len(),
                0,
            )
        });
    };
    // A user by name may, within the mask.
    let list = |user: u16, mask: u16| {
        access_list(&[
            (1, 6, NOBODY),
            (2, user, 1000),
            (4, 0, NOBODY),
            (8, 6, 2000),
            (16, mask, NOBODY),
            (32, 0, NOBODY),
        ])
    };
    fs::write("listed", "content").unwrap();
    fs::set_permissions("listed", fs::Permissions::from_mode(0o600)).unwrap();
    let access = c"system.posix_acl_access";
    let may = |user: u32, group: u32, groups: &[u32], write: bool| {
        in_child(|| {
            // SAFETY: takes numbers, and as many of them as it is told.
            unsafe {
                check("setgroups", libc::setgroups(groups.len(), groups.as_ptr()));
                check("setgid", libc::setgid(group));
                check("setuid", libc::setuid(user));
            }
            let opened = OpenOptions::new().read(!write).write(write).open("listed");
            i32::from(opened.is_err())
        }) == 0
    };
    assert!(!may(1000, 1000, &[], false));
    set("listed", access, &list(6, 6));
    assert!(may(1000, 1000, &[], false) && may(1000, 1000, &[], true));
    assert!(may(1001, 2000, &[], true) && may(1001, 1001, &[2000], true));
    assert!(!may(1001, 1001, &[2001], false));
    set("listed", access, &list(6, 4));
    assert!(may(1000, 1000, &[], false) && !may(1000, 1000, &[], true));
    assert!(may(1001, 1001, &[2000], false) && !may(1001, 1001, &[2000], true));
    // The mode is the mask.
    fs::set_permissions("listed", fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!may(1000, 1000, &[], false) && !may(1001, 2000, &[], false));
    fs::remove_file("listed").unwrap();
    // Below a default list the umask does not count.
    fs::create_dir("defaults").unwrap();
    // SAFETY: takes a number.
    unsafe { libc::umask(0o077) };
    let mode = |path: &str| fs::metadata(path).unwrap().mode() & 0o7777;
    fs::write("defaults/before", "").unwrap();
    assert_eq!(mode("defaults/before"), 0o600);
    let default = access_list(&[(1, 7, NOBODY), (4, 5, NOBODY), (32, 4, NOBODY)]);
    set("defaults", c"system.posix_acl_default", &default);
    fs::write("defaults/file", "").unwrap();
    fs::create_dir("defaults/directory").unwrap();
    assert_eq!(mode("defaults/file"), 0o644);
    assert_eq!(mode("defaults/directory"), 0o754);
    fs::remove_dir_all("defaults").unwrap();
}

/// Whoever is in a directory's group, if only by a supplementary one, makes files there: his own, or
/// the group's where the directory says so.
fn another_group() {
    let id = |path: &str| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    for (mode, group) in [(0o770, 1000), (0o2770, 2000)] {
        fs::create_dir("group").unwrap();
        std::os::unix::fs::chown("group", Some(0), Some(2000)).unwrap();
        fs::set_permissions("group", fs::Permissions::from_mode(mode)).unwrap();
        for groups in [&[][..], &[2000]] {
            let made = in_child(|| {
                // SAFETY: takes numbers, and as many of them as it is told.
                unsafe {
                    libc::umask(0);
                    check("setgroups", libc::setgroups(groups.len(), groups.as_ptr()));
                    check("setgid", libc::setgid(1000));
                    check("setuid", libc::setuid(1000));
                }
                let made = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o2770)
                    .open("group/file");
                i32::from(made.is_err() || fs::create_dir("group/directory").is_err())
            });
            assert_eq!(made == 0, !groups.is_empty());
        }
        assert_eq!(id("group/file"), (1000, group, 0o2770));
        assert_eq!(id("group/directory"), (1000, group, 0o777 | mode & 0o2000));
        fs::remove_dir_all("group").unwrap();
    }
}
