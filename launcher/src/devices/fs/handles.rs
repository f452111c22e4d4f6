// SPDX-License-Identifier: GPL-2.0
//! The files and directories that the Guest has open.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

/// A read of a directory asks the Host for at most so many bytes of it at a time.
const DIRECTORY_READ_MAX: usize = 1 << 16;
/// One entry of a directory always fits.
const DIRECTORY_READ_MIN: usize = 512;

/// An open regular file.
pub struct OpenFile {
    /// The file.
    pub file: File,
    appends: bool,
}

impl OpenFile {
    /// The next write goes to the end of the file, or to where it says.
    ///
    /// The file is not simply opened for appending: what the Guest has changed through a mapping is
    /// written back by any handle of the file that it finds, and belongs where it says.
    pub fn set_appending(&mut self, appends: bool) -> io::Result<()> {
        if self.appends != appends {
            let flags = rustix::fs::fcntl_getfl(&self.file)? - OFlags::APPEND;
            let append = if appends {
                OFlags::APPEND
            } else {
                OFlags::empty()
            };
            rustix::fs::fcntl_setfl(&self.file, flags | append)?;
            self.appends = appends;
        }
        Ok(())
    }
}

/// An entry of a directory, as the Host has it.
pub struct HostEntry<'a> {
    /// The name.
    pub name: &'a CStr,
    /// The inode number.
    pub number: u64,
    /// The offset of the next one.
    pub next: u64,
    /// The type, as far as the directory tells.
    pub file_type: FileType,
}

/// An open directory.
pub struct OpenDirectory {
    /// The directory; none for one that is shown empty.
    pub file: Option<File>,
    at: u64,
}

impl OpenDirectory {
    /// Gives the entries from `offset` on to `take`, until that wants no more. About `size` bytes
    /// of them are asked for.
    ///
    /// Offsets are the Host's file system's own: they stay good while names come and go.
    pub fn read(
        &mut self,
        offset: u64,
        size: usize,
        mut take: impl FnMut(HostEntry<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if offset != self.at {
            rustix::fs::seek(file, SeekFrom::Start(offset))?;
        }
        let size = size.clamp(DIRECTORY_READ_MIN, DIRECTORY_READ_MAX);
        let mut buffer = vec![MaybeUninit::uninit(); size];
        let mut entries = RawDir::new(file, &mut buffer);
        // The Host reads on, and unless all of that is taken, where it stands is not known.
        self.at = u64::MAX;
        let mut at = offset;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let next = entry.next_entry_cookie();
            let taken = take(HostEntry {
                name: entry.file_name(),
                number: entry.ino(),
                next,
                file_type: entry.file_type(),
            });
            if !taken? {
                return Ok(());
            }
            at = next;
        }
        self.at = at;
        Ok(())
    }
}

/// Something open.
pub enum Handle {
    /// A regular file.
    File(OpenFile),
    /// A directory.
    Directory(OpenDirectory),
}

/// The handles of a share, by the numbers that the Guest was given. None is used twice.
pub struct Handles {
    handles: HashMap<u64, Handle>,
    next: u64,
    max: usize,
}

impl Handles {
    /// Room for at most `max`.
    pub fn new(max: usize) -> Self {
        Self {
            handles: HashMap::new(),
            next: 1,
            max,
        }
    }

    /// Fails if there is no room for one more beside `others`: before a file is opened, or made.
    pub fn check_room(&self, others: usize) -> io::Result<()> {
        match self.handles.len() + others < self.max {
            true => Ok(()),
            false => Err(Errno::NFILE.into()),
        }
    }

    /// Adds an open file, which was opened for appending or not.
    pub fn add_file(&mut self, file: File, appends: bool) -> u64 {
        self.add(Handle::File(OpenFile { file, appends }))
    }

    /// Adds an open directory.
    pub fn add_directory(&mut self, file: Option<File>) -> u64 {
        self.add(Handle::Directory(OpenDirectory { file, at: 0 }))
    }

    fn add(&mut self, handle: Handle) -> u64 {
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, handle);
        number
    }

    /// The open file of this number.
    pub fn file(&mut self, number: u64) -> io::Result<&mut OpenFile> {
        match self.handles.get_mut(&number) {
            Some(Handle::File(file)) => Ok(file),
            _ => Err(Errno::BADF.into()),
        }
    }

    /// The open directory of this number.
    pub fn directory(&mut self, number: u64) -> io::Result<&mut OpenDirectory> {
        match self.handles.get_mut(&number) {
            Some(Handle::Directory(directory)) => Ok(directory),
            _ => Err(Errno::BADF.into()),
        }
    }

    /// Closes one.
    pub fn close(&mut self, number: u64) -> io::Result<()> {
        match self.handles.remove(&number) {
            Some(_) => Ok(()),
            None => Err(Errno::BADF.into()),
        }
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.handles.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_could_not_be_given_comes_again() {
        let directory = tempfile::tempdir().unwrap();
        for n in 0..9 {
            File::create(directory.path().join(n.to_string())).unwrap();
        }
        let mut open = OpenDirectory {
            file: Some(File::open(&directory).unwrap()),
            at: 0,
        };
        let mut names = Vec::new();
        let mut offset = 0;
        // Every second time the Guest's buffer cannot be written.
        for round in 0.. {
            let mut more = false;
            let result = open.read(offset, 4096, |entry| {
                if more {
                    return match round % 2 {
                        0 => Err(io::ErrorKind::InvalidInput.into()),
                        _ => Ok(false),
                    };
                }
                more = true;
                names.push(entry.name.to_owned());
                offset = entry.next;
                Ok(true)
            });
            if !more {
                result.unwrap();
                break;
            }
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 2 + 9);
    }
}
