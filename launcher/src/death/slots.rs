// SPDX-License-Identifier: GPL-2.0
//! Where accounts of deaths are kept: a few files in the user's state directory.
//!
//! In the sandbox no file can be made or opened, so each run takes one before. It stays as it is unless the Guest
//! dies. Never more than [`COUNT`] are there, and the oldest account is what a new one replaces.

use std::cmp::Reverse;
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{fcntl, FcntlArg};
use nix::libc;

/// The accounts that are kept.
const COUNT: u32 = 10;

/// A file for an account, which is nobody else's while this is there.
#[derive(Debug)]
pub struct Slot {
    path: PathBuf,
    file: File,
}

impl Slot {
    /// Takes one in `directory`, which is made if need be: an empty one, a new one, or the oldest.
    ///
    /// # Errors
    ///
    /// Nothing can be written there, or all are taken.
    pub fn take(directory: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut slots: Vec<_> = (0..COUNT).map(|n| directory.join(n.to_string())).collect();
        slots.sort_by_key(|path| rank(path));
        let mut last = io::Error::from(io::ErrorKind::WouldBlock);
        for path in slots {
            match Self::open(path) {
                Ok(slot) => return Ok(slot),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn open(path: PathBuf) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)?;
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole))?;
        Ok(Self { path, file })
    }

    /// Puts an account there, and says where that is.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn write(&self, account: &[u8]) -> io::Result<&Path> {
        self.file.set_len(0)?;
        self.file.write_all_at(account, 0)?;
        Ok(&self.path)
    }
}

/// The order in which a slot is taken.
fn rank(path: &Path) -> (bool, Reverse<bool>, Option<SystemTime>) {
    let metadata = fs::symlink_metadata(path).ok();
    let used = metadata.as_ref().is_some_and(|metadata| metadata.len() > 0);
    let written = metadata
        .as_ref()
        .and_then(|metadata| metadata.modified().ok());
    (used, Reverse(metadata.is_some()), written)
}

/// The directory of this user's.
pub fn directory() -> Option<PathBuf> {
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("lg/deaths"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_the_oldest_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("deaths");
        let name = |slot: &Slot| slot.path.file_name().unwrap().to_owned();
        // Nobody has died: it is the same one again.
        let first = name(&Slot::take(&directory).unwrap());
        assert_eq!(name(&Slot::take(&directory).unwrap()), first);
        let mut taken = Vec::new();
        for n in 0..COUNT {
            let slot = Slot::take(&directory).unwrap();
            slot.write(format!("death {n}").as_bytes()).unwrap();
            let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n.into());
            slot.file.set_modified(old).unwrap();
            taken.push(slot);
        }
        assert!(Slot::take(&directory).is_err());
        let names: Vec<_> = taken.iter().map(name).collect();
        drop(taken);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), COUNT as usize);
        let again = Slot::take(&directory).unwrap();
        assert_eq!(name(&again), names[0]);
        assert_eq!(fs::read(&again.path).unwrap(), b"death 0");
        again.write(b"new").unwrap();
        assert_eq!(fs::read(&again.path).unwrap(), b"new");
        assert_eq!(name(&Slot::take(&directory).unwrap()), names[1]);
    }
}
