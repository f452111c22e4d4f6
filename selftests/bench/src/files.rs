// SPDX-License-Identifier: GPL-2.0
//! A shared directory: what the Guest's kernel cannot answer by itself.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::clock::measure_all;
use crate::Workload;

const SMALL: usize = 4096;
const LARGE: usize = 1 << 20;
/// Of the one file that is read.
const MEGABYTES: u64 = 8;

/// Works in `directory`, which is empty.
pub(crate) fn workloads(directory: &Path) -> Vec<Workload> {
    let path = directory.join("file");
    let mut buffer = vec![0x5a; LARGE];
    let file = File::create(&path).expect("a file");
    for megabyte in 0..MEGABYTES {
        write(&file, &buffer, megabyte * LARGE as u64);
    }

    let mut workloads = Vec::new();
    let mut run = |name, size, requests, f: &mut dyn FnMut()| {
        let ticks = measure_all(requests, f);
        workloads.push(Workload {
            name,
            size,
            requests,
            ticks,
        });
    };

    let name = CString::new(path.as_os_str().as_bytes()).expect("no byte of it is 0");
    run("stat", 0, 1000, &mut || stat(&name));
    run("open-close", 0, 500, &mut || {
        drop(File::open(&path).expect("open"))
    });
    let new = directory.join("new");
    run("create-unlink", 0, 300, &mut || {
        drop(File::create_new(&new).expect("create"));
        fs::remove_file(&new).expect("unlink");
    });

    // Past the Guest's page cache.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .expect("open");
    let mut blocks = (0..MEGABYTES * (LARGE / SMALL) as u64).cycle();
    let mut block = || blocks.next().expect("it has no end") * SMALL as u64;
    let mut megabytes = (0..MEGABYTES).cycle();
    let mut megabyte = || megabytes.next().expect("it has no end") * LARGE as u64;
    run("read", SMALL, 1000, &mut || {
        read(&file, &mut buffer[..SMALL], block())
    });
    run("write", SMALL, 1000, &mut || {
        write(&file, &buffer[..SMALL], block())
    });
    run("read", LARGE, 40, &mut || {
        read(&file, &mut buffer, megabyte())
    });
    run("write", LARGE, 40, &mut || {
        write(&file, &buffer, megabyte())
    });
    workloads
}

/// Asks the server, whatever the kernel has in its cache.
fn stat(name: &CString) {
    let mut found = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: The name ends as it should, and there is room for what is found.
    let status = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::AT_STATX_FORCE_SYNC,
            libc::STATX_BASIC_STATS,
            found.as_mut_ptr(),
        )
    };
    assert_eq!(status, 0, "statx: {}", std::io::Error::last_os_error());
}

fn read(file: &File, into: &mut [u8], offset: u64) {
    file.read_exact_at(into, offset).expect("read");
}

fn write(file: &File, from: &[u8], offset: u64) {
    file.write_all_at(from, offset).expect("write");
}
