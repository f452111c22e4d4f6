// SPDX-License-Identifier: GPL-2.0
//! The words for the Guest's init, in an archive behind the initrd.
//!
//! It finds these files in /lg, of words which are ended by NUL (`launcher/guest-init/src/config.rs`
//! reads them):
//!
//! * `machine`: `lguest` or `xen`, by whose ABI the kernel runs.
//! * `cmd`: the command. Absent: a shell.
//! * `env`: additions to its environment, NAME=VALUE.
//! * `ports`: the names of the console's ports which are its terminal, standard input, output and
//!   error; `closed.stdin` and the like for streams that are closed; and `console` if its terminal is the
//!   console itself.
//! * `mounts`: shares, three words each: the tag of the virtio-fs device, where it is mounted, and
//!   `ro`, `rw` or, for changes that stay in memory, `private`. What is mounted at `/` is the root.
//! * `user`: user, group, file mode mask (octal) and supplementary groups. Absent: root.
//! * `cwd`: the directory in which the command starts; no name: one that is gone. Absent: /root.
//! * `modules`: a directory of modules, whose names begin with the number in the order of loading. It is
//!   there, though it may be empty, if the kernel runs by Xen's ABI; then it is waited for the devices.
//! * `clock`: Unix time in nanoseconds, what the time stamp counter read then, and how many thousands a second
//!   that counts. It is there if the kernel runs by Xen's ABI.
//! * `ignored`: the signals that it ignores when it starts, as a number: bit 0 is signal 1.
//! * `limits`: its limits (setrlimit(2)) in the order of their numbers, two numbers each: what it is, and to
//!   what it can be raised.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{getgid, getgroups, getuid};

use crate::boot::cpio::Archive;
use crate::cli::Run;
use crate::devices::fs::share::{Share, GUEST_DIRECTORY};
use crate::plan::modules::Module;
use crate::plan::root::{self, Root};
use crate::report::system::setup;
use crate::report::Error;
use crate::session::inherited;
use crate::session::streams::Streams;

/// What of our environment a Guest's terminal needs, and what the caller finds his way by in a root
/// that he knows.
const TERMINAL: [&str; 1] = ["TERM"];
const CALLER: [&str; 5] = ["HOME", "USER", "LOGNAME", "SHELL", "PATH"];

/// The Host's time, for a Guest that has lost some of its own.
#[derive(Debug, Default)]
pub struct Clock {
    /// Unix time in nanoseconds, when ...
    pub wall_ns: u64,
    /// ... RDTSC read this.
    pub tsc: u64,
    /// Its frequency.
    pub tsc_khz: u32,
}

/// The archive, which [`set_clock`] completes.
///
/// # Errors
///
/// The system does not say who the caller is, or where.
pub fn archive(
    options: &Run,
    streams: &Streams,
    root: Option<&Root>,
    modules: Option<&[Module]>,
) -> Result<Vec<u8>, Error> {
    let machine = if modules.is_some() { "xen" } else { "lguest" };
    let mut archive = Archive::default().directory("lg");
    archive = archive.file("lg/machine", &words(&[machine]));
    for (name, content) in files(options, streams, root)? {
        archive = archive.file(&format!("lg/{name}"), &content);
    }
    if let Some(modules) = modules {
        archive = archive.directory("lg/modules");
        for (number, (name, content)) in modules.iter().enumerate() {
            archive = archive.file(&format!("lg/modules/{number:03}-{name}"), content);
        }
    }
    let mut archive = archive.finish();
    if modules.is_some() {
        archive.extend(clock(&Clock::default()));
    }
    Ok(archive)
}

/// Tells `now` in an initrd that ends with an [`archive`] for a kernel of Xen's ABI: when that is made and placed, nobody
/// knows yet how fast the counter counts. Any other initrd, and none, stays as it is.
pub fn set_clock(initrd: &mut [u8], now: &Clock) {
    let unknown = clock(&Clock::default());
    if initrd.ends_with(&unknown) {
        let rest = initrd.len() - unknown.len();
        initrd[rest..].copy_from_slice(&clock(now));
    }
}

/// An archive with `clock`, as long for one time as for another.
fn clock(now: &Clock) -> Vec<u8> {
    let numbers = [now.wall_ns, now.tsc, now.tsc_khz.into()];
    let content = words(&numbers.map(|number| format!("{number:020}")));
    Archive::default().file("lg/clock", &content).finish()
}

/// The files in it: their names and what is in them.
///
/// # Errors
///
/// As of [`archive`].
pub fn files(
    options: &Run,
    streams: &Streams,
    root: Option<&Root>,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let mut files = Vec::new();
    if !options.command.is_empty() {
        files.push(("cmd", words(&options.command)));
    }
    files.push(("env", words(&environment(options, root))));
    if let Some(root) = root {
        let caller = caller().map_err(setup("the caller's identity"))?;
        files.push(("user", words(&caller)));
        // A directory that is gone, or out of the caller's sight, has no name.
        let directory = env::current_dir().map(|directory| root.name_of(&directory));
        files.push(("cwd", words(&[directory.unwrap_or_default()])));
    }
    files.push(("mounts", mounts(root, &options.share)));
    files.push(("ports", words(&streams.told())));
    files.push(("ignored", words(&[inherited::ignored().to_string()])));
    let limits = inherited::limits().concat();
    let limits: Vec<_> = limits.iter().map(u64::to_string).collect();
    files.push(("limits", words(&limits)));
    Ok(files)
}

/// The content of `env`: what goes there by itself, and then what is asked for.
pub fn environment(options: &Run, root: Option<&Root>) -> Vec<OsString> {
    let known = if root.is_some() { &CALLER[..] } else { &[] };
    let passed = TERMINAL.iter().chain(known).map(OsString::from);
    let asked = options.env.iter().cloned();
    let passed = passed.filter_map(variable);
    let passed = passed.chain(root.and_then(working_directory));
    passed.chain(asked.filter_map(variable)).collect()
}

/// The name that the caller's shell has for the directory that it is in, which may be one by symbolic
/// links, as its word for what it starts.
fn working_directory(root: &Root) -> Option<OsString> {
    let named = PathBuf::from(env::var_os("PWD")?);
    let [by_name, here] = [&named, Path::new(".")].map(|path| fs::metadata(path).ok());
    let same = |one: &fs::Metadata, other: &fs::Metadata| {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    let is_here = named.is_absolute() && same(&by_name?, &here?);
    // Below another root, links need not lead to the same place.
    let is_same_root = root.directory == Path::new("/");
    (is_here && is_same_root).then(|| {
        let mut variable = OsString::from("PWD=");
        variable.push(named);
        variable
    })
}

/// The content of `mounts`.
fn mounts(root: Option<&Root>, shares: &[Share]) -> Vec<u8> {
    let mut all = Vec::new();
    if let Some(root) = root {
        let access = if root.write { "rw" } else { "private" };
        all.extend([root::TAG, "/", access].map(String::from));
    }
    for Share { tag, read_only, .. } in shares {
        let access = if *read_only { "ro" } else { "rw" };
        all.extend([tag, &format!("{GUEST_DIRECTORY}/{tag}"), access].map(String::from));
    }
    words(&all)
}

fn words(words: &[impl AsRef<OsStr>]) -> Vec<u8> {
    let words = words.iter().map(|word| word.as_ref().as_bytes());
    words
        .flat_map(|word| [word, b"\0"])
        .collect::<Vec<_>>()
        .concat()
}

/// NAME=VALUE as it is, NAME with the caller's value; none if he has none.
fn variable(mut word: OsString) -> Option<OsString> {
    if !word.as_bytes().contains(&b'=') {
        let value = env::var_os(&word)?;
        word.push("=");
        word.push(value);
    }
    Some(word)
}

/// The words of `user` for who calls us.
fn caller() -> io::Result<Vec<String>> {
    // There is a system call to change the file mode mask, and none to read it.
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let mask = mask.ok_or_else(|| io::Error::other("/proc/self/status names no Umask"))?;
    let word = |id: &dyn Display| id.to_string();
    let mut words = vec![word(&getuid()), word(&getgid()), mask.trim().into()];
    words.extend(getgroups()?.iter().map(|group| word(group)));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::cpio::tests::cpio;
    use crate::cli::tests::run;

    fn piped() -> Streams {
        Streams {
            place: None,
            console: false,
            names: vec!["lg.stdin", "lg.stdout"],
            closed: vec!["closed.stderr"],
        }
    }

    fn typed() -> Streams {
        Streams {
            place: None,
            console: true,
            names: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// The files for these options, by name.
    fn told(
        arguments: &[&str],
        streams: &Streams,
        root: Option<&Root>,
    ) -> impl Fn(&str) -> Option<String> {
        let archive = archive(&run(arguments).unwrap(), streams, root, None).unwrap();
        let list = String::from_utf8(cpio(&["-t", "--quiet"], &archive)).unwrap();
        move |name| {
            let path = format!("lg/{name}");
            list.lines().any(|line| line == path).then(|| {
                let content = cpio(&["-i", "--quiet", "--to-stdout", &path], &archive);
                String::from_utf8(content).unwrap()
            })
        }
    }

    #[test]
    fn an_archive_is_told_what_to_run() {
        let file = told(&["--", "sh", "-c", "exit 7"], &piped(), None);
        assert_eq!(file("cmd").unwrap(), "sh\0-c\0exit 7\0");
        let ports = "lg.stdin\0lg.stdout\0closed.stderr\0";
        assert_eq!(file("ports").unwrap(), ports);
        assert_eq!(file("limits").unwrap().matches('\0').count(), 32);
        assert_eq!((file("user"), file("cwd")), (None, None));
        assert_eq!(file("mounts").unwrap(), "");
        assert!(!file("env").unwrap().contains("PATH="));
        let file = told(&[], &typed(), None);
        assert_eq!(file("cmd"), None);
        assert_eq!(file("ports").unwrap(), "console\0");
    }

    #[test]
    fn modules_are_numbered() {
        let list = |modules: Option<&[Module]>| {
            let archive = archive(&run(&[]).unwrap(), &typed(), None, modules).unwrap();
            String::from_utf8(cpio(&["-t", "--quiet"], &archive)).unwrap()
        };
        let modules = ["b.ko", "a.ko"].map(|name| (name.to_owned(), b"x".to_vec()));
        let list_of_two = list(Some(&modules));
        assert!(
            list_of_two.ends_with("lg/modules\nlg/modules/000-b.ko\nlg/modules/001-a.ko\n"),
            "{list_of_two}"
        );
        assert!(list(Some(&[])).ends_with("lg/modules\n"));
        assert!(!list(None).contains("modules"));
    }

    #[test]
    fn the_clock_is_told_in_place() {
        let mut initrd = archive(&run(&[]).unwrap(), &typed(), None, Some(&[])).unwrap();
        let (size, archive) = (initrd.len(), clock(&Clock::default()).len());
        let now = Clock {
            wall_ns: u64::MAX,
            tsc: 1,
            tsc_khz: u32::MAX,
        };
        set_clock(&mut initrd, &now);
        assert_eq!(initrd.len(), size);
        let content = cpio(&["-i", "--quiet", "--to-stdout"], &initrd[size - archive..]);
        let numbers = "18446744073709551615\x0000000000000000000001\x0000000000004294967295\0";
        assert_eq!(content, numbers.as_bytes());
    }

    #[test]
    fn variables_follow_those_that_go_by_themselves() {
        // That it is set, cargo sees to.
        let name = "CARGO_MANIFEST_DIR";
        let arguments = [
            "--env",
            "A=b=c",
            "--env",
            name,
            "--env",
            "LG_NO_SUCH",
            "--env",
            "TERM=x",
        ];
        let file = told(&arguments, &piped(), None);
        let expected = format!("A=b=c\0{name}={}\0TERM=x\0", env::var(name).unwrap());
        assert!(file("env").unwrap().ends_with(&expected));
    }

    #[test]
    fn a_root_is_told_who_and_where() {
        let root = |write| Root {
            directory: "/".into(),
            write,
        };
        let file = told(&["--", "true"], &piped(), Some(&root(false)));
        assert_eq!(file("mounts").unwrap(), "lg.root\0/\0private\0");
        let directory = env::current_dir().unwrap();
        assert_eq!(file("cwd").unwrap(), format!("{}\0", directory.display()));
        let ids = format!("{}\0{}\0", getuid(), getgid());
        let user = file("user").unwrap();
        assert!(user.starts_with(&ids));
        let mask = u32::from_str_radix(user.split('\0').nth(2).unwrap(), 8);
        assert!(mask.is_ok_and(|mask| mask <= 0o777), "{user:?}");
        let path = format!("PATH={}\0", env::var("PATH").unwrap());
        assert!(file("env").unwrap().contains(&path));
        let shares = ["--share", "/a:b:ro", "--share", "/c:d"];
        let file = told(&shares, &piped(), Some(&root(true)));
        let mounts = "lg.root\0/\0rw\0b\0/mnt/b\0ro\0d\0/mnt/d\0rw\0";
        assert_eq!(file("mounts").unwrap(), mounts);
    }
}
