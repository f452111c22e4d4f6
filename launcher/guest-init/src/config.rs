// SPDX-License-Identifier: GPL-2.0
//! What the Launcher says, in files of words that are ended by NUL; see `launcher/src/told.rs`.
//! A file that is absent says nothing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Doing, Failure};

/// Everything that the Launcher says.
#[derive(Default)]
pub(crate) struct Config {
    /// `cmd`: the command; none: a shell.
    pub(crate) command: Vec<OsString>,
    /// `env`: additions to the environment. The last of a name counts.
    pub(crate) environment: BTreeMap<OsString, OsString>,
    /// `ports`: the names of the console's ports that are standard streams.
    pub(crate) ports: Vec<OsString>,
    /// Of `mounts`: the root; none: the archive itself.
    pub(crate) root: Option<Share>,
    /// Of `mounts`: the others, in the order in which they are mounted.
    pub(crate) shares: Vec<Share>,
    /// `user`: who runs the command; none: root.
    pub(crate) user: Option<User>,
    /// `cwd`: where the command starts.
    pub(crate) directory: Option<PathBuf>,
}

/// A directory of the Host's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The virtio-fs device's.
    pub(crate) tag: String,
    /// Absolute path.
    pub(crate) target: PathBuf,
    pub(crate) access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
    /// Writes stay in the guest's memory.
    Overlay,
}

/// Who somebody is, and the file mode bits that he leaves out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) umask: u32,
    pub(crate) groups: Vec<u32>,
}

impl Config {
    /// Reads the files in `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, Failure> {
        let words = |name: &str| {
            let path = directory.join(name);
            words(&path).doing(format!("read {}", path.display()))
        };
        let malformed = |name| move || Failure(format!("/lg/{name} is malformed"));
        let mounts = words("mounts")?;
        let mut config = Self {
            command: words("cmd")?,
            environment: words("env")?.into_iter().map(variable).collect(),
            ports: words("ports")?,
            user: match &words("user")?[..] {
                [] => None,
                words => Some(user(words).ok_or_else(malformed("user"))?),
            },
            directory: words("cwd")?.into_iter().next().map(PathBuf::from),
            ..Self::default()
        };
        for share in shares(&mounts).ok_or_else(malformed("mounts"))? {
            if share.target == Path::new("/") {
                config.root = Some(share);
            } else {
                config.shares.push(share);
            }
        }
        Ok(config)
    }
}

fn words(path: &Path) -> io::Result<Vec<OsString>> {
    match fs::read(path) {
        Ok(bytes) => Ok(split(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn split(bytes: &[u8]) -> Vec<OsString> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let words = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    words
        .split(|&byte| byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

/// NAME=VALUE; without "=" the value is empty.
fn variable(word: OsString) -> (OsString, OsString) {
    let bytes = word.as_bytes();
    let equals = bytes.iter().position(|&byte| byte == b'=');
    let (name, value) = bytes.split_at(equals.unwrap_or(bytes.len()));
    let value = value.get(1..).unwrap_or_default();
    (
        OsStr::from_bytes(name).into(),
        OsStr::from_bytes(value).into(),
    )
}

/// Tag, target and access of each.
fn shares(words: &[OsString]) -> Option<Vec<Share>> {
    let share = |words: &[OsString]| {
        let [tag, target, access] = words else {
            return None;
        };
        Some(Share {
            tag: tag.to_str()?.to_owned(),
            target: Some(PathBuf::from(target)).filter(|path| path.is_absolute())?,
            access: match access.to_str()? {
                "ro" => Access::ReadOnly,
                "rw" => Access::ReadWrite,
                "overlay" => Access::Overlay,
                _ => return None,
            },
        })
    };
    words.chunks(3).map(share).collect()
}

/// User, group and file mode mask, and then all supplementary groups.
fn user(words: &[OsString]) -> Option<User> {
    let [uid, gid, umask, groups @ ..] = words else {
        return None;
    };
    let number = |word: &OsString| u32::from_str(word.to_str()?).ok();
    Some(User {
        uid: number(uid)?,
        gid: number(gid)?,
        umask: u32::from_str_radix(umask.to_str()?, 8).ok()?,
        groups: groups.iter().map(number).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said() {
        let config = Config::read(Path::new("/no-such-directory")).ok().unwrap();
        assert!(config.command.is_empty() && config.environment.is_empty());
        assert!(config.root.is_none() && config.shares.is_empty());
        assert!(config.user.is_none() && config.directory.is_none());
    }

    #[test]
    fn words_end_with_nul() {
        assert_eq!(split(b"sh\0-c\0exit 7\0"), ["sh", "-c", "exit 7"]);
        assert_eq!(split(b""), [""; 0]);
        assert_eq!(split(b"\0"), [""]);
        assert_eq!(split(b"a\0\0b"), ["a", "", "b"]);
    }

    #[test]
    fn variables() {
        let variable = |word: &str| variable(word.into());
        assert_eq!(variable("A=b=c"), ("A".into(), "b=c".into()));
        assert_eq!(variable("A="), ("A".into(), "".into()));
        assert_eq!(variable("A"), ("A".into(), "".into()));
    }

    #[test]
    fn mounts_are_threes() {
        let parse = |text: &str| shares(&split(text.as_bytes()));
        let share = |tag: &str, target: &str, access| Share {
            tag: tag.into(),
            target: target.into(),
            access,
        };
        assert_eq!(
            parse("lg.root\0/\0overlay\0src\0/mnt/src\0ro\0").unwrap(),
            [
                share("lg.root", "/", Access::Overlay),
                share("src", "/mnt/src", Access::ReadOnly)
            ]
        );
        assert_eq!(parse("").unwrap(), []);
        for bad in ["tag\0", "tag\0/a\0", "tag\0a\0rw\0", "tag\0/a\0rx\0", "\0"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn users() {
        let parse = |text: &str| user(&text.split(' ').map(OsString::from).collect::<Vec<_>>());
        let expected = User {
            uid: 1000,
            gid: 100,
            umask: 0o27,
            groups: vec![4, 27],
        };
        assert_eq!(parse("1000 100 27 4 27"), Some(expected));
        assert!(parse("0 0 22").is_some_and(|user| user.groups.is_empty()));
        for bad in ["", "0 0", "-1 0 22", "0 0 9", "0 0 22 x", "0 0 22 "] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
