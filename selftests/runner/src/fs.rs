// SPDX-License-Identifier: GPL-2.0
//! Directories of the Host in a Guest: `lg run --share`.

use crate::command::{self, End};
use crate::script::initrd;
use crate::test::{text, Outcome, Row};
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[
    ("as-user", 180, as_user),
    ("locks", 180, locks),
    ("append-only", 180, append_only),
];

/// A directory of a test's own, which goes with this.
struct Directory(String);

impl Directory {
    fn new(name: &str) -> io::Result<Self> {
        let path = format!("/tmp/{name}");
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a Guest with these shares, and `script` in it, which must end with 0.
fn guest(shares: &[&str], script: &str, timeout: Duration) -> Result<String, String> {
    let initrd = initrd().map_err(text)?;
    let mut argv = vec!["lg", "run", "-m", "256M", "--initrd", &initrd];
    argv.extend(shares.iter().flat_map(|share| ["--share", share]));
    argv.extend(["--", "sh", "-euc", script]);
    let finished = command::run(&argv, timeout).map_err(text)?;
    finished.expect(End::Exit(0))?;
    Ok(finished.output)
}

fn expect(what: &str, is: impl AsRef<str>, should: &str) -> Outcome {
    match is.as_ref() {
        is if is == should => Ok(()),
        is => Err(format!("{what}: {is:?} instead of {should:?}")),
    }
}

/// What a user may not do, root in his Guest may not: and what is made there is the user's.
fn as_user(timeout: Duration) -> Outcome {
    let share = Directory::new("users").map_err(text)?;
    std::os::unix::fs::chown(&share.0, Some(1000), Some(1000)).map_err(text)?;
    fs::write(share.path("secret"), "secret\n").map_err(text)?;
    fs::set_permissions(share.path("secret"), Permissions::from_mode(0o600)).map_err(text)?;
    fs::write(share.path("readable"), "content\n").map_err(text)?;
    fs::write(share.path("listed"), "listed\n").map_err(text)?;
    fs::set_permissions(share.path("listed"), Permissions::from_mode(0o640)).map_err(text)?;
    let_user_read(&share.path("listed")).map_err(text)?;
    let script = "
        cd /mnt/src
        cat readable; cat listed
        if echo x >>listed; then exit 5; fi
        echo mine >mine; mkdir -m 2700 own; echo x >own/x; chmod 6755 own/x
        if cat secret; then exit 1; fi
        if echo x >>readable; then exit 2; fi
        if chown 0:0 mine; then exit 3; fi
        if mknod device c 1 3; then exit 4; fi";
    let command = format!(
        "su user -c 'lg run -m 256M --share {}:src -- sh -euc \"{script}\"'",
        share.0
    );
    let finished = command::run(&["sh", "-c", &command], timeout).map_err(text)?;
    finished.expect(End::Exit(0))?;
    for name in ["mine", "own", "own/x"] {
        let owner = fs::metadata(share.path(name)).map_err(text)?.uid();
        expect("the owner", owner.to_string(), "1000")?;
    }
    // A Guest makes no programs that run with the user's rights; a directory's bit is another matter.
    for (name, mode) in [("own", "2700"), ("own/x", "755")] {
        let is = fs::metadata(share.path(name)).map_err(text)?.mode() & 0o7777;
        expect(name, format!("{is:o}"), mode)?;
    }
    let content = fs::read_to_string(share.path("readable")).map_err(text)?;
    expect("the file of root's", content, "content\n")
}

/// An access control list lets user 1000 read a file.
fn let_user_read(path: &str) -> io::Result<()> {
    // Tag, permissions and id of each entry, behind the version: the owner, the user, the group, the
    // mask and others.
    const ENTRIES: [(u16, u16, u32); 5] = [
        (1, 6, u32::MAX),
        (2, 4, 1000),
        (4, 0, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in ENTRIES {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let path = CString::new(path)?;
    let name = c"system.posix_acl_access";
    // SAFETY: two strings, and as many bytes as the call is told.
    let result = unsafe {
        let (path, list, length) = (path.as_ptr(), list.as_ptr().cast(), list.len());
        libc::setxattr(path, name.as_ptr(), list, length, 0)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A lock that one of two Guests or the Host has is nobody else's, and goes with the Guest.
fn locks(timeout: Duration) -> Outcome {
    let share = Directory::new("locks").map_err(text)?;
    let host = fs::File::create(share.path("host")).map_err(text)?;
    // How many of the two kinds of locks can be had.
    let lock = |file: &fs::File| {
        let range = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // SAFETY: numbers, and a structure of ours.
        unsafe {
            let of_file = libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0;
            let of_range = libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) == 0;
            u8::from(of_file) + u8::from(of_range)
        }
    };
    let had = lock(&host);
    expect("the host's own locks", had.to_string(), "2")?;
    let initrd = initrd().map_err(text)?;
    let option = format!("{}:src", share.0);
    let start = |script: &str| {
        let script = format!("cd /mnt/src; tests() {{ /selftests/linux-tests \"$@\"; }}; {script}");
        command::start(&[
            "lg", "run", "-m", "128M", "--initrd", &initrd, "--share", &option, "--", "sh", "-euc",
            &script,
        ])
    };
    // The first ends with its locks.
    let first = start("tests --lock ours 'touch locked; until [ -e tried ]; do sleep 0.1; done'");
    let first = first.map_err(text)?;
    let second = start(
        "tests --locked host
        until [ -e locked ]; do sleep 0.1; done
        tests --locked ours
        touch tried; tests --lock ours 'touch got; until [ -e host-tried ]; do sleep 0.1; done'",
    )
    .map_err(text)?;
    first.finish(timeout).map_err(text)?.expect(End::Exit(0))?;
    while !Path::new(&share.path("got")).exists() {
        if second
            .ends_within(Duration::from_millis(20))
            .map_err(text)?
        {
            let finished = second.finish(timeout).map_err(text)?;
            return Err(finished.report("ended without the locks:"));
        }
    }
    let ours = fs::OpenOptions::new()
        .write(true)
        .open(share.path("ours"))
        .map_err(text)?;
    let had = lock(&ours);
    expect("locks beside a guest's", had.to_string(), "0")?;
    fs::write(share.path("host-tried"), "").map_err(text)?;
    second.finish(timeout).map_err(text)?.expect(End::Exit(0))?;
    let had = lock(&ours);
    expect("locks when the guest is gone", had.to_string(), "2")
}

/// A file that can only grow does so from a Guest too, and does nothing else.
fn append_only(timeout: Duration) -> Outcome {
    /// `FS_IOC_SETFLAGS` and `FS_APPEND_FL`.
    const SET_FLAGS: libc::c_ulong = 0x4008_6602;
    const APPEND: libc::c_long = 0x20;
    let share = Directory::new("append-only").map_err(text)?;
    let log = fs::File::create(share.path("log")).map_err(text)?;
    let set_flags = |flags: libc::c_long| {
        // SAFETY: the call reads one number.
        match unsafe { libc::ioctl(log.as_raw_fd(), SET_FLAGS, &flags) } {
            0 => Ok(()),
            _ => Err(text(io::Error::last_os_error())),
        }
    };
    set_flags(APPEND)?;
    let script = "
        cd /mnt/src
        echo one >>log; echo two >>log
        if echo x >log; then exit 1; fi
        if rm -f log; then exit 2; fi
        cat log";
    let result = guest(&[&format!("{}:src", share.0)], script, timeout);
    set_flags(0)?;
    result?;
    let content = fs::read_to_string(share.path("log")).map_err(text)?;
    expect("the log", content, "one\ntwo\n")
}
