// SPDX-License-Identifier: GPL-2.0
//! The private root beside a real directory: the same is done to both, as a kernel does it, and both
//! must have the same in them afterwards. What is below must be as it was.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{symlink, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use proptest::prelude::*;
use rustix::fs::{renameat_with, CWD};
use vm_memory::VolatileSlice;

use super::*;

const LIMITS: Limits = Limits {
    inodes: 64,
    handles: 64,
};
const BUDGET: u64 = 64 << 20;
/// The paths that are tried: few, so that they meet.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// How many files may be open at a time.
const OPEN: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Create(Where),
    MakeDirectory(Where),
    MakeLink(Where),
    Write(Where, u16, u8),
    SetSize(Where, u16),
    SetMode(Where, u8),
    Unlink(Where),
    RemoveDirectory(Where),
    Rename(Where, Where, u8),
    Link(Where, Where),
    Open(usize, Where),
    WriteOpen(usize, u16, u8),
    Close(usize),
}

/// One to three names.
type Where = Vec<usize>;

fn path(names: &[usize]) -> PathBuf {
    names.iter().map(|&name| NAMES[name]).collect()
}

fn places() -> impl Strategy<Value = Where> {
    proptest::collection::vec(0..NAMES.len(), 1..=3)
}

fn step() -> impl Strategy<Value = Step> {
    let place = places;
    prop_oneof![
        3 => place().prop_map(Step::Create),
        3 => place().prop_map(Step::MakeDirectory),
        1 => place().prop_map(Step::MakeLink),
        3 => (place(), any::<u16>(), any::<u8>()).prop_map(|(at, offset, byte)| Step::Write(at, offset, byte)),
        1 => (place(), any::<u16>()).prop_map(|(at, size)| Step::SetSize(at, size)),
        1 => (place(), any::<u8>()).prop_map(|(at, mode)| Step::SetMode(at, mode)),
        3 => place().prop_map(Step::Unlink),
        3 => place().prop_map(Step::RemoveDirectory),
        6 => (place(), place(), 0..3u8).prop_map(|(old, new, flags)| Step::Rename(old, new, flags)),
        3 => (place(), place()).prop_map(|(old, new)| Step::Link(old, new)),
        2 => (0..OPEN, place()).prop_map(|(slot, at)| Step::Open(slot, at)),
        2 => (0..OPEN, any::<u16>(), any::<u8>()).prop_map(|(slot, at, byte)| Step::WriteOpen(slot, at, byte)),
        1 => (0..OPEN).prop_map(Step::Close),
    ]
}

/// A buffer of the kernel's.
struct Buffer(Vec<u8>);

impl Read for Buffer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.0.len());
        out[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}

impl ZeroCopyReader for Buffer {
    fn read_to(
        &mut self,
        _: &mut dyn FileReadWriteVolatile,
        _: usize,
        _: u64,
    ) -> io::Result<usize> {
        panic!("nothing is written to the Host's files");
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ZeroCopyWriter for Buffer {
    fn write_from(
        &mut self,
        file: &mut dyn FileReadWriteVolatile,
        count: usize,
        offset: u64,
    ) -> io::Result<usize> {
        let mut bytes = vec![0; count];
        let slice = VolatileSlice::from(&mut bytes[..]);
        let slice = FileVolatileSlice::from_volatile_slice(&slice);
        let read = file.read_at_volatile(slice, offset)?;
        self.0.extend(&bytes[..read]);
        Ok(read)
    }

    fn available_bytes(&self) -> usize {
        1 << 20
    }
}

/// What a kernel does with the server, in the names of paths.
struct Client {
    server: CowServer,
    open: [Option<(u64, u64)>; OPEN],
}

type Outcome<T> = Result<T, i32>;

fn number(error: io::Error) -> i32 {
    error.raw_os_error().expect("an error number")
}

impl Client {
    fn new(root: &Path) -> Self {
        let root = host::open_root(root).expect("it is there");
        Self {
            server: CowServer::new(root, LIMITS, BUDGET).expect("a server"),
            open: [None; OPEN],
        }
    }

    /// Calls `with` an inode that is known for so long.
    fn at<T>(&self, path: &Path, with: impl FnOnce(&Entry) -> Outcome<T>) -> Outcome<T> {
        let mut way = vec![ROOT_ID];
        let mut last = Entry {
            inode: ROOT_ID,
            ..Entry::default()
        };
        let mut found = Ok(());
        for name in path {
            let name = CString::new(name.as_encoded_bytes()).expect("no 0");
            let parent = *way.last().expect("the root is");
            found = self.is_directory(parent).and_then(|()| {
                last = (self.server)
                    .lookup(&nobody(), parent, &name)
                    .map_err(number)?;
                match last.inode {
                    0 => Err(Errno::NOENT.raw_os_error()),
                    inode => Ok(way.push(inode)),
                }
            });
            if found.is_err() {
                break;
            }
        }
        let result = found.and_then(|()| with(&last));
        for inode in way {
            self.server.forget(&nobody(), inode, 1);
        }
        result
    }

    fn is_directory(&self, inode: u64) -> Outcome<()> {
        let (attributes, _) = self.server.attributes(inode, None).map_err(number)?;
        match file_type(&attributes) {
            FileType::Directory => Ok(()),
            _ => Err(Errno::NOTDIR.raw_os_error()),
        }
    }

    /// Calls `with` the directory that `path` is in, and the name there.
    fn in_parent<T>(&self, path: &Path, with: impl FnOnce(u64, &CStr) -> Outcome<T>) -> Outcome<T> {
        let name = path.file_name().expect("a name");
        let name = CString::new(name.as_encoded_bytes()).expect("no 0");
        self.at(path.parent().expect("the root"), |parent| {
            self.is_directory(parent.inode)?;
            with(parent.inode, &name)
        })
    }

    /// The same while the kernel knows what the name leads to, if anything.
    fn by_name<T>(&self, path: &Path, with: impl FnOnce(u64, &CStr) -> Outcome<T>) -> Outcome<T> {
        self.in_parent(path, |parent, name| {
            let found = self
                .server
                .lookup(&nobody(), parent, name)
                .map_err(number)?;
            let result = with(parent, name);
            self.server.forget(&nobody(), found.inode, 1);
            result
        })
    }

    /// Adds an entry that the kernel does not keep.
    fn made(&self, made: io::Result<Entry>) -> Outcome<()> {
        let entry = made.map_err(number)?;
        self.server.forget(&nobody(), entry.inode, 1);
        Ok(())
    }

    fn open(&self, path: &Path) -> Outcome<(u64, u64)> {
        self.at(path, |found| {
            let flags = OFlags::RDWR.bits();
            let opened = self.server.open(&nobody(), found.inode, flags, 0);
            let (handle, _, _) = opened.map_err(number)?;
            // Who has a file open knows it.
            self.server
                .state()
                .know_again(found.inode)
                .expect("it is there");
            Ok((found.inode, handle.expect("a handle")))
        })
    }

    fn close(&self, (inode, handle): (u64, u64)) {
        (self.server)
            .release(&nobody(), inode, 0, handle, false, false, None)
            .expect("it is open");
        self.server.forget(&nobody(), inode, 1);
    }

    fn write(&self, (inode, handle): (u64, u64), offset: u16, byte: u8) -> Outcome<()> {
        let mut bytes = Buffer(vec![byte; usize::from(byte)]);
        let (size, offset) = (bytes.0.len() as u32, offset.into());
        (self.server)
            .write(
                &nobody(),
                inode,
                handle,
                &mut bytes,
                size,
                offset,
                None,
                false,
                0,
                0,
            )
            .map(drop)
            .map_err(number)
    }

    fn read(&self, (inode, handle): (u64, u64)) -> Vec<u8> {
        let mut read = Buffer(Vec::new());
        (self.server)
            .read(&nobody(), inode, handle, &mut read, 1 << 20, 0, None, 0)
            .expect("it can be read");
        read.0
    }

    fn set(&self, path: &Path, new: stat64, valid: SetattrValid) -> Outcome<()> {
        self.at(path, |found| {
            let set = self
                .server
                .setattr(&nobody(), found.inode, new, None, valid);
            set.map(drop).map_err(number)
        })
    }

    fn take(&mut self, step: &Step) -> Outcome<()> {
        let server = &self.server;
        match step {
            Step::Create(at) => self.in_parent(&path(at), |parent, name| {
                let arguments = CreateIn {
                    flags: (OFlags::RDWR | OFlags::EXCL).bits(),
                    mode: 0o644,
                    ..CreateIn::default()
                };
                let made = server.create(&nobody(), parent, name, arguments);
                let (entry, handle, _, _) = made.map_err(number)?;
                self.close((entry.inode, handle.expect("a handle")));
                Ok(())
            }),
            Step::MakeDirectory(at) => self.in_parent(&path(at), |parent, name| {
                self.made(server.mkdir(&nobody(), parent, name, 0o755, 0))
            }),
            Step::MakeLink(at) => self.in_parent(&path(at), |parent, name| {
                self.made(server.symlink(&nobody(), c"target", parent, name))
            }),
            Step::Write(at, offset, byte) => {
                let open = self.open(&path(at))?;
                let written = self.write(open, *offset, *byte);
                self.close(open);
                written
            }
            Step::SetSize(at, size) => {
                let mut new = stat64::from(Attr::default());
                new.st_size = i64::from(*size);
                let file = self.open(&path(at))?;
                self.close(file);
                self.set(&path(at), new, SetattrValid::SIZE)
            }
            Step::SetMode(at, mode) => {
                let mut new = stat64::from(Attr::default());
                new.st_mode = 0o700 | u32::from(*mode);
                self.set(&path(at), new, SetattrValid::MODE)
            }
            Step::Unlink(at) => self.by_name(&path(at), |parent, name| {
                server.unlink(&nobody(), parent, name).map_err(number)
            }),
            Step::RemoveDirectory(at) => self.by_name(&path(at), |parent, name| {
                server.rmdir(&nobody(), parent, name).map_err(number)
            }),
            Step::Rename(old, new, flags) => self.by_name(&path(old), |old_parent, old_name| {
                self.by_name(&path(new), |new_parent, new_name| {
                    let flags = u32::from(*flags);
                    server
                        .rename(&nobody(), old_parent, old_name, new_parent, new_name, flags)
                        .map_err(number)
                })
            }),
            Step::Link(old, new) => self.at(&path(old), |found| {
                self.in_parent(&path(new), |parent, name| {
                    self.made(server.link(&nobody(), found.inode, parent, name))
                })
            }),
            Step::Open(slot, at) => {
                let opened = self.open(&path(at))?;
                if let Some(before) = self.open[*slot].replace(opened) {
                    self.close(before);
                }
                Ok(())
            }
            Step::WriteOpen(slot, at, byte) => match self.open[*slot] {
                Some(open) => self.write(open, *at, *byte),
                None => Ok(()),
            },
            Step::Close(slot) => {
                if let Some(open) = self.open[*slot].take() {
                    self.close(open);
                }
                Ok(())
            }
        }
    }

    /// The names in a directory, each of which must be there once, with their inode numbers.
    fn list(&self, inode: u64) -> Vec<(String, u64)> {
        let (handle, _) = self.server.opendir(&nobody(), inode, 0).expect("it opens");
        let handle = handle.expect("a handle");
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let before = offset;
            let mut known = Vec::new();
            // A small buffer, so that each has to go on.
            let mut room = 2;
            let mut add = |found: DirEntry<'_>, entry: Entry| {
                if room == 0 {
                    return Ok(0);
                }
                room -= 1;
                offset = found.offset;
                known.extend((entry.inode != 0).then_some(entry.inode));
                let name = String::from_utf8(found.name.to_vec()).expect("one of ours");
                if !name.starts_with('.') {
                    assert_ne!(entry.inode, 0, "{name} comes with its inode");
                    names.push((name, found.ino));
                }
                Ok(1)
            };
            (self.server)
                .readdirplus(&nobody(), inode, handle, 4096, before, &mut add)
                .expect("it is a directory");
            for known in known {
                self.server.forget(&nobody(), known, 1);
            }
            if offset == before {
                break;
            }
        }
        self.server
            .releasedir(&nobody(), inode, 0, handle)
            .expect("it is open");
        names.sort();
        names
    }

    /// All that is in a directory.
    fn tree(&self, path: &Path, all: &mut Tree, links: &mut HashMap<u64, PathBuf>) {
        let names = self.at(path, |found| Ok(self.list(found.inode)));
        for (name, shown) in names.expect("it is a directory") {
            let path = path.join(name);
            let seen = self.at(&path, |found| {
                let attributes = self.server.attributes(found.inode, None);
                let (attributes, _) = attributes.map_err(number)?;
                assert_eq!(attributes.ino, shown, "the number of {path:?} as listed");
                let body = match file_type(&attributes) {
                    FileType::Symlink => self.server.readlink(&nobody(), found.inode),
                    _ => Ok(Vec::new()),
                };
                Ok((attributes, body.map_err(number)?))
            });
            let (attributes, mut body) = seen.expect("it is listed");
            let is_directory = file_type(&attributes) == FileType::Directory;
            if file_type(&attributes) == FileType::RegularFile {
                let open = self.open(&path).expect("it opens");
                body = self.read(open);
                self.close(open);
                assert_eq!(body.len() as u64, attributes.size);
            }
            let first = links.entry(attributes.ino).or_insert_with(|| path.clone());
            all.insert(
                path.clone(),
                Seen {
                    mode: attributes.mode,
                    links: if is_directory {
                        0
                    } else {
                        attributes.nlink.into()
                    },
                    first: first.clone(),
                    body: digest(&body),
                },
            );
            if is_directory {
                self.tree(&path, all, links);
            }
        }
    }
}

type Tree = BTreeMap<PathBuf, Seen>;

#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    links: u64,
    /// The first path at which it was found: what is one file is one in both.
    first: PathBuf,
    /// A link's target, or what a file has in it.
    body: (usize, u64),
}

/// What tells contents apart, and can be printed.
fn digest(body: &[u8]) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    (body.len(), hasher.finish())
}

/// The same of a real directory.
fn real_tree(root: &Path, path: &Path, all: &mut Tree, links: &mut HashMap<u64, PathBuf>) {
    let mut names: Vec<_> = fs::read_dir(root.join(path))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    for name in names {
        let path = path.join(name);
        let real = root.join(&path);
        let metadata = fs::symlink_metadata(&real).expect("it is there");
        let body = if metadata.is_symlink() {
            let target = fs::read_link(&real).expect("a link");
            target.as_os_str().as_encoded_bytes().to_vec()
        } else if metadata.is_file() {
            fs::read(&real).expect("a file")
        } else {
            Vec::new()
        };
        let first = links.entry(metadata.ino()).or_insert_with(|| path.clone());
        all.insert(
            path.clone(),
            Seen {
                mode: metadata.mode(),
                links: if metadata.is_dir() {
                    0
                } else {
                    metadata.nlink()
                },
                first: first.clone(),
                body: digest(&body),
            },
        );
        if metadata.is_dir() {
            real_tree(root, &path, all, links);
        }
    }
}

/// The umask of the process is other tests' matter as well.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The real directory.
struct Real {
    root: PathBuf,
    open: [Option<fs::File>; OPEN],
}

impl Real {
    fn path(&self, at: &[usize]) -> PathBuf {
        self.root.join(path(at))
    }

    /// Opens without following links, and nothing but files: the server below opens no others.
    fn open(&self, at: &[usize]) -> io::Result<fs::File> {
        let path = self.path(at);
        if fs::symlink_metadata(&path)?.is_symlink() {
            return Err(Errno::NXIO.into());
        }
        fs::OpenOptions::new().read(true).write(true).open(path)
    }

    fn take(&mut self, step: &Step) -> Outcome<()> {
        self.try_to(step).map_err(number)
    }

    fn try_to(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Create(at) => {
                let mut options = fs::OpenOptions::new();
                options.write(true).create_new(true).open(self.path(at))?;
                set_mode(&self.path(at), 0o644)
            }
            Step::MakeDirectory(at) => {
                fs::create_dir(self.path(at))?;
                set_mode(&self.path(at), 0o755)
            }
            Step::MakeLink(at) => symlink("target", self.path(at)),
            Step::Write(at, offset, byte) => self
                .open(at)?
                .write_all_at(&vec![*byte; usize::from(*byte)], (*offset).into()),
            Step::SetSize(at, size) => self.open(at)?.set_len((*size).into()),
            Step::SetMode(at, mode) => set_mode(&self.path(at), 0o700 | u32::from(*mode)),
            Step::Unlink(at) => fs::remove_file(self.path(at)),
            Step::RemoveDirectory(at) => fs::remove_dir(self.path(at)),
            Step::Rename(old, new, flags) => {
                let flags = RenameFlags::from_bits_retain((*flags).into());
                let (old, new) = (self.path(old), self.path(new));
                Ok(renameat_with(CWD, old, CWD, new, flags)?)
            }
            Step::Link(old, new) => fs::hard_link(self.path(old), self.path(new)),
            Step::Open(slot, at) => {
                self.open[*slot] = Some(self.open(at)?);
                Ok(())
            }
            Step::WriteOpen(slot, at, byte) => match &self.open[*slot] {
                Some(file) => file.write_all_at(&vec![*byte; usize::from(*byte)], (*at).into()),
                None => Ok(()),
            },
            Step::Close(slot) => {
                self.open[*slot] = None;
                Ok(())
            }
        }
    }
}

/// Does the Guest's kernel refuse it, or do something else, before the server hears of it?
fn is_kernels(step: &Step, real: &Real) -> bool {
    let is_link = |at: &[usize]| real.path(at).is_symlink();
    // A link in a path is followed by the kernel.
    let through_link = |at: &[usize]| (1..at.len()).any(|end| is_link(&at[..end]));
    match step {
        Step::Rename(old, new, _) => {
            old.starts_with(new) || new.starts_with(old) || through_link(old) || through_link(new)
        }
        Step::Link(old, new) => through_link(old) || through_link(new),
        Step::SetMode(at, _) => is_link(at) || through_link(at),
        Step::Create(at)
        | Step::MakeDirectory(at)
        | Step::MakeLink(at)
        | Step::Write(at, ..)
        | Step::SetSize(at, _)
        | Step::Unlink(at)
        | Step::RemoveDirectory(at)
        | Step::Open(_, at) => through_link(at),
        Step::WriteOpen(..) | Step::Close(_) => false,
    }
}

/// What both begin with: files of which one has two names and one is large, directories, a link.
fn fill(root: &Path) {
    for directory in ["b", "b/b", "c"] {
        fs::create_dir(root.join(directory)).unwrap();
        set_mode(&root.join(directory), 0o755).unwrap();
    }
    for (file, size) in [("a", 10), ("b/a", 5000), ("c/a", COPY_WHOLE as usize + 99)] {
        fs::write(root.join(file), vec![b'h'; size]).unwrap();
        set_mode(&root.join(file), 0o644).unwrap();
    }
    fs::hard_link(root.join("a"), root.join("b/b/a")).unwrap();
    symlink("target", root.join("c/c")).unwrap();
}

fn whole(root: &Path) -> Tree {
    let mut all = Tree::new();
    real_tree(root, Path::new(""), &mut all, &mut HashMap::new());
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn it_is_as_a_real_directory(steps in proptest::collection::vec(step(), 1..60)) {
        as_a_real_directory(&steps)?;
    }
}

#[test]
fn what_is_exchanged_can_be_exchanged_again() {
    let exchange = Step::Rename(vec![2, 0], vec![1], RenameFlags::EXCHANGE.bits() as u8);
    as_a_real_directory(&[exchange.clone(), exchange]).unwrap();
}

/// Takes `steps` in both, and compares them after each.
fn as_a_real_directory(steps: &[Step]) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let (below, beside) = (
        directory.path().join("below"),
        directory.path().join("beside"),
    );
    for root in [&below, &beside] {
        fs::create_dir(root).unwrap();
        fill(root);
    }
    let before = whole(&below);
    let mut real = Real {
        root: beside,
        open: Default::default(),
    };
    let mut client = Client::new(&below);
    for step in steps {
        if is_kernels(step, &real) {
            continue;
        }
        prop_assert_eq!(client.take(step), real.take(step), "{:?}", step);
        let mut all = Tree::new();
        client.tree(Path::new(""), &mut all, &mut HashMap::new());
        prop_assert_eq!(all, whole(&real.root), "after {:?}", step);
        for (ours, theirs) in client.open.iter().zip(&real.open) {
            let (Some(ours), Some(theirs)) = (ours, theirs) else {
                continue;
            };
            let mut expected = vec![0; theirs.metadata().unwrap().len() as usize];
            theirs.read_exact_at(&mut expected, 0).unwrap();
            prop_assert_eq!(client.read(*ours), expected);
        }
    }
    prop_assert_eq!(whole(&below), before);
    // All that takes room is something that can be found.
    for slot in 0..OPEN {
        client.take(&Step::Close(slot)).unwrap();
    }
    for name in fs::read_dir(&real.root).unwrap() {
        remove(&client, Path::new(&name.unwrap().file_name()));
    }
    let state = client.server.state();
    let made = state
        .nodes
        .keys()
        .filter(|&&number| is_made(number))
        .count();
    prop_assert_eq!((made, state.handles.len(), state.kept), (0, 0, 0));
    Ok(())
}

/// As rm -r does it.
fn remove(client: &Client, path: &Path) {
    let names = client.at(path, |found| {
        client.is_directory(found.inode)?;
        Ok(client.list(found.inode))
    });
    for (name, _) in names.iter().flatten() {
        remove(client, &path.join(name));
    }
    let removed = client.by_name(path, |parent, name| {
        match names.is_ok() {
            true => client.server.rmdir(&nobody(), parent, name),
            false => client.server.unlink(&nobody(), parent, name),
        }
        .map_err(number)
    });
    removed.expect("it can be removed");
}

fn a_root() -> (tempfile::TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    fill(directory.path());
    let client = Client::new(directory.path());
    (directory, client)
}

/// Who lists a directory and changes what he finds finds each name once, as in a real one.
#[test]
fn what_changes_while_it_is_listed_is_listed_once() {
    let (directory, client) = a_root();
    for number in 0..50 {
        fs::write(directory.path().join(format!("file{number}")), "").unwrap();
    }
    let (handle, _) = client.server.opendir(&nobody(), ROOT_ID, 0).unwrap();
    let handle = handle.unwrap();
    let (mut listed, mut offset) = (Vec::new(), 0);
    loop {
        let mut found = None;
        let mut add = |entry: DirEntry<'_>| {
            if found.is_some() {
                return Ok(0);
            }
            found = Some((
                entry.offset,
                String::from_utf8(entry.name.to_vec()).unwrap(),
            ));
            Ok(1)
        };
        let server = &client.server;
        server
            .readdir(&nobody(), ROOT_ID, handle, 4096, offset, &mut add)
            .unwrap();
        let Some((next, name)) = found else { break };
        offset = next;
        if name.starts_with("file") {
            let open = client.open(Path::new(&name)).unwrap();
            client.write(open, 0, 1).unwrap();
            client.close(open);
            listed.push(name);
        }
    }
    listed.sort();
    let before = listed.len();
    listed.dedup();
    assert_eq!((before, listed.len()), (50, 50));
}

/// Entries of a list: what it is, what it may, whom it names.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let bytes = |&(tag, may, id): &(u16, u16, u32)| {
        [
            &tag.to_le_bytes()[..],
            &may.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    let entries: Vec<_> = entries.iter().map(bytes).collect();
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

#[test]
fn a_default_list_is_inherited_and_replaces_the_umask() {
    const ANYBODY: u32 = u32::MAX;
    let (_directory, client) = a_root();
    let server = &client.server;
    let default = list(&[
        (1, 7, ANYBODY),
        (2, 7, 1000),
        (4, 5, ANYBODY),
        (16, 7, ANYBODY),
        (32, 0, ANYBODY),
    ]);
    let of_file = list(&[
        (1, 6, ANYBODY),
        (2, 7, 1000),
        (4, 5, ANYBODY),
        (16, 6, ANYBODY),
        (32, 0, ANYBODY),
    ]);
    let get = |inode, name| match server.getxattr(&nobody(), inode, name, 999) {
        Ok(GetxattrReply::Value(list)) => Some(list),
        _ => None,
    };
    let umask = 0o077;
    let arguments = CreateIn {
        mode: 0o666,
        umask,
        ..CreateIn::default()
    };
    let plain = server
        .create(&nobody(), ROOT_ID, c"plain", arguments)
        .unwrap();
    assert_eq!(plain.0.attr.st_mode, 0o100_600);
    server
        .setxattr(&nobody(), ROOT_ID, acl::DEFAULT, &default, 0)
        .unwrap();

    let (file, ..) = server
        .create(&nobody(), ROOT_ID, c"new", arguments)
        .unwrap();
    assert_eq!(file.attr.st_mode, 0o100_660);
    assert_eq!(get(file.inode, acl::ACCESS), Some(of_file.clone()));
    assert_eq!(get(file.inode, acl::DEFAULT), None);
    let (unnamed, _) = server
        .create_unnamed(&nobody(), ROOT_ID, arguments)
        .unwrap();
    assert_eq!(get(unnamed.inode, acl::ACCESS), Some(of_file));
    let made = server
        .mkdir(&nobody(), ROOT_ID, c"made", 0o777, umask)
        .unwrap();
    assert_eq!(made.attr.st_mode, 0o40_770);
    assert_eq!(get(made.inode, acl::ACCESS), Some(default.clone()));
    assert_eq!(get(made.inode, acl::DEFAULT), Some(default));
    let link = server.symlink(&nobody(), c"x", ROOT_ID, c"link").unwrap();
    assert_eq!(get(link.inode, acl::ACCESS), None);

    // A list that the mode says all of is the mode.
    let plain = list(&[(1, 7, ANYBODY), (4, 5, ANYBODY), (32, 1, ANYBODY)]);
    server
        .setxattr(&nobody(), file.inode, acl::ACCESS, &plain, 0)
        .unwrap();
    assert_eq!(get(file.inode, acl::ACCESS), None);
    let (attributes, _) = server.attributes(file.inode, None).unwrap();
    assert_eq!(attributes.mode, 0o100_751);
}

#[test]
fn only_root_is_told_of_trusted_attributes() {
    let (_directory, client) = a_root();
    let names = |uid| {
        let caller = Context { uid, ..nobody() };
        match client.server.listxattr(&caller, ROOT_ID, 999).unwrap() {
            ListxattrReply::Names(names) => names,
            ListxattrReply::Count(_) => panic!("there was room"),
        }
    };
    for name in [c"trusted.one", c"user.two"] {
        client
            .server
            .setxattr(&nobody(), ROOT_ID, name, b"", 0)
            .unwrap();
    }
    assert_eq!(names(0), b"trusted.one\0user.two\0");
    assert_eq!(names(1000), b"user.two\0");
}
