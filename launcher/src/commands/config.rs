// SPDX-License-Identifier: GPL-2.0
//! `lg config`: does a kernel tree's configuration have what a Guest needs, and if not, puts it there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::report::codes::Code;
use crate::report::system::{cannot_read, cannot_write};
use crate::report::{Error, Explain};

/// The configuration of the default Guest, which has the patches.
const WANTED: &str = include_str!("../../../guest-kernel-patch/lguest.config");
/// What a kernel without them needs.
const WANTED_UNPATCHED: &str = include_str!("../../../guest-kernel-patch/xen.config");
/// The directory in which the Guest's patches put their code.
const PATCHED: &str = "arch/x86/lguest";

/// The interface by which a kernel is a Guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// lg's own, for which it has the patches.
    Lguest,
    /// Xen's for PV domains, which Linux has as it is.
    Xen,
}

impl Interface {
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Self::Lguest => WANTED,
            Self::Xen => WANTED_UNPATCHED,
        }
    }
}

/// Options by name; those that are not set have the value `n`.
pub(super) type Options<'a> = BTreeMap<&'a str, &'a str>;

/// An option that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// The option.
    pub name: &'static str,
    /// The value that it should have.
    pub wanted: &'static str,
    /// The value that it has.
    pub found: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            wanted,
            found,
        } = self;
        write!(f, "{name}: {found}, should be {wanted}")
    }
}

/// The findings, and what was done.
#[derive(Debug)]
pub struct Outcome {
    /// The configuration.
    pub path: PathBuf,
    /// The options that were not as they should be.
    pub differences: Vec<Difference>,
    /// Does the tree lack the Guest's patches, and needs them?
    pub unpatched: bool,
}

/// The reasons why there is nothing to configure.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum TreeError {
    #[error("{} is no kernel tree", .0.display())]
    NoTree(PathBuf),
    #[error("there is no {}", .0.display())]
    NoConfig(PathBuf),
}

impl Explain for TreeError {
    fn code(&self) -> Code {
        match self {
            Self::NoTree(_) => Code::NoTree,
            Self::NoConfig(_) => Code::NoConfig,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::NoTree(_) => "there is no Kconfig in it".into(),
            Self::NoConfig(_) => "the tree has no configuration yet".into(),
        }
    }
}

/// Compares the configuration of `tree` with what a Guest by `interface` needs; unless `only_check`, makes it so and
/// keeps the old one as `.config.old`. `output` is where the tree is built, if not in itself
/// (`$KBUILD_OUTPUT`).
///
/// # Errors
///
/// There is no tree or no configuration, or it cannot be read or written.
pub fn run(
    tree: &Path,
    output: Option<&Path>,
    interface: Interface,
    only_check: bool,
) -> Result<Outcome, Error> {
    let wanted = interface.wanted();
    if !tree.join("Kconfig").exists() {
        return Err(TreeError::NoTree(tree.into()).into());
    }
    let path = output.unwrap_or(tree).join(".config");
    let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TreeError::NoConfig(path.clone()).into(),
        _ => cannot_read(&path)(source),
    })?;
    let differences = compare(&text, wanted);
    if !only_check && !differences.is_empty() {
        replace(&path, &merge(&text, wanted)).map_err(cannot_write(&path))?;
    }
    let unpatched = interface == Interface::Lguest && !tree.join(PATCHED).exists();
    Ok(Outcome {
        path,
        differences,
        unpatched,
    })
}

/// The lines of `text`, each with all that is in it: what is not ours stays as it is.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_terminator('\n')
}

/// Name and value of an option, if `line` is one.
fn option(line: &str) -> Option<(&str, &str)> {
    match line.strip_prefix("# ") {
        Some(comment) => comment.strip_suffix(" is not set").map(|name| (name, "n")),
        None => line.split_once('='),
    }
    .filter(|(name, _)| name.starts_with("CONFIG_"))
}

/// The options that `text`, a configuration, names.
pub(super) fn options(text: &str) -> Options<'_> {
    lines(text).filter_map(option).collect()
}

/// What is not in `text` as it is in `wanted`.
pub(super) fn compare(text: &str, wanted: &'static str) -> Vec<Difference> {
    let found = options(text);
    options(wanted)
        .into_iter()
        .filter_map(|(name, wanted)| {
            // An option that a configuration does not name is not set.
            let found = found.get(name).copied().unwrap_or("n");
            (found != wanted).then(|| Difference {
                name,
                wanted,
                found: found.into(),
            })
        })
        .collect()
}

/// `text` with the wanted options. Those that it has not got as they should be are at its end: of the
/// members of a choice, such as CONFIG_CC_OPTIMIZE_FOR_SIZE and _PERFORMANCE, Kconfig takes the one
/// that comes last.
fn merge(text: &str, wanted: &str) -> String {
    let found = options(text);
    let mut missing = options(wanted);
    missing.retain(|name, wanted| found.get(name) != Some(wanted));
    let ours = |line| option(line).is_some_and(|(name, _)| missing.contains_key(name));
    let mut merged = String::new();
    for line in lines(text).filter(|line| !ours(line)) {
        merged += line;
        merged.push('\n');
    }
    for (name, value) in missing {
        merged += &line_of(name, value);
    }
    merged
}

fn line_of(name: &str, value: &str) -> String {
    match value {
        "n" => format!("# {name} is not set\n"),
        value => format!("{name}={value}\n"),
    }
}

/// Makes `text` the content of `path`, which is at each moment the old file or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    fs::copy(path, path.with_extension("old"))?;
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, config: Option<&str>) -> Self {
            let path = std::env::temp_dir().join(format!("lg-tree-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("Kconfig"), "").unwrap();
            if let Some(config) = config {
                fs::write(path.join(".config"), config).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_fragment_is_what_it_wants() {
        for (wanted, own) in [
            (WANTED, "CONFIG_LGUEST_GUEST"),
            (WANTED_UNPATCHED, "CONFIG_XEN_PV"),
        ] {
            assert!(options(wanted).len() > 40);
            assert_eq!(compare(wanted, wanted), []);
            assert_eq!(options(wanted)[own], "y");
        }
    }

    #[test]
    fn check_changes_nothing_and_merge_does() {
        let old = "# a comment\nCONFIG_MODULES=y\nCONFIG_MINE=m\nCONFIG_64BIT=y\n";
        let tree = Tree::new("merge", Some(old));
        let config = tree.0.join(".config");
        let outcome = run(&tree.0, None, Interface::Lguest, true).unwrap();
        let smp = &outcome
            .differences
            .iter()
            .find(|d| d.name == "CONFIG_MODULES");
        assert_eq!(smp.unwrap().to_string(), "CONFIG_MODULES: y, should be n");
        assert!(outcome.unpatched);
        assert_eq!(fs::read_to_string(&config).unwrap(), old);

        fs::create_dir_all(tree.0.join(PATCHED)).unwrap();
        assert!(
            !run(&tree.0, None, Interface::Lguest, false)
                .unwrap()
                .unpatched
        );
        let new = fs::read_to_string(&config).unwrap();
        let head = "# a comment\nCONFIG_MINE=m\nCONFIG_64BIT=y\n";
        assert!(new.starts_with(head), "{new}");
        assert!(new.contains("\n# CONFIG_MODULES is not set\n"), "{new}");
        assert_eq!(fs::read_to_string(tree.0.join(".config.old")).unwrap(), old);
        let again = run(&tree.0, None, Interface::Lguest, true).unwrap();
        assert_eq!(again.differences, []);
    }

    #[test]
    fn a_tree_without_patches_can_be_a_guest_of_xens_kind() {
        let tree = Tree::new("xen", Some("CONFIG_XEN_PCIDEV_FRONTEND=m\nCONFIG_SMP=y\n"));
        let outcome = run(&tree.0, None, Interface::Xen, false).unwrap();
        assert!(!outcome.unpatched);
        let named = |name| outcome.differences.iter().find(|d| d.name == name);
        let pci = named("CONFIG_XEN_PCIDEV_FRONTEND").unwrap().to_string();
        assert_eq!(pci, "CONFIG_XEN_PCIDEV_FRONTEND: m, should be y");
        assert_eq!(named("CONFIG_SMP"), None);
        let again = run(&tree.0, None, Interface::Xen, true).unwrap();
        assert_eq!(again.differences, []);
    }

    #[test]
    fn of_a_choice_the_wanted_member_is_last() {
        let merged = merge(
            "# CONFIG_CC_OPTIMIZE_FOR_PERFORMANCE is not set\nCONFIG_CC_OPTIMIZE_FOR_SIZE=y\n",
            WANTED,
        );
        let at = |line| merged.find(line).unwrap();
        assert!(at("FOR_PERFORMANCE=y") > at("FOR_SIZE=y"), "{merged}");
        assert!(!merged.contains("FOR_PERFORMANCE is not"), "{merged}");
    }

    #[test]
    fn no_tree_and_no_configuration() {
        let nowhere = std::env::temp_dir().join("lg-no-such-tree");
        let code = |tree| {
            let found = run(tree, None, Interface::Lguest, true);
            found.map(drop).unwrap_err().code()
        };
        assert_eq!(code(&nowhere), Code::NoTree);
        let tree = Tree::new("bare", None);
        assert_eq!(code(&tree.0), Code::NoConfig);
        let elsewhere = Tree::new("output", Some(WANTED));
        let found = run(&tree.0, Some(&elsewhere.0), Interface::Lguest, true);
        assert_eq!(found.unwrap().differences, []);
    }

    proptest! {
        #[test]
        fn merging_is_enough_and_once_is_enough(
            lines in prop::collection::vec(
                prop_oneof![
                    ".*",
                    prop::sample::select(WANTED.lines().collect::<Vec<_>>()).prop_map(str::to_owned),
                    "CONFIG_(SMP|PCI|64BIT|MINE)=[ymn]",
                ],
                0..20,
            ),
        ) {
            for wanted in [WANTED, WANTED_UNPATCHED] {
                let merged = merge(&lines.join("\n"), wanted);
                prop_assert_eq!(compare(&merged, wanted), []);
                prop_assert_eq!(merge(&merged, wanted), merged);
            }
        }
    }
}
