// SPDX-License-Identifier: GPL-2.0
//! The nodes of the xenstore: a value for each path.
//!
//! A copy shares all paths and values with what it was made from.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Nodes, whoever made them.
pub const NODES_MAX: usize = 1024;
/// Bytes of a value.
pub const VALUE_MAX: usize = 2048;
/// Bytes of a path, from the root.
pub const PATH_MAX: usize = 3072;
/// The kernel's domain: what it names without a "/" in front is below this, and so is all that it may change.
pub const HOME: &str = "/local/domain/1";

/// A refusal, by the name that goes to the kernel: that of an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str);

/// It makes no sense.
pub const EINVAL: Refused = Refused("EINVAL");
/// It is not there.
pub const ENOENT: Refused = Refused("ENOENT");
/// It is not the kernel's to change.
pub const EACCES: Refused = Refused("EACCES");
/// There would be too much.
pub const ENOSPC: Refused = Refused("ENOSPC");

/// An absolute path: "/", or names with a "/" before each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Arc<str>);

impl Path {
    /// The path that the kernel means by `text`.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn parse(text: &[u8]) -> Result<Self, Refused> {
        let text = std::str::from_utf8(text).map_err(|_| EINVAL)?;
        let absolute = match text.starts_with('/') {
            true => text.to_string(),
            false => format!("{HOME}/{text}"),
        };
        let is_of_names = absolute == "/" || absolute[1..].split('/').all(is_name);
        match is_of_names && absolute.len() <= PATH_MAX {
            true => Ok(Self(absolute.into())),
            false => Err(EINVAL),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is it below `other`?
    pub fn is_below(&self, other: &Self) -> bool {
        self.0
            .strip_prefix(other.as_prefix())
            .is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
    }

    /// That which, with a "/" and a name, is the path of a child.
    fn as_prefix(&self) -> &str {
        match &*self.0 {
            "/" => "",
            path => path,
        }
    }

    fn parent(&self) -> Option<Self> {
        let (parent, name) = self.0.rsplit_once('/')?;
        match (parent, name) {
            ("", "") => None,
            ("", _) => Some(Self("/".into())),
            _ => Some(Self(parent.into())),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_@:.+".contains(&byte))
}

/// All nodes but the root, which is always there and has no value.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<Path, Arc<[u8]>>);

impl Tree {
    /// The value of a node.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn read(&self, path: &Path) -> Result<&[u8], Refused> {
        match self.0.get(path) {
            Some(value) => Ok(value),
            None if path.as_str() == "/" => Ok(&[]),
            None => Err(ENOENT),
        }
    }

    /// The names of a node's children.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn children(&self, path: &Path) -> Result<Vec<&str>, Refused> {
        self.read(path)?;
        let start = path.as_prefix().len() + 1;
        let names = self.below(path).map(|below| &below.as_str()[start..]);
        Ok(names.filter(|name| !name.contains('/')).collect())
    }

    /// Sets a node's value. What is missing on the way to it is made, with empty values.
    ///
    /// # Errors
    ///
    /// There would be too much.
    pub fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), Refused> {
        let ancestors = std::iter::successors(path.parent(), Path::parent);
        let missing: Vec<_> = ancestors.filter(|path| self.read(path).is_err()).collect();
        let new = missing.len() + usize::from(self.read(path).is_err());
        if self.0.len() + new > NODES_MAX || value.len() > VALUE_MAX {
            return Err(ENOSPC);
        }
        if path.as_str() == "/" {
            return Err(EINVAL);
        }
        for path in missing {
            self.0.insert(path, Arc::default());
        }
        self.0.insert(path.clone(), value.into());
        Ok(())
    }

    /// Removes a node with all that is below it. Tells whether there was one.
    ///
    /// # Errors
    ///
    /// It could not have been there: its parent is not. Or it is the root.
    pub fn remove(&mut self, path: &Path) -> Result<bool, Refused> {
        self.read(&path.parent().ok_or(EINVAL)?)?;
        let below: Vec<_> = self.below(path).cloned().collect();
        for path in below {
            self.0.remove(&path);
        }
        Ok(self.0.remove(path).is_some())
    }

    /// The paths below `path`, which follow each other: no character of a name is right after "/".
    fn below<'a>(&'a self, path: &Path) -> impl Iterator<Item = &'a Path> {
        let path = path.clone();
        let first = Path(format!("{}/", path.as_prefix()).into());
        let paths = self.0.range(first..).map(|(path, _)| path);
        paths.take_while(move |below| below.is_below(&path))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn paths() {
        assert_eq!(path("device/pci").as_str(), "/local/domain/1/device/pci");
        assert_eq!(path("/").parent(), None);
        assert_eq!(path("/a").parent(), Some(path("/")));
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert!(path("/a/b").is_below(&path("/")) && path("/a/b").is_below(&path("/a")));
        assert!(!path("/ab").is_below(&path("/a")) && !path("/a").is_below(&path("/a")));
        assert!(!path("/").is_below(&path("/")));
        for bad in ["", "a/", "/a/", "//", "a//b", "a b", "a\0", "\u{e9}"] {
            assert_eq!(Path::parse(bad.as_bytes()), Err(EINVAL), "{bad:?}");
        }
        assert_eq!(Path::parse(&[0xff]), Err(EINVAL));
        assert_eq!(Path::parse(&[b'a'; PATH_MAX]), Err(EINVAL));
        assert!(Path::parse(&[b'a'; PATH_MAX - HOME.len() - 1]).is_ok());
    }

    #[test]
    fn nodes() {
        let mut tree = Tree::default();
        tree.write(&path("/a/b/c"), b"1").unwrap();
        tree.write(&path("/a/b-d"), b"2").unwrap();
        tree.write(&path("/a/b0"), b"3").unwrap();
        assert_eq!(tree.read(&path("/a/b/c")), Ok(&b"1"[..]));
        assert_eq!(tree.read(&path("/a/b")), Ok(&b""[..]));
        assert_eq!(tree.children(&path("/a")), Ok(vec!["b", "b-d", "b0"]));
        assert_eq!(tree.children(&path("/")), Ok(vec!["a"]));
        assert_eq!(tree.children(&path("/b")), Err(ENOENT));
        assert_eq!(tree.remove(&path("/a/b")), Ok(true));
        assert_eq!(tree.remove(&path("/a/b")), Ok(false));
        assert_eq!(tree.remove(&path("/a/b/c")), Err(ENOENT));
        assert_eq!(tree.remove(&path("/")), Err(EINVAL));
        assert_eq!(tree.children(&path("/a")), Ok(vec!["b-d", "b0"]));
    }

    #[test]
    fn quotas() {
        let mut tree = Tree::default();
        assert_eq!(tree.write(&path("/a"), &[0; VALUE_MAX + 1]), Err(ENOSPC));
        for number in 1..NODES_MAX {
            tree.write(&path(&format!("/a/{number}")), &[0; VALUE_MAX])
                .unwrap();
        }
        assert_eq!(tree.write(&path("/b"), b""), Err(ENOSPC));
        assert_eq!(tree.write(&path("/a/1"), b"new"), Ok(()), "it is there");
        let deep = "/a".repeat(PATH_MAX / 2);
        assert_eq!(Tree::default().write(&path(&deep), b""), Err(ENOSPC));
    }

    proptest! {
        /// Like a set of paths that has, with each, all above it.
        #[test]
        fn is_like_a_set(steps in prop::collection::vec((any::<bool>(), "(/[ab-]){1,4}"), 0..40)) {
            let mut tree = Tree::default();
            let mut set = BTreeSet::from(["/".to_string()]);
            for (write, text) in steps {
                let path = path(&text);
                if write {
                    tree.write(&path, text.as_bytes()).unwrap();
                    let ends = text.match_indices('/').map(|(at, _)| at).skip(1).chain([text.len()]);
                    set.extend(ends.map(|end| text[..end].to_string()));
                } else {
                    let _ = tree.remove(&path);
                    set.retain(|other| other != &text && !other.starts_with(&format!("{text}/")));
                }
            }
            for text in &set {
                let parent = path(text);
                let names = tree.children(&parent).unwrap();
                let children: Vec<_> = set.iter().filter(|other| path(other).parent().as_ref() == Some(&parent)).collect();
                prop_assert_eq!(names.len(), children.len());
            }
            prop_assert_eq!(tree.0.len() + 1, set.len());
        }
    }
}
