// SPDX-License-Identifier: GPL-2.0
//! The disks behind virtio-blk: raw files and block devices, and overlays over them.
//!
//! A [`Disk`] promises what a disk promises: what [`Disk::flush`] has confirmed stays, whatever
//! happens to this process or the Host. It is locked (flock(2)) as long as it lives: a writer is
//! alone, readers and overlays keep writers out.

mod overlay;
mod raw;
pub mod ring;
mod sys;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::O_EXCL;

use overlay::Overlay;
pub use raw::Blocks;
use raw::Raw;
pub use sys::{Buffers, SECTOR};

use crate::report::codes::Code;
use crate::report::Explain;

/// Linux calls them vda to vdz.
const MAX_DISKS: usize = 26;

/// The argument of `--disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// A file or a block device.
    pub path: PathBuf,
    /// The Guest's rights.
    pub access: Access,
}

/// The Guest's rights on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write it.
    Write,
    /// Only read it.
    Read,
    /// Read it, and write to a temporary file.
    Overlay,
}

impl Spec {
    /// Parses `FILE[,ro][,overlay]`. Any other comma is part of the name.
    pub fn parse(text: OsString) -> Result<Self, String> {
        let mut path = text.as_bytes();
        let mut access = Access::Write;
        for (suffix, means) in [
            (&b",ro"[..], Access::Read),
            (b",overlay", Access::Overlay),
            (b",ro", Access::Read),
        ] {
            if let Some(rest) = path.strip_suffix(suffix) {
                if access != Access::Write {
                    return Err("a disk is either ro or an overlay".into());
                }
                (path, access) = (rest, means);
            }
        }
        if path.is_empty() {
            return Err("there is no FILE in it".into());
        }
        Ok(Self {
            path: OsStr::from_bytes(path).into(),
            access,
        })
    }
}

/// The errors of a disk.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum DiskError {
    #[error("{0}")]
    Open(io::Error),
    #[error("you may not write to it")]
    NotWritable,
    #[error("it is neither a file nor a block device")]
    NoDisk,
    #[error("it is empty")]
    Empty,
    #[error("its size is {0} bytes, which is not a multiple of {SECTOR}")]
    Size(u64),
    #[error("it is a {0} image, and lg takes raw ones")]
    Format(&'static str),
    #[error("it is in use: by this guest's other disk, by another guest or by the system")]
    InUse,
    #[error("no temporary file can be made in {}: {source}", directory.display())]
    Overlay {
        directory: PathBuf,
        source: io::Error,
    },
}

impl DiskError {
    fn code(&self) -> Code {
        match self {
            Self::Open(_) => Code::OpenDisk,
            Self::NotWritable => Code::DiskNotWritable,
            Self::NoDisk => Code::NoDisk,
            Self::Empty | Self::Size(_) => Code::DiskSize,
            Self::Format(_) => Code::DiskFormat,
            Self::InUse => Code::DiskInUse,
            Self::Overlay { .. } => Code::DiskOverlay,
        }
    }

    fn fix(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Open(_) | Self::InUse | Self::Overlay { .. } => self.code().fix().to_string(),
            Self::NotWritable => {
                format!("let the guest only read it, or write to a temporary file: --disk {path},ro or --disk {path},overlay")
            }
            Self::NoDisk => "name a raw image or a block device".into(),
            Self::Empty => format!("make it as large as the disk: truncate -s 1G {path}"),
            Self::Size(size) => {
                let size = size.next_multiple_of(SECTOR);
                format!("make it larger: truncate -s {size} {path}")
            }
            Self::Format(_) => {
                format!("make a raw one of it: qemu-img convert -O raw {path} disk.raw")
            }
        }
    }
}

/// The reasons why a Guest cannot have its disks.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum DisksError {
    #[error("{} cannot be a disk", path.display())]
    Disk { path: PathBuf, source: DiskError },
    #[error("{count} disks are too many")]
    TooMany { count: usize, limit: usize },
}

impl Explain for DisksError {
    fn code(&self) -> Code {
        match self {
            Self::Disk { source, .. } => source.code(),
            Self::TooMany { .. } => Code::TooManyDisks,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Disk { source, .. } => source.to_string(),
            Self::TooMany { limit, .. } => format!("a guest can have {limit}"),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Disk { path, source } => source.fix(path),
            Self::TooMany { .. } => self.code().fix().to_string(),
        }
    }
}

/// A disk.
pub struct Disk {
    path: PathBuf,
    size: u64,
    read_only: bool,
    content: Content,
    /// Released when it goes.
    _lock: Flock<File>,
}

enum Content {
    Raw(Raw),
    Overlay(Overlay),
}

impl Disk {
    /// Opens all disks of a Guest.
    pub fn open_all(specs: &[Spec]) -> Result<Vec<Self>, DisksError> {
        if specs.len() > MAX_DISKS {
            return Err(DisksError::TooMany {
                count: specs.len(),
                limit: MAX_DISKS,
            });
        }
        let open = |spec: &Spec| {
            Self::open(spec).map_err(|source| DisksError::Disk {
                path: spec.path.clone(),
                source,
            })
        };
        specs.iter().map(open).collect()
    }

    /// Opens, checks and locks a disk.
    pub fn open(spec: &Spec) -> Result<Self, DiskError> {
        let write = spec.access == Access::Write;
        let file = open(&spec.path, write)?;
        let lock = lock(&file, write)?;
        let size = size(&file)?;
        let in_file = |result: io::Result<_>| result.map_err(DiskError::Open);
        let content = if spec.access == Access::Overlay {
            let temporary = |(directory, source)| DiskError::Overlay { directory, source };
            let top = overlay::temporary().map_err(temporary)?;
            Content::Overlay(in_file(Overlay::new(file, size, top))?)
        } else {
            Content::Raw(Raw::new(file, size).map_err(DiskError::Open)?)
        };
        Ok(Self {
            path: spec.path.clone(),
            size,
            read_only: spec.access == Access::Read,
            content,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes, a multiple of [`SECTOR`].
    pub fn size(&self) -> u64 {
        self.size
    }

    /// May it only be read?
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Does it make a difference whether what was written is flushed? What goes with this process
    /// need not be.
    pub fn can_flush(&self) -> bool {
        !self.read_only && matches!(self.content, Content::Raw(_))
    }

    /// Can [`Disk::discard`] do anything?
    pub fn can_discard(&self) -> bool {
        match &self.content {
            Content::Raw(raw) => raw.can_discard && !self.read_only,
            Content::Overlay(_) => true,
        }
    }

    /// Its blocks.
    pub fn blocks(&self) -> Blocks {
        match &self.content {
            Content::Raw(raw) => raw.blocks,
            Content::Overlay(_) => overlay::BLOCKS,
        }
    }

    /// The file, if that is all there is to it: what can be read and written by other means.
    pub fn file(&self) -> Option<&File> {
        match &self.content {
            Content::Raw(raw) => Some(&raw.file),
            Content::Overlay(_) => None,
        }
    }

    /// Fills `buffers` with what is at `offset`.
    pub fn read(&self, buffers: &Buffers, offset: u64) -> io::Result<()> {
        match &self.content {
            _ if buffers.is_empty() => Ok(()),
            Content::Raw(raw) => raw.read(buffers, offset),
            Content::Overlay(overlay) => overlay.read(buffers, offset),
        }
    }

    /// Writes `buffers` to `offset`; when `stable`, they stay from now on, as if flushed.
    pub fn write(&mut self, buffers: &Buffers, offset: u64, stable: bool) -> io::Result<()> {
        match &mut self.content {
            _ if buffers.is_empty() => Ok(()),
            Content::Raw(raw) => raw.write(buffers, offset, stable),
            Content::Overlay(overlay) => overlay.write(buffers, offset),
        }
    }

    /// Fills `buffers` with what is at `offset`, if that takes no waiting; returns whether it has. If not, the
    /// buffers may have been filled in part.
    pub fn read_now(&self, buffers: &Buffers, offset: u64) -> bool {
        match &self.content {
            Content::Raw(raw) => raw.read_now(buffers, offset),
            Content::Overlay(_) => false,
        }
    }

    /// Writes `buffers` to `offset`, if that takes no waiting; returns whether it has. If not, they may have been
    /// written in part.
    pub fn write_now(&mut self, buffers: &Buffers, offset: u64) -> bool {
        match &self.content {
            Content::Raw(raw) => raw.write_now(buffers, offset),
            Content::Overlay(_) => false,
        }
    }

    /// What was written before stays from now on.
    pub fn flush(&self) -> io::Result<()> {
        match &self.content {
            Content::Raw(raw) => raw.file.sync_data(),
            Content::Overlay(_) => Ok(()),
        }
    }

    /// Nobody needs what is in these bytes; what they read as from now on is not known.
    pub fn discard(&mut self, range: Range<u64>) -> io::Result<()> {
        match &mut self.content {
            _ if range.is_empty() => Ok(()),
            Content::Raw(raw) => raw.discard(range),
            Content::Overlay(overlay) => overlay.zero(range, true),
        }
    }

    /// Makes these bytes 0. They may get deallocated if `unmap` says so.
    pub fn zero(&mut self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        match &mut self.content {
            _ if range.is_empty() => Ok(()),
            Content::Raw(raw) => raw.zero(range, unmap),
            Content::Overlay(overlay) => overlay.zero(range, unmap),
        }
    }
}

/// Opens a file or a block device, and nothing else: opening a pipe would wait, or start something.
fn open(path: &Path, write: bool) -> Result<File, DiskError> {
    let kind = fs::metadata(path).map_err(DiskError::Open)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NoDisk);
    }
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    if write && kind.is_block_device() {
        // Not while it is mounted.
        options.custom_flags(O_EXCL);
    }
    options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => DiskError::InUse,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if write && File::open(path).is_ok() =>
        {
            DiskError::NotWritable
        }
        _ => DiskError::Open(error),
    })
}

/// A writer is alone; a reader only keeps writers out.
fn lock(file: &File, write: bool) -> Result<Flock<File>, DiskError> {
    let how = match write {
        true => FlockArg::LockExclusiveNonblock,
        false => FlockArg::LockSharedNonblock,
    };
    let file = file.try_clone().map_err(DiskError::Open)?;
    Flock::lock(file, how).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => DiskError::InUse,
        error => DiskError::Open(error.into()),
    })
}

/// The size in bytes of a disk that passes for one.
fn size(mut file: &File) -> Result<u64, DiskError> {
    let size = file.seek(SeekFrom::End(0)).map_err(DiskError::Open)?;
    if let Some(format) = format(file).map_err(DiskError::Open)? {
        return Err(DiskError::Format(format));
    }
    match size {
        0 => Err(DiskError::Empty),
        size if size % SECTOR != 0 => Err(DiskError::Size(size)),
        size => Ok(size),
    }
}

/// The formats that are not raw: name, where their magic is, and what it is.
const FORMATS: [(&str, usize, &[u8]); 8] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("QED", 0, b"QED\0"),
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VHD", 0, b"conectix"),
    ("VHDX", 0, b"vhdxfile"),
    ("VDI", 0x40, b"\x7f\x10\xda\xbe"),
];

fn format(file: &File) -> io::Result<Option<&'static str>> {
    let mut head = [0; SECTOR as usize];
    let mut length = 0;
    while length < head.len() {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let found = FORMATS
        .iter()
        .find(|(_, at, magic)| head[*at..].starts_with(magic));
    Ok(found.map(|(name, ..)| *name))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// A file with this content, which is gone when it is closed.
    pub(crate) fn file(content: &[u8]) -> File {
        let file = overlay::temporary().unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    /// A name for a file that has none.
    fn name(file: &File) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    fn spec(text: &str) -> Result<Spec, String> {
        Spec::parse(text.into())
    }

    /// A disk that is `file`.
    pub(crate) fn disk_on(file: &File, access: Access) -> Disk {
        let path = name(file);
        Disk::open(&Spec { path, access }).unwrap()
    }

    fn open_error(content: &[u8]) -> DiskError {
        let file = file(content);
        let (path, access) = (name(&file), Access::Read);
        Disk::open(&Spec { path, access }).err().unwrap()
    }

    #[test]
    fn specs() {
        let of = |path: &str, access| {
            let path = path.into();
            Ok(Spec { path, access })
        };
        assert_eq!(spec("a"), of("a", Access::Write));
        assert_eq!(spec("a,ro"), of("a", Access::Read));
        assert_eq!(spec("a,overlay"), of("a", Access::Overlay));
        assert_eq!(spec("a,b,ro"), of("a,b", Access::Read));
        assert_eq!(spec("a,rO"), of("a,rO", Access::Write));
        for bad in ["", ",ro", "a,ro,overlay", "a,overlay,ro", "a,ro,ro"] {
            assert!(spec(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_disk() {
        assert!(matches!(open_error(b""), DiskError::Empty));
        assert!(matches!(open_error(&[0; 513]), DiskError::Size(513)));
        for path in ["/", "/dev/null"] {
            let error = Disk::open(&spec(path).unwrap()).err().unwrap();
            assert!(matches!(error, DiskError::NoDisk), "{path}");
        }
        let error = Disk::open(&spec("/none").unwrap()).err().unwrap();
        assert!(matches!(error, DiskError::Open(_)));
    }

    #[test]
    fn other_formats() {
        for (name, at, magic) in FORMATS {
            let mut content = vec![0; 4096];
            content[at..][..magic.len()].copy_from_slice(magic);
            let error = open_error(&content);
            assert!(matches!(error, DiskError::Format(found) if found == name));
            let fix = error.fix(Path::new("x"));
            assert!(fix.contains("qemu-img convert -O raw x "), "{fix}");
        }
        // Short ones too, whatever their length.
        assert!(matches!(open_error(b"QFI\xfb"), DiskError::Format(_)));
    }

    #[test]
    fn a_writer_is_alone() {
        let file = file(&[0; 4096]);
        let path = name(&file);
        let open = |access| {
            let path = path.clone();
            Disk::open(&Spec { path, access })
        };
        let in_use = |access| matches!(open(access), Err(DiskError::InUse));
        let writer = open(Access::Write).unwrap();
        assert!(in_use(Access::Write) && in_use(Access::Read) && in_use(Access::Overlay));
        drop(writer);
        let reader = open(Access::Read).unwrap();
        let overlay = open(Access::Overlay).unwrap();
        assert!(in_use(Access::Write));
        drop((reader, overlay));
        open(Access::Write).unwrap();
    }

    #[test]
    fn promises() {
        let promises = |access| {
            let disk = disk_on(&file(&[0; 4096]), access);
            (
                disk.is_read_only(),
                disk.can_flush(),
                disk.can_discard(),
                disk.file().is_some(),
            )
        };
        assert_eq!(promises(Access::Write), (false, true, true, true));
        assert_eq!(promises(Access::Read), (true, false, false, true));
        assert_eq!(promises(Access::Overlay), (false, false, true, false));
    }
}
