// SPDX-License-Identifier: GPL-2.0
//! The private root beside a real directory: the same is done to both, as a kernel does it, and both
//! must have the same in them afterwards. What is below must be as it was.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{symlink, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{renameat_with, CWD};

use super::client::{number, Client, Outcome};
use super::*;

/// The paths that are tried: few, so that they meet.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// The most files that may be open at a time.
pub(super) const OPEN: usize = 3;

#[derive(Clone, Debug)]
pub(super) enum Step {
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
pub(super) type Where = Vec<usize>;

pub(super) fn path(names: &[usize]) -> PathBuf {
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

pub(super) type Tree = BTreeMap<PathBuf, Seen>;

#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) mode: u32,
    pub(super) links: u64,
    /// The first path at which it was found: what is one file is one in both.
    pub(super) first: PathBuf,
    /// A link's target, or what a file has in it.
    pub(super) body: (usize, u64),
}

/// A value that tells contents apart, and can be printed.
pub(super) fn digest(body: &[u8]) -> (usize, u64) {
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
pub(super) fn fill(root: &Path) {
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
