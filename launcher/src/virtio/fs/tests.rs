// SPDX-License-Identifier: GPL-2.0
//! A Guest's driver that mounts a share, and asks what a kernel asks, or what none would.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fuse_backend_rs::abi::fuse_abi::Opcode;
use nix::libc;
use proptest::prelude::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_NEXT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

use super::super::driver::{Driver, SIZE, WRITE};
use super::*;
use crate::fs::host;
use crate::fs::server::Limits;

const QUEUE: usize = 1;
const REQUEST: u64 = 0xa_0000;
const ANSWER: u64 = 0xc_0000;
const ANSWER_SIZE: u32 = 0x2_0000;
const ROOT: u64 = 1;
/// `struct fuse_entry_out`, and where the attributes are in it.
const ENTRY_SIZE: usize = 128;
const ENTRY_ATTRIBUTES: usize = 40;
const LIMITS: Limits = Limits {
    inodes: 64,
    handles: 32,
};

/// An error number of the Host's, which is what the Guest sees.
type Errno = i32;

/// A share in a directory of its own, with something beside it that is not shared.
struct Client {
    outside: TempDir,
    driver: Driver,
    unique: u64,
}

fn client(read_only: bool) -> Client {
    let outside = TempDir::new().unwrap();
    let shared = outside.as_path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(outside.as_path().join("secret"), "outside").unwrap();
    let root = host::open_root(&shared).unwrap();
    let files = FileServer::new(root, read_only, LIMITS).unwrap();
    let mut client = Client {
        driver: Driver::new(Fs::new("tag", files), 0),
        outside,
        unique: 0,
    };
    let init = words(&[7, 38, 1 << 16, u32::MAX]);
    client.ask(Opcode::Init, 0, &[&init, &[0; 48]]).unwrap();
    client
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn long_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A name as it travels.
fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

impl Client {
    fn shared(&self) -> PathBuf {
        self.outside.as_path().join("shared")
    }

    /// Sends a request. The answer without its header, or the error; None if there is no answer.
    fn send(
        &mut self,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: u32,
    ) -> Option<Result<Vec<u8>, Errno>> {
        self.unique += 1;
        let length = 40 + body.len() as u32;
        let ids = [
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
            1,
            0,
        ];
        let head = [
            words(&[length, opcode]),
            longs(&[self.unique, node]),
            words(&ids),
        ];
        let request = [&head.concat(), body].concat();
        let driver = &mut self.driver;
        driver
            .memory
            .write_slice(&request, GuestAddress(REQUEST))
            .unwrap();
        let next = VRING_DESC_F_NEXT as u16;
        driver.descriptor(QUEUE, 0, REQUEST, request.len() as u32, next, 1);
        driver.descriptor(QUEUE, 1, ANSWER, room, WRITE, 0);
        driver.offer(QUEUE, 0);
        driver.mmio.process(QUEUE);
        assert!(!driver.needs_reset());

        let ring = driver.rings[QUEUE];
        let slot = u64::from(ring.offered.wrapping_sub(1) % SIZE);
        let [head, length]: [u32; 2] = driver
            .memory
            .read_obj(GuestAddress(ring.used() + 4 + 8 * slot))
            .unwrap();
        assert_eq!(head, 0);
        assert!(length <= room);
        if length == 0 {
            return None;
        }
        let mut answer = vec![0; length as usize];
        driver
            .memory
            .read_slice(&mut answer, GuestAddress(ANSWER))
            .unwrap();
        assert_eq!(word_at(&answer, 0), length);
        assert_eq!(long_at(&answer, 8), self.unique);
        match word_at(&answer, 4) as i32 {
            0 => Some(Ok(answer.split_off(16))),
            error => Some(Err(-error)),
        }
    }

    fn ask(&mut self, opcode: Opcode, node: u64, parts: &[&[u8]]) -> Result<Vec<u8>, Errno> {
        let body = parts.concat();
        self.send(opcode as u32, node, &body, ANSWER_SIZE)
            .expect("an answer")
    }

    fn look_up(&mut self, parent: u64, what: &str) -> Result<u64, Errno> {
        let entry = self.ask(Opcode::Lookup, parent, &[&name(what)])?;
        assert_eq!(entry.len(), ENTRY_SIZE);
        Ok(long_at(&entry, 0))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, Errno> {
        let open = self.ask(Opcode::Open, node, &[&words(&[flags as u32, 0])])?;
        Ok(long_at(&open, 0))
    }

    fn create(&mut self, parent: u64, what: &str, flags: i32) -> Result<(u64, u64), Errno> {
        let arguments = words(&[flags as u32, 0o100_644, 0, 0]);
        let answer = self.ask(Opcode::Create, parent, &[&arguments, &name(what)])?;
        Ok((long_at(&answer, 0), long_at(&answer, ENTRY_SIZE)))
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let place = longs(&[handle, offset]);
        self.ask(Opcode::Read, node, &[&place, &words(&[size, 0]), &[0; 16]])
    }

    fn write(
        &mut self,
        handle: u64,
        offset: u64,
        flags: [i32; 2],
        data: &[u8],
    ) -> Result<u32, Errno> {
        let [write, open] = flags.map(|flags| flags as u32);
        let place = longs(&[handle, offset]);
        let size = words(&[data.len() as u32, write, 0, 0, open, 0]);
        let answer = self.ask(Opcode::Write, 0, &[&place, &size, data])?;
        Ok(word_at(&answer, 0))
    }

    fn size_of(&mut self, node: u64, handle: Option<u64>) -> Result<u64, Errno> {
        let arguments = words(&[handle.is_some().into(), 0]);
        let handle = longs(&[handle.unwrap_or(0)]);
        let answer = self.ask(Opcode::Getattr, node, &[&arguments, &handle])?;
        Ok(long_at(&answer, 16 + 8))
    }

    fn forget(&mut self, node: u64, count: u64) {
        let none = self.send(Opcode::Forget as u32, node, &longs(&[count]), 0);
        assert!(none.is_none());
    }

    fn open_directory(&mut self, node: u64) -> Result<u64, Errno> {
        let open = self.ask(Opcode::Opendir, node, &[&[0; 8]])?;
        Ok(long_at(&open, 0))
    }

    /// Some entries: number of the inode if that was asked for, offset of the next, name.
    fn read_directory(&mut self, handle: u64, offset: u64, plus: bool) -> Vec<(u64, u64, String)> {
        let place = longs(&[handle, offset]);
        let size = words(&[4096, 0]);
        let opcode = if plus {
            Opcode::Readdirplus
        } else {
            Opcode::Readdir
        };
        let answer = self.ask(opcode, ROOT, &[&place, &size, &[0; 16]]).unwrap();
        let skip = if plus { ENTRY_SIZE } else { 0 };
        let mut entries = Vec::new();
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let node = if plus { long_at(rest, 0) } else { 0 };
            let entry = &rest[skip..];
            let length = word_at(entry, 16) as usize;
            let name = String::from_utf8(entry[24..24 + length].to_vec()).unwrap();
            entries.push((node, long_at(entry, 8), name));
            rest = &rest[skip + (24 + length).next_multiple_of(8)..];
        }
        entries
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), Errno> {
        let arguments = [longs(&[to.0]), words(&[flags, 0])].concat();
        self.ask(
            Opcode::Rename2,
            from.0,
            &[&arguments, &name(from.1), &name(to.1)],
        )
        .map(drop)
    }
}

#[test]
fn the_tag_is_in_the_configuration_space() {
    let client = client(false);
    let mut config = [0xff; 44];
    client.driver.mmio.load(0x100, &mut config);
    assert_eq!(config[..4], *b"tag\0");
    assert_eq!(word_at(&config, 36), 1);
    assert_eq!(word_at(&config, 40), 0);
}

#[test]
fn a_file_is_made_written_read_and_cut() {
    let mut client = client(false);
    let path = client.shared().join("file");
    let (node, handle) = client.create(ROOT, "file", libc::O_RDWR).unwrap();
    assert_eq!(client.write(handle, 0, [0, 0], b"hello, world"), Ok(12));
    assert_eq!(fs::read(&path).unwrap(), b"hello, world");
    assert_eq!(client.read(node, handle, 7, 100).unwrap(), b"world");
    assert_eq!(client.read(node, handle, 100, 100).unwrap(), b"");
    // Behind 4 GiB.
    assert_eq!(client.write(handle, 5 << 30, [0, 0], b"x"), Ok(1));
    assert_eq!(client.size_of(node, None), Ok((5 << 30) + 1));
    let size = [words(&[1 << 3, 0]), longs(&[0, 5]), vec![0; 64]].concat();
    client.ask(Opcode::Setattr, node, &[&size]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    client
        .ask(Opcode::Fsync, node, &[&longs(&[handle, 0])])
        .unwrap();
    let release = [longs(&[handle]), vec![0; 16]].concat();
    client.ask(Opcode::Release, node, &[&release]).unwrap();
    assert_eq!(client.read(node, handle, 0, 1), Err(libc::EBADF));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut client = client(false);
    let long = "x".repeat(256);
    let bad = ["", ".", "..", "../secret", "/", "/etc/passwd", "a/b", &long];
    for what in bad {
        let expected = if what.len() > 255 {
            libc::ENAMETOOLONG
        } else {
            libc::EINVAL
        };
        assert_eq!(client.look_up(ROOT, what), Err(expected), "{what}");
        assert_eq!(client.create(ROOT, what, 0), Err(expected), "{what}");
        let name = name(what);
        for (opcode, arguments) in [
            (Opcode::Mkdir, words(&[0o755, 0])),
            (Opcode::Mknod, words(&[0o100_644, 0, 0, 0])),
            (Opcode::Unlink, vec![]),
            (Opcode::Rmdir, vec![]),
            (Opcode::Link, longs(&[ROOT])),
            (Opcode::Symlink, vec![]),
        ] {
            let target: &[u8] = if opcode as u32 == Opcode::Symlink as u32 {
                b"/\0"
            } else {
                b""
            };
            let result = client.ask(opcode, ROOT, &[&arguments, &name, target]);
            assert_eq!(result, Err(expected), "{} {what}", opcode as u32);
        }
        fs::write(client.shared().join("mine"), "").unwrap();
        assert_eq!(
            client.rename((ROOT, "mine"), (ROOT, what), 0),
            Err(expected)
        );
        assert_eq!(
            client.rename((ROOT, what), (ROOT, "mine"), 0),
            Err(expected)
        );
    }
    assert_eq!(fs::read_dir(client.outside.as_path()).unwrap().count(), 2);
}

#[test]
fn what_is_shared_read_only_stays_as_it_is() {
    let mut client = client(true);
    let file = client.shared().join("file");
    fs::write(&file, "content").unwrap();
    let node = client.look_up(ROOT, "file").unwrap();
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_TRUNC,
        libc::O_WRONLY | libc::O_APPEND,
    ] {
        assert_eq!(client.open(node, flags), Err(libc::EROFS));
    }
    let handle = client.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(node, handle, 0, 100).unwrap(), b"content");
    assert_eq!(client.write(handle, 0, [0, 0], b"x"), Err(libc::EROFS));
    assert_eq!(client.create(ROOT, "new", libc::O_RDONLY), Err(libc::EROFS));
    let (new, old) = (name("new"), name("file"));
    for (opcode, node, parts) in [
        (Opcode::Setattr, node, [vec![0; 88], vec![], vec![]]),
        (
            Opcode::Mkdir,
            ROOT,
            [words(&[0o755, 0]), new.clone(), vec![]],
        ),
        (
            Opcode::Mknod,
            ROOT,
            [words(&[0o100_644, 0, 0, 0]), new.clone(), vec![]],
        ),
        (Opcode::Symlink, ROOT, [new.clone(), old.clone(), vec![]]),
        (Opcode::Link, ROOT, [longs(&[node]), new.clone(), vec![]]),
        (Opcode::Unlink, ROOT, [old.clone(), vec![], vec![]]),
        (Opcode::Rmdir, ROOT, [old.clone(), vec![], vec![]]),
        (
            Opcode::Rename,
            ROOT,
            [longs(&[ROOT]), old.clone(), new.clone()],
        ),
        (
            Opcode::Rename2,
            ROOT,
            [longs(&[ROOT, 0]), old.clone(), new.clone()],
        ),
        (
            Opcode::Setxattr,
            node,
            [words(&[1, 0]), name("user.x"), b"v".to_vec()],
        ),
        (Opcode::Removexattr, node, [name("user.x"), vec![], vec![]]),
        (
            Opcode::Fallocate,
            node,
            [longs(&[handle, 0, 1 << 20, 0]), vec![], vec![]],
        ),
    ] {
        let [a, b, c] = &parts;
        let result = client.ask(opcode, node, &[a, b, c]);
        assert_eq!(result, Err(libc::EROFS), "{}", opcode as u32);
    }
    assert_eq!(fs::read(&file).unwrap(), b"content");
    assert_eq!(fs::read_dir(client.shared()).unwrap().count(), 1);
}

#[test]
fn special_files_are_neither_opened_nor_made() {
    let mut client = client(false);
    let fifo = client.shared().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/etc/passwd", client.shared().join("link")).unwrap();
    for what in ["fifo", "link"] {
        let node = client.look_up(ROOT, what).unwrap();
        // This would block, were the FIFO opened.
        assert_eq!(client.open(node, libc::O_RDONLY), Err(libc::ENXIO));
        assert_eq!(client.create(ROOT, what, libc::O_RDWR), Err(libc::ENXIO));
    }
    for (mode, expected) in [
        (libc::S_IFCHR, Err(libc::EPERM)),
        (libc::S_IFBLK, Err(libc::EPERM)),
        (libc::S_IFIFO, Ok(())),
    ] {
        let arguments = words(&[mode | 0o600, 0x103, 0, 0]);
        let result = client.ask(Opcode::Mknod, ROOT, &[&arguments, &name("node")]);
        assert_eq!(result.map(drop), expected);
    }
}

#[test]
fn symbolic_links_are_content() {
    let mut client = client(false);
    let made = client
        .ask(Opcode::Symlink, ROOT, &[&name("out"), &name("../secret")])
        .unwrap();
    let node = long_at(&made, 0);
    assert_eq!(
        client.ask(Opcode::Readlink, node, &[]).unwrap(),
        b"../secret"
    );
    assert_eq!(client.look_up(node, "x"), Err(libc::ENOTDIR));
    let file = client.create(ROOT, "file", 0).unwrap().0;
    assert_eq!(client.ask(Opcode::Readlink, file, &[]), Err(libc::EINVAL));
    // Permissions and another name are the link's own.
    client
        .ask(Opcode::Link, ROOT, &[&longs(&[node]), &name("again")])
        .unwrap();
    assert!(fs::symlink_metadata(client.shared().join("again"))
        .unwrap()
        .is_symlink());
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let mut client = client(false);
    let shared = client.shared();
    fs::create_dir(shared.join("d")).unwrap();
    fs::write(shared.join("d/secret"), "inside").unwrap();
    symlink(client.outside.as_path(), shared.join("l")).unwrap();
    let end = AtomicBool::new(false);
    let mut reached = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            let (directory, link) = (shared.join("d"), shared.join("l"));
            while !end.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &directory,
                    rustix::fs::CWD,
                    &link,
                    exchange,
                )
                .unwrap();
            }
        });
        for _ in 0..3000 {
            for what in ["d", "l"] {
                let Ok(directory) = client.look_up(ROOT, what) else {
                    continue;
                };
                if let Ok(node) = client.look_up(directory, "secret") {
                    if let Ok(handle) = client.open(node, libc::O_RDONLY) {
                        assert_eq!(client.read(node, handle, 0, 100).unwrap(), b"inside");
                        let release = [longs(&[handle]), vec![0; 16]].concat();
                        client.ask(Opcode::Release, node, &[&release]).unwrap();
                        reached += 1;
                    }
                    client.forget(node, 1);
                }
                client.forget(directory, 1);
            }
        }
        end.store(true, Ordering::Relaxed);
    });
    assert!(reached > 0);
}

#[test]
fn inodes_are_forgotten_when_the_count_is_right() {
    let mut client = client(false);
    fs::write(client.shared().join("file"), "x").unwrap();
    let node = client.look_up(ROOT, "file").unwrap();
    assert_eq!(client.look_up(ROOT, "file"), Ok(node));
    client.forget(node, 1);
    assert_eq!(client.size_of(node, None), Ok(1));
    // In a batch of several, with one that was never known.
    let batch = [words(&[2, 0]), longs(&[node, 1, 999, 1])].concat();
    assert!(client
        .send(Opcode::BatchForget as u32, 0, &batch, 0)
        .is_none());
    assert_eq!(client.size_of(node, None), Err(libc::ESTALE));
    let again = client.look_up(ROOT, "file").unwrap();
    assert_ne!(again, node);
    client.forget(ROOT, u64::MAX);
    assert_eq!(client.look_up(ROOT, "file"), Ok(again));
}

#[test]
fn many_more_files_than_descriptors() {
    const FILES: usize = 2000;
    for plus in [false, true] {
        let mut client = client(false);
        for n in 0..FILES {
            fs::write(client.shared().join(format!("file{n}")), n.to_string()).unwrap();
        }
        let handle = client.open_directory(ROOT).unwrap();
        let (mut offset, mut found) = (0, Vec::new());
        loop {
            let entries = client.read_directory(handle, offset, plus);
            let Some(last) = entries.last() else { break };
            offset = last.1;
            found.extend(
                entries
                    .into_iter()
                    .filter(|entry| !entry.2.starts_with('.')),
            );
        }
        let names: HashSet<_> = found.iter().map(|entry| &entry.2).collect();
        assert_eq!((found.len(), names.len()), (FILES, FILES));
        for (node, _, what) in &found {
            let known = client.look_up(ROOT, what).unwrap();
            assert!(!plus || known == *node);
        }
        // The first ones have no descriptor any more.
        for what in ["file0", "file1", "file1999"] {
            let node = client.look_up(ROOT, what).unwrap();
            let handle = client.open(node, libc::O_RDONLY).unwrap();
            assert_eq!(
                client.read(node, handle, 0, 10).unwrap(),
                what[4..].as_bytes()
            );
        }
    }
}

#[test]
fn a_file_keeps_its_number_wherever_it_goes() {
    let mut client = client(false);
    let shared = client.shared();
    fs::create_dir(shared.join("d")).unwrap();
    fs::write(shared.join("d/file"), "content").unwrap();
    let directory = client.look_up(ROOT, "d").unwrap();
    let node = client.look_up(directory, "file").unwrap();
    client.rename((ROOT, "d"), (ROOT, "e"), 0).unwrap();
    client
        .rename((directory, "file"), (ROOT, "moved"), 0)
        .unwrap();
    // Push the descriptors out.
    for n in 0..3 * LIMITS.inodes {
        let what = format!("other{n}");
        fs::write(shared.join(&what), "").unwrap();
        client.look_up(ROOT, &what).unwrap();
    }
    assert_eq!(client.size_of(node, None), Ok(7));
    assert_eq!(client.look_up(ROOT, "moved"), Ok(node));
    assert_eq!(client.look_up(ROOT, "e"), Ok(directory));
    // The Host puts another in its place: that is not the one the Guest knows.
    for n in 0..3 * LIMITS.inodes {
        client.look_up(ROOT, &format!("other{n}")).unwrap();
    }
    fs::write(shared.join("other"), "longer content").unwrap();
    fs::rename(shared.join("other"), shared.join("moved")).unwrap();
    assert_eq!(client.size_of(node, None), Err(libc::ESTALE));
    assert_ne!(client.look_up(ROOT, "moved"), Ok(node));
}

#[test]
fn renames_of_both_kinds() {
    let mut client = client(false);
    let (a, _) = client.create(ROOT, "a", 0).unwrap();
    let (b, _) = client.create(ROOT, "b", 0).unwrap();
    assert_eq!(
        client.rename((ROOT, "a"), (ROOT, "b"), libc::RENAME_NOREPLACE),
        Err(libc::EEXIST)
    );
    client
        .rename((ROOT, "a"), (ROOT, "b"), libc::RENAME_EXCHANGE)
        .unwrap();
    assert_eq!(client.look_up(ROOT, "a"), Ok(b));
    assert_eq!(client.look_up(ROOT, "b"), Ok(a));
    assert_eq!(
        client.rename((ROOT, "a"), (ROOT, "c"), libc::RENAME_WHITEOUT),
        Err(libc::EINVAL)
    );
}

#[test]
fn an_open_file_outlives_its_name() {
    let mut client = client(false);
    let (node, handle) = client.create(ROOT, "file", libc::O_RDWR).unwrap();
    client.ask(Opcode::Unlink, ROOT, &[&name("file")]).unwrap();
    assert_eq!(client.write(handle, 0, [0, 0], b"still here"), Ok(10));
    assert_eq!(client.size_of(node, Some(handle)), Ok(10));
    for n in 0..3 * LIMITS.inodes {
        client
            .create(ROOT, &format!("x{n}"), 0)
            .map(|(_, handle)| {
                let release = [longs(&[handle]), vec![0; 16]].concat();
                client.ask(Opcode::Release, 0, &[&release]).unwrap();
            })
            .unwrap();
    }
    assert_eq!(client.size_of(node, None), Ok(10));
    assert_eq!(client.read(node, handle, 0, 100).unwrap(), b"still here");
    assert_eq!(client.look_up(ROOT, "file"), Err(libc::ENOENT));
}

#[test]
fn appending_goes_to_the_end_and_write_back_does_not() {
    const WRITE_CACHE: i32 = 1;
    let mut client = client(false);
    let file = client.shared().join("file");
    fs::write(&file, "0123456789").unwrap();
    let node = client.look_up(ROOT, "file").unwrap();
    let handle = client.open(node, libc::O_RDWR | libc::O_APPEND).unwrap();
    // Where the Guest thinks that the end is does not matter.
    client
        .write(handle, 3, [0, libc::O_APPEND], b"end")
        .unwrap();
    client
        .write(handle, 0, [WRITE_CACHE, libc::O_APPEND], b"page")
        .unwrap();
    client.write(handle, 0, [0, libc::O_APPEND], b".").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"page456789end.");
}

#[test]
fn the_cache_is_kept_until_somebody_else_writes() {
    const KEEP_CACHE: u32 = 2;
    let mut client = client(false);
    let file = client.shared().join("file");
    fs::write(&file, "one").unwrap();
    let node = client.look_up(ROOT, "file").unwrap();
    let keeps = |client: &mut Client| {
        let open = client.ask(Opcode::Open, node, &[&words(&[0, 0])]).unwrap();
        word_at(&open, 8) & KEEP_CACHE != 0
    };
    assert!(keeps(&mut client));
    let writer = fs::OpenOptions::new().write(true).open(&file).unwrap();
    writer.write_at(b"three", 0).unwrap();
    assert!(!keeps(&mut client));
    assert!(keeps(&mut client));
}

#[test]
fn nobody_runs_what_was_changed_with_anothers_rights() {
    const KILL_PRIVILEGES: i32 = 4;
    let mut client = client(false);
    let file = client.shared().join("file");
    let (_, handle) = client.create(ROOT, "file", libc::O_RDWR).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    client.write(handle, 0, [KILL_PRIVILEGES, 0], b"x").unwrap();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn too_many_open_files_are_the_guests_problem() {
    let mut client = client(false);
    fs::write(client.shared().join("file"), "").unwrap();
    let node = client.look_up(ROOT, "file").unwrap();
    for _ in 0..LIMITS.handles {
        client.open(node, 0).unwrap();
    }
    assert_eq!(client.open(node, 0), Err(libc::ENFILE));
    assert_eq!(client.create(ROOT, "new", 0), Err(libc::ENFILE));
    assert!(!client.shared().join("new").exists());
    // And so are files without names that are never forgotten.
    let mut results = HashSet::new();
    for n in 0..3 * LIMITS.inodes {
        let what = format!("n{n}");
        let made = client.ask(Opcode::Mkdir, ROOT, &[&words(&[0o755, 0]), &name(&what)]);
        let removed = client.ask(Opcode::Rmdir, ROOT, &[&name(&what)]);
        results.insert((made.err(), removed.err()));
    }
    assert!(results.contains(&(None, None)));
    // After a reset the Guest has nothing.
    client.send(Opcode::Destroy as u32, 0, &[], ANSWER_SIZE);
    assert_eq!(client.size_of(node, None), Err(libc::ESTALE));
    client.look_up(ROOT, "file").unwrap();
}

#[test]
fn the_kernels_own_file_systems_are_empty_directories() {
    let root = host::open_root(Path::new("/")).unwrap();
    let files = FileServer::new(root, true, LIMITS).unwrap();
    let mut client = Client {
        driver: Driver::new(Fs::new("root", files), 0),
        outside: TempDir::new().unwrap(),
        unique: 0,
    };
    for what in ["proc", "sys"] {
        let node = client.look_up(ROOT, what).unwrap();
        assert_eq!(client.look_up(node, "self"), Err(libc::ENOENT));
        assert_eq!(client.look_up(node, "kernel"), Err(libc::ENOENT));
        let handle = client.open_directory(node).unwrap();
        assert!(client.read_directory(handle, 0, false).is_empty());
    }
    let entry = client.ask(Opcode::Lookup, ROOT, &[&name("proc")]).unwrap();
    let mode = word_at(&entry, ENTRY_ATTRIBUTES + 60);
    assert_eq!(mode & libc::S_IFMT, libc::S_IFDIR);
}

#[test]
fn extended_attributes() {
    let mut client = client(false);
    let (node, _) = client.create(ROOT, "file", 0).unwrap();
    let set = |client: &mut Client, what: &str, value: &[u8]| {
        let arguments = words(&[value.len() as u32, 0]);
        client.ask(Opcode::Setxattr, node, &[&arguments, &name(what), value])
    };
    match set(&mut client, "user.test", b"value") {
        // Not every Host's /tmp can.
        Err(libc::EOPNOTSUPP) => return,
        result => result.map(drop).unwrap(),
    }
    let get = |client: &mut Client, size| {
        client.ask(
            Opcode::Getxattr,
            node,
            &[&words(&[size, 0]), &name("user.test")],
        )
    };
    assert_eq!(word_at(&get(&mut client, 0).unwrap(), 0), 5);
    assert_eq!(get(&mut client, 100).unwrap(), b"value");
    assert_eq!(get(&mut client, 2), Err(libc::ERANGE));
    assert_eq!(get(&mut client, u32::MAX).unwrap(), b"value");
    let list = client
        .ask(Opcode::Listxattr, node, &[&words(&[100, 0])])
        .unwrap();
    assert!(list.windows(10).any(|name| name == b"user.test\0"));
    client
        .ask(Opcode::Removexattr, node, &[&name("user.test")])
        .unwrap();
    assert_eq!(get(&mut client, 100), Err(libc::ENODATA));
}

/// What a Guest that means harm might put where a name belongs.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"..\0".to_vec()),
        Just(b"../secret\0".to_vec()),
        Just(b"file\0".to_vec()),
        Just(b"d\0".to_vec()),
        Just(b"file\0d\0".to_vec()),
        Just(b"/etc/passwd\0file\0".to_vec()),
        prop::collection::vec(any::<u8>(), 0..300),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any requests: no panic, an end, and nothing outside is touched.
    #[test]
    fn hostile_requests(
        requests in prop::collection::vec(
            (
                prop_oneof![0u32..55, any::<u32>()],
                prop_oneof![0u64..12, any::<u64>()],
                prop::collection::vec(prop_oneof![0u64..6, any::<u64>()], 0..12),
                any_name(),
                prop_oneof![Just(ANSWER_SIZE), 0u32..200],
            ),
            1..60,
        ),
        read_only in any::<bool>(),
    ) {
        let mut client = client(read_only);
        fs::write(client.shared().join("file"), "content").unwrap();
        fs::create_dir(client.shared().join("d")).unwrap();
        for (opcode, node, numbers, name, room) in requests {
            // Whether there is an answer is not asked.
            let body = [longs(&numbers), name].concat();
            let _ = client.send(opcode, node, &body, room);
        }
        prop_assert_eq!(fs::read_dir(client.outside.as_path()).unwrap().count(), 2);
        prop_assert_eq!(fs::read(client.outside.as_path().join("secret")).unwrap(), b"outside");
        if read_only {
            prop_assert_eq!(fs::read(client.shared().join("file")).unwrap(), b"content");
        }
    }
}
