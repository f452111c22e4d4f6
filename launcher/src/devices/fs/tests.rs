// SPDX-License-Identifier: GPL-2.0
//! A Guest's driver that mounts a share, and asks what a kernel asks, or what none would.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fuse_backend_rs::abi::fuse_abi::{Attr, Opcode};
use fuse_backend_rs::api::filesystem::Context;
use nix::libc;
use proptest::prelude::*;
use rustix::fs::{flock, FlockOperation};
use virtio_bindings::virtio_ring::VRING_DESC_F_NEXT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, EventSet};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::devices::fs::host;
use crate::devices::fs::server::{without_set_id_bits, FileServer, Limits};
use crate::devices::testing::driver::{Driver, WRITE};
use crate::devices::Window;

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

const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

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
        let before = self.driver.used_index(QUEUE);
        self.offer(QUEUE, 0, (opcode, node, body), (REQUEST, ANSWER), room);
        // It waits for a lock: see `lock_later`.
        let used = self.driver.used_since(QUEUE, before);
        let &[head, length] = used.first()?;
        assert_eq!(head, 0);
        assert!(length <= room);
        if length == 0 {
            return None;
        }
        let mut answer = vec![0; length as usize];
        self.driver
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

    /// Offers a request, written to these places, in two descriptors from `slot` on.
    fn offer(
        &mut self,
        queue: usize,
        slot: u16,
        (opcode, node, body): (u32, u64, &[u8]),
        (at, answer): (u64, u64),
        room: u32,
    ) {
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
            .write_slice(&request, GuestAddress(at))
            .unwrap();
        let next = VRING_DESC_F_NEXT as u16;
        driver.descriptor(queue, slot, at, request.len() as u32, next, slot + 1);
        driver.descriptor(queue, slot + 1, answer, room, WRITE, 0);
        driver.offer(queue, slot);
        driver.device.process(queue);
        assert!(!driver.needs_reset());
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

/// A lock as the Guest asks for it: of all of the file, by handle and owner.
fn lock(handle: u64, owner: u64, lock_type: i32, flock: bool) -> Vec<u8> {
    let range = longs(&[handle, owner, 0, i64::MAX as u64]);
    [range, words(&[lock_type as u32, 7, flock.into(), 0])].concat()
}

impl Client {
    fn lock(&mut self, node: u64, arguments: &[u8]) -> Result<(), Errno> {
        self.ask(Opcode::Setlk, node, &[arguments]).map(drop)
    }

    /// Asks for a lock that somebody else has. `n`, up to 20, tells these requests apart. The
    /// number of the request.
    fn lock_later(&mut self, n: u16, node: u64, arguments: &[u8]) -> u64 {
        let before = self.driver.used_index(QUEUE);
        let places = (
            0xb_0000 + 0x200 * u64::from(n),
            0xe_0000 + 0x100 * u64::from(n),
        );
        let request = (Opcode::Setlkw as u32, node, arguments);
        self.offer(QUEUE, 2 + 2 * n, request, places, 16);
        assert_eq!(self.driver.used_index(QUEUE), before);
        self.unique
    }

    /// Waits until one of those is answered. Which, and how.
    fn locked(&mut self) -> (u16, Result<(), Errno>) {
        let before = self.driver.used_index(QUEUE);
        let source = self.driver.device.source().expect("the waits have one");
        assert_eq!(source.queue, QUEUE);
        while self.driver.used_index(QUEUE) == before {
            readable(source.fd);
            self.driver.device.process(QUEUE);
        }
        let used = self.driver.used_since(QUEUE, before);
        let [head, length] = used[0];
        assert_eq!((used.len(), length), (1, 16));
        let n = (head as u16 - 2) / 2;
        let mut answer = [0; 16];
        let place = GuestAddress(0xe_0000 + 0x100 * u64::from(n));
        self.driver.memory.read_slice(&mut answer, place).unwrap();
        match word_at(&answer, 4) as i32 {
            0 => (n, Ok(())),
            error => (n, Err(-error)),
        }
    }
}

/// Waits for a descriptor, for a minute at most.
fn readable(fd: std::os::fd::RawFd) {
    let epoll = vmm_sys_util::epoll::Epoll::new().unwrap();
    let event = vmm_sys_util::epoll::EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    assert_eq!(epoll.wait(60_000, &mut [event]).unwrap(), 1, "nothing came");
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

/// A bit for a group that does not run the file marks nothing but, once, a kind of lock; and yet whoever
/// may write there and is not of that group takes it away, as on the Host.
#[test]
fn the_bit_of_a_group_is_for_those_in_it_to_leave() {
    let caller = |uid, gid| Context {
        uid,
        gid,
        ..Context::default()
    };
    let file = |mode, gid| Attr {
        mode,
        gid,
        ..Attr::default()
    };
    let left = |mode, caller: &Context| without_set_id_bits(caller, &file(mode, 50));
    let (root, member, other) = (caller(0, 0), caller(1000, 50), caller(1000, 1000));
    for (mode, by_root, by_member, by_other) in [
        (0o2666, 0o2666, 0o2666, 0o666),
        (0o2676, 0o676, 0o676, 0o676),
        (0o6666, 0o2666, 0o2666, 0o666),
        (0o4666, 0o666, 0o666, 0o666),
        (0o666, 0o666, 0o666, 0o666),
    ] {
        let by_all = [&root, &member, &other].map(|caller| left(mode, caller));
        assert_eq!(by_all, [by_root, by_member, by_other], "{mode:o}");
    }
}

/// A mode as a Guest asks for it, of a server that is nobody's but a user's.
#[test]
fn a_user_gives_away_no_rights() {
    // Only this thread: whoever the test is, it is a user.
    let test = || {
        if nix::unistd::geteuid().is_root() {
            let (user, group) = (
                rustix::fs::Uid::from_raw(1000),
                rustix::fs::Gid::from_raw(1000),
            );
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        }
        let mut client = client(false);
        let mode_of = |client: &Client, what: &str| {
            let metadata = fs::metadata(client.shared().join(what)).unwrap();
            metadata.mode() & 0o7777
        };
        let mode = 0o106_755;
        let created = [words(&[libc::O_RDWR as u32, mode, 0, 0]), name("created")].concat();
        let created = client.ask(Opcode::Create, ROOT, &[&created]).unwrap();
        assert_eq!(mode_of(&client, "created"), 0o755);
        let node = [words(&[mode, 0, 0, 0]), name("node")].concat();
        client.ask(Opcode::Mknod, ROOT, &[&node]).unwrap();
        assert_eq!(mode_of(&client, "node"), 0o755);
        let directory = [words(&[0o2755, 0]), name("directory")].concat();
        let directory = client.ask(Opcode::Mkdir, ROOT, &[&directory]).unwrap();
        let change = |client: &mut Client, node, mode: u32| {
            let new = [words(&[1, 0]), vec![0; 60], words(&[mode]), vec![0; 16]].concat();
            client.ask(Opcode::Setattr, node, &[&new]).unwrap();
        };
        change(&mut client, long_at(&created, 0), 0o6711);
        assert_eq!(mode_of(&client, "created"), 0o711);
        change(&mut client, long_at(&directory, 0), 0o2711);
        assert_eq!(mode_of(&client, "directory"), 0o2711);
    };
    thread::spawn(test).join().unwrap();
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

#[test]
fn a_file_is_made_without_a_name_and_gets_one() {
    const TMPFILE: u32 = 51;
    let mut client = client(false);
    let flags = (libc::O_RDWR | libc::O_TMPFILE) as u32;
    let make = |client: &mut Client, flags: u32| {
        let arguments = [words(&[flags, 0o100_666, 0o027, 0]), name("")].concat();
        let made = client.send(TMPFILE, ROOT, &arguments, ANSWER_SIZE);
        made.expect("an answer")
    };
    let made = make(&mut client, flags).unwrap();
    let (node, handle) = (long_at(&made, 0), long_at(&made, ENTRY_SIZE));
    assert_eq!(client.write(handle, 0, [0, 0], b"content"), Ok(7));
    assert_eq!(fs::read_dir(client.shared()).unwrap().count(), 0);
    // It is not lost among many others.
    for n in 0..3 * LIMITS.inodes {
        let what = format!("other{n}");
        fs::write(client.shared().join(&what), "").unwrap();
        client.look_up(ROOT, &what).unwrap();
    }
    assert_eq!(client.size_of(node, None), Ok(7));
    client
        .ask(Opcode::Link, ROOT, &[&longs(&[node]), &name("named")])
        .unwrap();
    let named = client.shared().join("named");
    assert_eq!(fs::read(&named).unwrap(), b"content");
    assert_eq!(fs::metadata(&named).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(client.look_up(ROOT, "named"), Ok(node));
    // One that must never have a name.
    let made = make(&mut client, flags | libc::O_EXCL as u32).unwrap();
    let link = [longs(&[long_at(&made, 0)]), name("never")].concat();
    assert_eq!(client.ask(Opcode::Link, ROOT, &[&link]), Err(libc::ENOENT));
    assert_eq!(make(&mut self::client(true), flags), Err(libc::EROFS));
}

#[test]
fn when_a_file_was_made() {
    const STATX: u32 = 52;
    let mut client = client(false);
    let (node, handle) = client.create(ROOT, "file", libc::O_RDWR).unwrap();
    client.write(handle, 0, [0, 0], b"12345").unwrap();
    let host = fs::metadata(client.shared().join("file")).unwrap();
    for by_handle in [0, 1] {
        let arguments = [words(&[by_handle, 0]), longs(&[handle, 0])].concat();
        let answer = client.send(STATX, node, &arguments, ANSWER_SIZE);
        let answer = answer.expect("an answer").unwrap();
        assert_eq!(answer.len(), 32 + 256);
        let statx = &answer[32..];
        assert_eq!(word_at(statx, 16), 1, "links");
        assert_eq!(word_at(statx, 28), 0o100_644);
        assert_eq!(long_at(statx, 32), host.ino());
        assert_eq!(long_at(statx, 40), 5);
        // Not every Host's /tmp knows.
        if let Ok(born) = host.created() {
            let born = born.duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(word_at(statx, 0), 0xfff);
            assert_eq!(long_at(statx, 80), born.as_secs());
            assert_eq!(word_at(statx, 88), born.subsec_nanos());
        }
        assert_eq!(long_at(statx, 112), host.mtime() as u64);
    }
}

#[test]
fn the_host_copies_and_writes_out() {
    const COPY_FILE_RANGE: u32 = 47;
    const SYNCFS: u32 = 50;
    let mut client = client(false);
    let (_, from) = client.create(ROOT, "from", libc::O_RDWR).unwrap();
    let (_, to) = client.create(ROOT, "to", libc::O_RDWR).unwrap();
    client.write(from, 0, [0, 0], b"0123456789").unwrap();
    let copy = |client: &mut Client, from, to, flags| {
        let arguments = longs(&[from, 2, 0, to, 1, 5, flags]);
        let copied = client.send(COPY_FILE_RANGE, 0, &arguments, ANSWER_SIZE);
        copied.expect("an answer").map(|answer| long_at(&answer, 0))
    };
    assert_eq!(copy(&mut client, from, to, 0), Ok(5));
    assert_eq!(fs::read(client.shared().join("to")).unwrap(), b"\x0023456");
    assert_eq!(copy(&mut client, from, to, 1), Err(libc::EINVAL));
    assert_eq!(copy(&mut client, from, 999, 0), Err(libc::EBADF));
    let sync = |client: &mut Client| {
        let synced = client.send(SYNCFS, ROOT, &[0; 8], ANSWER_SIZE);
        synced.expect("an answer")
    };
    assert_eq!(sync(&mut client), Ok(vec![]));
    assert_eq!(sync(&mut self::client(true)), Ok(vec![]));
}

#[test]
fn locks_of_ranges_are_the_owners_on_the_host_too() {
    let mut client = client(false);
    let (node, handle) = client.create(ROOT, "file", libc::O_RDWR).unwrap();
    let (write, unlock) = (libc::F_WRLCK, libc::F_UNLCK);
    let other = client.open(node, libc::O_RDWR).unwrap();
    client.lock(node, &lock(handle, 1, write, false)).unwrap();
    // Again, by whichever handle, is no conflict; somebody else's is one.
    client.lock(node, &lock(other, 1, write, false)).unwrap();
    let refused = client.lock(node, &lock(other, 2, write, false));
    assert_eq!(refused, Err(libc::EAGAIN));
    let path = client.shared().join("file");
    let host = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let on_host = |lock_type: i32| {
        let range = libc::flock {
            l_type: lock_type as i16,
            l_whence: 0,
            l_start: 3,
            l_len: 4,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&host, nix::fcntl::FcntlArg::F_OFD_SETLK(&range)).is_ok()
    };
    assert!(!on_host(write));
    // The first close of the owner's takes all of his locks.
    let closes = [longs(&[other]), vec![0; 8], longs(&[1])].concat();
    client.ask(Opcode::Flush, node, &[&closes]).unwrap();
    assert!(on_host(write));
    // What is in the way.
    let asked = client.ask(Opcode::Getlk, node, &[&lock(handle, 2, write, false)]);
    let found = asked.unwrap();
    assert_eq!((long_at(&found, 0), long_at(&found, 8)), (3, 6));
    assert_eq!(word_at(&found, 16), write as u32);
    assert!(on_host(unlock));
    // And the last close of the handle that they came by takes those of all owners.
    client.lock(node, &lock(handle, 3, write, false)).unwrap();
    assert!(!on_host(write));
    let release = [longs(&[handle]), vec![0; 16]].concat();
    client.ask(Opcode::Release, node, &[&release]).unwrap();
    assert!(on_host(write));
    // Without sense.
    let mut backwards = lock(other, 4, write, false);
    backwards[16..24].copy_from_slice(&9u64.to_le_bytes());
    backwards[24..32].copy_from_slice(&8u64.to_le_bytes());
    assert_eq!(client.lock(node, &backwards), Err(libc::EINVAL));
    let nothing = lock(other, 4, 99, false);
    assert_eq!(client.lock(node, &nothing), Err(libc::EINVAL));
    let nowhere = lock(999, 4, write, false);
    assert_eq!(client.lock(node, &nowhere), Err(libc::EBADF));
    // Owners take descriptors, so there are not any number of them.
    assert!(on_host(unlock));
    let mut results = HashSet::new();
    for owner in 0..2 * LIMITS.handles as u64 {
        results.insert(client.lock(node, &lock(other, owner, libc::F_RDLCK, false)));
    }
    assert_eq!(results, HashSet::from([Ok(()), Err(libc::ENOLCK)]));
}

#[test]
fn locks_of_open_files_are_the_handles() {
    let mut client = client(false);
    let (node, handle) = client.create(ROOT, "file", libc::O_RDWR).unwrap();
    let host = fs::File::open(client.shared().join("file")).unwrap();
    client
        .lock(node, &lock(handle, 1, libc::F_WRLCK, true))
        .unwrap();
    assert!(flock(&host, SHARED).is_err());
    client
        .lock(node, &lock(handle, 1, libc::F_RDLCK, true))
        .unwrap();
    flock(&host, SHARED).unwrap();
    let refused = client.lock(node, &lock(handle, 1, libc::F_WRLCK, true));
    assert_eq!(refused, Err(libc::EAGAIN));
    flock(&host, FlockOperation::Unlock).unwrap();
    client
        .lock(node, &lock(handle, 1, libc::F_WRLCK, true))
        .unwrap();
    let release = [longs(&[handle]), words(&[0, 2]), longs(&[1])].concat();
    client.ask(Opcode::Release, node, &[&release]).unwrap();
    flock(&host, EXCLUSIVE).unwrap();
}

#[test]
fn who_waits_for_a_lock_holds_up_nobody() {
    for of_files in [false, true] {
        let mut client = client(false);
        let (node, handle) = client.create(ROOT, "file", libc::O_RDWR).unwrap();
        let other = client.open(node, libc::O_RDWR).unwrap();
        let by = |handle, owner| lock(handle, owner, libc::F_WRLCK, of_files);
        let unlock = |handle, owner| lock(handle, owner, libc::F_UNLCK, of_files);
        client.lock(node, &by(handle, 1)).unwrap();
        client.lock_later(0, node, &by(other, 2));
        assert_eq!(client.size_of(node, None), Ok(0));
        client.lock(node, &unlock(handle, 1)).unwrap();
        assert_eq!(client.locked(), (0, Ok(())));
        assert_eq!(client.lock(node, &by(handle, 1)), Err(libc::EAGAIN));
        // A signal for who waits comes by the other queue.
        let waits = client.lock_later(1, node, &by(handle, 1));
        let interrupt = |client: &mut Client, unique| {
            let request = (Opcode::Interrupt as u32, 0, &longs(&[unique])[..]);
            client.offer(0, 0, request, (REQUEST, ANSWER), 0);
        };
        interrupt(&mut client, waits + 100);
        interrupt(&mut client, waits);
        assert_eq!(client.locked(), (1, Err(libc::EINTR)));
        interrupt(&mut client, waits);
        // It is there again for whom asks next.
        client.lock_later(2, node, &by(handle, 1));
        client.lock(node, &unlock(other, 2)).unwrap();
        assert_eq!(client.locked(), (2, Ok(())));
        // A reset ends the waits, and releases all that is locked.
        client.lock_later(3, node, &by(other, 2));
        let path = client.shared().join("file");
        client.driver.bring_up();
        flock(fs::File::open(path).unwrap(), EXCLUSIVE).unwrap();
        let node = client.look_up(ROOT, "file").unwrap();
        let handle = client.open(node, libc::O_RDWR).unwrap();
        client.lock(node, &by(handle, 2)).unwrap();
        assert_eq!(client.driver.used_index(QUEUE), 3);
    }
}

#[test]
fn locks_on_what_is_shared_read_only_are_refused() {
    let mut client = client(true);
    fs::write(client.shared().join("file"), "").unwrap();
    let node = client.look_up(ROOT, "file").unwrap();
    let handle = client.open(node, libc::O_RDONLY).unwrap();
    for flock in [false, true] {
        for lock_type in [libc::F_RDLCK, libc::F_WRLCK] {
            let request = lock(handle, 1, lock_type, flock);
            for opcode in [Opcode::Setlk, Opcode::Setlkw, Opcode::Getlk] {
                assert_eq!(client.ask(opcode, node, &[&request]), Err(libc::EROFS));
            }
        }
    }
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
            let used = client.driver.used_index(QUEUE);
            let _ = client.send(opcode, node, &body, room);
            if client.driver.used_index(QUEUE) == used {
                // It waits for a lock. A reset ends that.
                client.driver.bring_up();
            }
        }
        prop_assert_eq!(fs::read_dir(client.outside.as_path()).unwrap().count(), 2);
        prop_assert_eq!(fs::read(client.outside.as_path().join("secret")).unwrap(), b"outside");
        if read_only {
            prop_assert_eq!(fs::read(client.shared().join("file")).unwrap(), b"content");
        }
    }
}
