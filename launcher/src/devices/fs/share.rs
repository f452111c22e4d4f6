// SPDX-License-Identifier: GPL-2.0
//! What the user shares: `--share DIR:TAG[:ro]`.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use super::cow::CowServer;
use super::host;
use super::server::{FileServer, Limits};
use crate::devices::fs::{Fs, TAG_MAX};
use crate::devices::Device;
use crate::report::codes::Code;
use crate::report::system::setup;
use crate::report::{Error, Explain};
use crate::sandbox::Grant;

/// The directory in which the Guest's init mounts shares, each below its tag.
pub const GUEST_DIRECTORY: &str = "/mnt";
/// Descriptors that are left for all else: RAM, streams, disks, eventfds.
const DESCRIPTORS_FOR_OTHERS: u64 = 192;
/// More than this many open descriptors for one share are of no use.
const DESCRIPTORS_MAX: u64 = 1 << 16;

/// A directory for the Guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The directory on the Host.
    pub directory: PathBuf,
    /// The name by which the Guest mounts it.
    pub tag: String,
    /// The Guest may not change anything on the Host.
    pub read_only: bool,
    /// The Guest's changes stay in memory, and go with it.
    pub private: bool,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "not a share; examples are .:src and /usr:usr:ro".to_string();
        let (rest, read_only) = match text.strip_suffix(":ro") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        let (directory, tag) = rest.rsplit_once(':').ok_or_else(bad)?;
        if directory.is_empty() {
            return Err(bad());
        }
        check_tag(tag)?;
        Ok(Self {
            directory: directory.into(),
            tag: tag.into(),
            read_only,
            private: false,
        })
    }
}

/// A tag becomes the name of a directory in the Guest.
fn check_tag(tag: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !tag.starts_with(|c: char| c.is_ascii_alphanumeric()) || !tag.chars().all(plain) {
        return Err(format!(
            "\"{tag}\" is no tag: letters, digits, '.', '_' and '-' make one"
        ));
    }
    if tag.len() > TAG_MAX {
        return Err(format!("a tag has at most {TAG_MAX} characters"));
    }
    Ok(())
}

impl Share {
    /// The part of the Host that has to stay reachable.
    pub fn grant(&self) -> Grant {
        Grant {
            directory: self.directory.clone(),
            write: !self.read_only,
        }
    }

    /// Opens the directory, and makes its device. What is private has `private` bytes of memory.
    fn open(&self, limits: Limits, private: u64) -> Result<Box<dyn Device>, Error> {
        let failed = |source| {
            let directory = self.directory.clone();
            Error::from(ShareError::Refused { directory, source })
        };
        let root = host::open_root(&self.directory).map_err(failed)?;
        Ok(if self.private {
            let files = CowServer::new(root, limits, private).map_err(failed)?;
            Box::new(Fs::new(&self.tag, files))
        } else {
            let files = FileServer::new(root, self.read_only, limits).map_err(failed)?;
            Box::new(Fs::new(&self.tag, files))
        })
    }
}

/// The reasons why a directory is not shared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ShareError {
    #[error("cannot share {}", directory.display())]
    Refused {
        directory: PathBuf,
        source: io::Error,
    },
    #[error("two shares have the tag {0}")]
    TagTwice(String),
}

impl Explain for ShareError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::Share,
            Self::TagTwice(_) => Code::TagTwice,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Refused { source, .. } => source.to_string(),
            Self::TagTwice(_) => "the guest tells shares apart by it".into(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Refused { .. } => "name a directory that you may read".into(),
            Self::TagTwice(_) => self.code().fix().to_string(),
        }
    }
}

/// Makes the devices for all of `shares`, and divides the descriptors that this process may have among them.
///
/// What a Guest with `memory` bytes of RAM changes in private ones takes at most half as much again.
pub fn open_all(shares: &[Share], memory: u64) -> Result<Vec<Box<dyn Device>>, Error> {
    if shares.is_empty() {
        return Ok(Vec::new());
    }
    for (index, share) in shares.iter().enumerate() {
        if shares[..index].iter().any(|other| other.tag == share.tag) {
            return Err(ShareError::TagTwice(share.tag.clone()).into());
        }
    }
    let all = raise_descriptor_limit().map_err(setup("the shares' descriptors"))?;
    let each = all.saturating_sub(DESCRIPTORS_FOR_OTHERS) / shares.len() as u64;
    let each = each.clamp(32, DESCRIPTORS_MAX) as usize;
    let limits = Limits {
        inodes: each / 2,
        handles: each / 2,
    };
    let open = |share: &Share| share.open(limits, memory / 2);
    shares.iter().map(open).collect()
}

/// From here on files are made with the mode that the Guest asks for: its own umask counts.
pub fn leave_modes_to_the_guest() {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
}

/// Allows this process as many descriptors as it can have, and tells how many those are.
fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let share = |directory: &str, tag: &str, read_only| Share {
            directory: directory.into(),
            tag: tag.into(),
            read_only,
            private: false,
        };
        let parse = |text: &str| text.parse::<Share>();
        assert_eq!(parse(".:src"), Ok(share(".", "src", false)));
        assert_eq!(parse("/usr:usr:ro"), Ok(share("/usr", "usr", true)));
        assert_eq!(parse("/a:b:c:rw"), Ok(share("/a:b", "c", false)));
        assert_eq!(parse("x:ro:ro"), Ok(share("x", "ro", true)));
        for bad in [
            "", "src", ":tag", "dir:", "dir:a/b", "dir:..", "d:-x", "ro:ro",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("d:{}", "x".repeat(36))).is_ok());
        assert!(parse(&format!("d:{}", "x".repeat(37))).is_err());
    }

    #[test]
    fn two_shares_need_two_tags() {
        let share: Share = "/:x:ro".parse().unwrap();
        let Err(error) = open_all(&[share.clone(), share], 0) else {
            panic!("it should be refused")
        };
        assert_eq!(error.code(), Code::TagTwice);
        assert!(error.to_string().ends_with(" x"), "{error}");
    }

    #[test]
    fn what_is_no_directory_is_no_share() {
        for path in ["/nonexistent", "/etc/passwd", "/proc"] {
            let share: Share = format!("{path}:x:ro").parse().unwrap();
            let Err(error) = open_all(&[share], 0) else {
                panic!("{path} should be refused")
            };
            assert_eq!(error.code(), Code::Share, "{error}");
        }
    }
}
