// SPDX-License-Identifier: GPL-2.0
//! The Launcher's words, in files, each ended by NUL; see `launcher/src/plan/told.rs`.
//! A file that is absent says nothing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::num::NonZero;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::clock::Clock;
use crate::{Doing, Failure};

/// Everything that the Launcher says.
#[derive(Default)]
pub(crate) struct Config {
    /// `cmd`: the command; none: a shell.
    pub(crate) command: Vec<OsString>,
    /// `env`: additions to the environment. The last of a name counts.
    pub(crate) environment: BTreeMap<OsString, OsString>,
    /// `ports`: the names of the console's ports that are standard streams, and of streams that are
    /// closed.
    pub(crate) ports: Vec<OsString>,
    /// Of `mounts`: the root; none: the archive itself.
    pub(crate) root: Option<Share>,
    /// Of `mounts`: the others, in the order in which they are mounted.
    pub(crate) shares: Vec<Share>,
    /// `user`: who runs the command; none: root.
    pub(crate) user: Option<User>,
    /// `cwd`: where the command starts; empty: in a directory that is gone.
    pub(crate) directory: Option<PathBuf>,
    /// `clock`: the Host's time; none: the kernel's is right.
    pub(crate) clock: Option<Clock>,
    /// `ignored`: the signals that the command ignores when it starts; bit 0 is signal 1.
    pub(crate) ignored: u64,
    /// `limits`: the command's limits by their numbers: each now, and at most.
    pub(crate) limits: Vec<[u64; 2]>,
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
    /// Writes stay in the Launcher's memory.
    Private,
}

/// A user's identity, and the file mode bits that he leaves out.
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
        Self::parse(|name| {
            let path = directory.join(name);
            content(&path).doing(format!("read {}", path.display()))
        })
    }

    /// Reads the files that `content` has the contents of, by their names.
    fn parse(content: impl Fn(&str) -> Result<Vec<u8>, Failure>) -> Result<Self, Failure> {
        let words = |name| Ok(split(&content(name)?));
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
            clock: clock(&words("clock")?).ok_or_else(malformed("clock"))?,
            ignored: numbers(&words("ignored")?)
                .ok_or_else(malformed("ignored"))?
                .first()
                .copied()
                .unwrap_or(0),
            limits: numbers(&words("limits")?)
                .ok_or_else(malformed("limits"))?
                .chunks_exact(2)
                .map(|limit| [limit[0], limit[1]])
                .collect(),
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

/// The content of a file; nothing if there is none.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
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

/// The Host's time by three numbers, or no words.
fn clock(words: &[OsString]) -> Option<Option<Clock>> {
    let [wall_ns, tsc, tsc_khz] = numbers(words)?[..] else {
        return words.is_empty().then_some(None);
    };
    let tsc_khz = NonZero::new(tsc_khz)?;
    Some(Some(Clock {
        wall_ns,
        tsc,
        tsc_khz,
    }))
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
                "private" => Access::Private,
                _ => return None,
            },
        })
    };
    words.chunks(3).map(share).collect()
}

fn numbers(words: &[OsString]) -> Option<Vec<u64>> {
    let number = |word: &OsString| u64::from_str(word.to_str()?).ok();
    words.iter().map(number).collect()
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
    use std::collections::HashMap;

    use clap::Parser;
    use launcher::cli::{Cli, Command, Run};
    use launcher::plan::{root, told};
    use launcher::session::inherited;
    use launcher::session::streams::Streams;
    use nix::unistd::{getgid, getgroups, getuid};
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::subsequence;

    use super::*;
    use crate::names::CLOSED;

    const FILES: [&str; 9] = [
        "cmd", "env", "ports", "mounts", "user", "cwd", "clock", "ignored", "limits",
    ];

    fn parse(files: &[(&str, Vec<u8>)]) -> Option<Config> {
        let files: HashMap<_, _> = files.iter().cloned().collect();
        Config::parse(|name| Ok(files.get(name).cloned().unwrap_or_default())).ok()
    }

    /// A caller of `lg run` can say any bytes here but NUL.
    fn word() -> impl Strategy<Value = OsString> {
        vec(1..=u8::MAX, 0..20).prop_map(OsString::from_vec)
    }

    fn options() -> impl Strategy<Value = Run> {
        let variable = ("[^=\0]{1,9}", word());
        let share = ("[^\0]{1,9}", "[a-z0-9][a-zA-Z0-9._-]{0,9}", any::<bool>());
        (vec(word(), 0..5), vec(variable, 0..5), vec(share, 0..5)).prop_map(
            |(command, variables, shares)| {
                let Command::Run(mut options) = Cli::parse_from(["lg", "run"]).command else {
                    unreachable!()
                };
                options.command = command;
                for (name, value) in variables {
                    let mut variable = OsString::from(name + "=");
                    variable.push(value);
                    options.env.push(variable);
                }
                for (directory, tag, read_only) in shares {
                    options.share.push(launcher::devices::fs::share::Share {
                        directory: directory.into(),
                        tag,
                        read_only,
                        private: false,
                    });
                }
                *options
            },
        )
    }

    proptest! {
        #[test]
        fn anything_is_understood_or_refused(contents in vec(vec(any::<u8>(), 0..60), FILES.len())) {
            let _ = parse(&FILES.into_iter().zip(contents).collect::<Vec<_>>());
        }

        /// As above, with words that come nearer to good ones.
        #[test]
        fn words_are_understood_or_refused(
            contents in vec(vec("[a-z/]{0,3}|[0-9]{1,11}|ro|rw|private|/mnt", 0..7), FILES.len()),
        ) {
            let contents = contents.into_iter().map(|words| words.join("\0").into_bytes());
            let _ = parse(&FILES.into_iter().zip(contents).collect::<Vec<_>>());
        }

        #[test]
        fn what_the_launcher_writes_is_read(
            options in options(),
            closed in subsequence(&CLOSED[..], 0..=3),
            names in subsequence(&["lg.control", "lg.terminal", "lg.stdin", "lg.output", "lg.stdout", "lg.stderr"][..], 0..=6),
            root in option::of(any::<bool>()),
        ) {
            let streams = Streams { place: None, console: false, names, closed };
            let root = root.map(|write| root::Root { directory: "/".into(), write });
            let config = parse(&told::files(&options, &streams, root.as_ref()).unwrap()).unwrap();

            prop_assert_eq!(config.command, options.command);
            for (index, word) in options.env.iter().enumerate() {
                let (name, value) = variable(word.clone());
                let again = |later: &OsString| variable(later.clone()).0 == name;
                if !options.env[index + 1..].iter().any(again) {
                    prop_assert_eq!(&config.environment[&name], &value);
                }
            }
            let ports = [&streams.names[..], &streams.closed].concat();
            prop_assert_eq!(config.ports, ports);
            prop_assert_eq!(config.ignored, inherited::ignored());
            prop_assert_eq!(config.limits, inherited::limits());
            let access = config.root.map(|root| root.access);
            prop_assert_eq!(access, root.as_ref().map(|root| match root.write {
                true => Access::ReadWrite,
                false => Access::Private,
            }));
            prop_assert_eq!(config.shares.len(), options.share.len());
            for (share, asked) in config.shares.iter().zip(&options.share) {
                prop_assert_eq!(&share.tag, &asked.tag);
                prop_assert_eq!(&share.target, &Path::new("/mnt").join(&asked.tag));
                let read_only = share.access == Access::ReadOnly;
                prop_assert_eq!(read_only, asked.read_only);
            }
            let directory = root.as_ref().map(|_| std::env::current_dir().unwrap());
            prop_assert_eq!(config.directory, directory);
            prop_assert_eq!(config.user.is_some(), root.is_some());
            if let Some(user) = config.user {
                prop_assert_eq!((user.uid, user.gid), (getuid().as_raw(), getgid().as_raw()));
                let groups: Vec<_> = getgroups().unwrap().into_iter().map(|gid| gid.as_raw()).collect();
                prop_assert_eq!(user.groups, groups);
                prop_assert!(user.umask <= 0o777);
            }
        }
    }

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
    fn clocks() {
        let parse = |text: &str| super::clock(&split(text.as_bytes()));
        let clock = parse("00020\x003\x004\0").flatten().unwrap();
        assert_eq!((clock.wall_ns, clock.tsc, clock.tsc_khz.get()), (20, 3, 4));
        assert!(parse("").is_some_and(|none| none.is_none()));
        for bad in [
            "1\0",
            "1\x002\0",
            "1\x002\x000\0",
            "1\x002\x003\x004\0",
            "x\x001\x001\0",
        ] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn mounts_are_threes() {
        let parse = |text: &str| super::shares(&split(text.as_bytes()));
        let share = |tag: &str, target: &str, access| Share {
            tag: tag.into(),
            target: target.into(),
            access,
        };
        assert_eq!(
            parse("lg.root\0/\0private\0src\0/mnt/src\0ro\0").unwrap(),
            [
                share("lg.root", "/", Access::Private),
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
        let parse =
            |text: &str| super::user(&text.split(' ').map(OsString::from).collect::<Vec<_>>());
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
