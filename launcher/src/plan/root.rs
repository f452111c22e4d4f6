// SPDX-License-Identifier: GPL-2.0
//! The Guest's root: a directory of the Host's, unless an initrd is to be all of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::Run;
use crate::devices::fs::share::Share;
use crate::report::codes::Code;
use crate::report::Explain;

/// The tag of the device that serves it.
pub const TAG: &str = "lg.root";

/// The directory that is the Guest's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// An absolute path without links.
    pub directory: PathBuf,
    /// The Guest's writes go there. Otherwise they stay in lg's memory.
    pub write: bool,
}

/// The reasons why a directory is not the Guest's root.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be the guest's root", path.display())]
pub struct RootError {
    /// The directory.
    pub path: PathBuf,
    /// The error in it.
    pub source: io::Error,
}

impl Explain for RootError {
    fn code(&self) -> Code {
        Code::Root
    }

    fn why(&self) -> String {
        self.source.to_string()
    }
}

impl Root {
    /// The root that `options` ask for; none if they only name an initrd.
    ///
    /// # Errors
    ///
    /// There is no such directory.
    pub fn find(options: &Run) -> Result<Option<Self>, RootError> {
        if options.initrd.is_some() && options.root.is_none() && !options.rw {
            return Ok(None);
        }
        let named = options.root.as_deref().unwrap_or(Path::new("/"));
        let directory = canonical_directory(named).map_err(|source| RootError {
            path: named.into(),
            source,
        })?;
        let write = options.rw;
        Ok(Some(Self { directory, write }))
    }

    /// The share that it is.
    pub fn share(&self) -> Share {
        Share {
            directory: self.directory.clone(),
            tag: TAG.into(),
            read_only: !self.write,
            private: !self.write,
        }
    }

    /// What the Host's directory `path` is called in the Guest: a directory below its root by its
    /// name from there, every other one by its name here.
    pub fn name_of(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix(&self.directory);
        Path::new("/").join(below.unwrap_or(path))
    }
}

fn canonical_directory(path: &Path) -> io::Result<PathBuf> {
    let path = path.canonicalize()?;
    // It must be possible to list it, too.
    fs::read_dir(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::run;

    fn find(arguments: &[&str]) -> Result<Option<Root>, RootError> {
        Root::find(&run(arguments).unwrap())
    }

    fn root(directory: &str, write: bool) -> Option<Root> {
        let directory = directory.into();
        Some(Root { directory, write })
    }

    #[test]
    fn the_root_is_the_hosts_unless_it_is_an_initrd() {
        assert_eq!(find(&[]).unwrap(), root("/", false));
        assert_eq!(find(&["--rw"]).unwrap(), root("/", true));
        assert_eq!(find(&["--root", "/usr/."]).unwrap(), root("/usr", false));
        assert_eq!(find(&["--initrd", "i"]).unwrap(), None);
        let both = find(&["--initrd", "i", "--root", "/usr", "--rw"]);
        assert_eq!(both.unwrap(), root("/usr", true));
    }

    #[test]
    fn what_is_no_directory_is_no_root() {
        for (path, kind) in [
            ("/no-such-directory", io::ErrorKind::NotFound),
            ("/etc/passwd", io::ErrorKind::NotADirectory),
        ] {
            let error = find(&["--root", path]).unwrap_err();
            assert!(error.to_string().contains(path));
            assert!(matches!(error, RootError { source, .. } if source.kind() == kind));
        }
    }

    #[test]
    fn names_of_directories() {
        let name = |root: Option<Root>, path: &'static str| root.unwrap().name_of(Path::new(path));
        assert_eq!(name(root("/", false), "/usr/src"), Path::new("/usr/src"));
        assert_eq!(name(root("/", false), "/"), Path::new("/"));
        assert_eq!(name(root("/srv/a", false), "/srv/a/b"), Path::new("/b"));
        assert_eq!(name(root("/srv/a", false), "/srv/a"), Path::new("/"));
        assert_eq!(name(root("/srv/a", false), "/srv/ab"), Path::new("/srv/ab"));
    }
}
