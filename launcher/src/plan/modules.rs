// SPDX-License-Identifier: GPL-2.0
//! The modules that a kernel of somebody else's needs before it can use lg's devices: those that it does not
//! have built in, found in its tree of modules, and handed to the Guest's init in the order of loading.
//!
//! Source: modules.dep(5), modules.builtin(5).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::image::{self, UnpackError};
use crate::report::codes::Code;
use crate::report::system::cannot_read;
use crate::report::{Error, Explain};

/// The place of all trees, by the release.
const TREES: &str = "/lib/modules";

/// A module that a device needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, as modprobe(8) takes it.
    pub name: &'static str,
    /// The option of the kernel's that has it, without CONFIG_.
    pub option: &'static str,
    /// What the device is for, in words.
    pub purpose: &'static str,
}

/// Whose driver may be missing: there are others that give random numbers.
const RANDOM: &str = "random numbers of the host's";

/// The driver of the bus that all devices of virtio's are on.
const PCIFRONT: Wanted = driver("xen-pcifront", "XEN_PCIDEV_FRONTEND", "all devices");

/// The modules for these kinds of devices, as `plan::Device` has them.
pub fn wanted(kinds: &[&str]) -> Vec<Wanted> {
    const ALL: [(&str, Wanted); 8] = [
        ("", PCIFRONT),
        ("", driver("virtio_pci", "VIRTIO_PCI", "all devices")),
        (
            "console",
            driver("virtio_console", "VIRTIO_CONSOLE", "terminal and streams"),
        ),
        (
            "fs",
            driver("virtiofs", "VIRTIO_FS", "the root, and --share"),
        ),
        ("net", driver("virtio_net", "VIRTIO_NET", "--net")),
        (
            "vsock",
            driver("vmw_vsock_virtio_transport", "VIRTIO_VSOCKETS", "--vsock"),
        ),
        ("blk", driver("virtio_blk", "VIRTIO_BLK", "--disk")),
        ("rng", driver("virtio-rng", "HW_RANDOM_VIRTIO", RANDOM)),
    ];
    let of_kinds = ALL
        .iter()
        .filter(|(kind, _)| kind.is_empty() || kinds.contains(kind));
    of_kinds.map(|&(_, wanted)| wanted).collect()
}

const fn driver(name: &'static str, option: &'static str, purpose: &'static str) -> Wanted {
    Wanted {
        name,
        option,
        purpose,
    }
}

/// The reasons why there are no modules.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ModulesError {
    #[error("{} is no tree of modules", .0.display())]
    NoTree(PathBuf, #[source] io::Error),
    #[error("the kernel has no module {}", .wanted.name)]
    Missing { wanted: Wanted, tree: PathBuf },
    #[error("{} cannot be unpacked", .0.display())]
    Damaged(PathBuf, #[source] UnpackError),
}

impl Explain for ModulesError {
    fn code(&self) -> Code {
        match self {
            Self::NoTree(..) | Self::Damaged(..) => Code::Modules,
            Self::Missing { .. } => Code::NoModule,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::NoTree(tree, source) => {
                format!("{}: {source}", tree.join("modules.dep").display())
            }
            Self::Missing { wanted, tree } => format!(
                "neither modules.dep nor modules.builtin in {} has it, and without it there is none of this: {}",
                tree.display(),
                wanted.purpose
            ),
            Self::Damaged(_, source) => source.to_string(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Missing { wanted, .. } => {
                let alone =
                    "; without it, it can have disks and a network alone, and an initrd of your own (--initrd)";
                let alone = if *wanted == PCIFRONT { alone } else { "" };
                format!(
                    "build the kernel with CONFIG_{}=y or =m{alone}",
                    wanted.option
                )
            }
            _ => self.code().fix().to_string(),
        }
    }
}

/// A module: its file's name, with .ko at the end, and what is in it.
pub type Module = (String, Vec<u8>);

/// The tree of the kernel that says it is `release`: `named`, or the one that is usual. None if that does not
/// exist: then the kernel must have all built in.
pub fn tree(named: Option<&Path>, release: Option<&str>) -> Option<PathBuf> {
    let usual = || {
        let tree = Path::new(TREES).join(release?);
        tree.exists().then_some(tree)
    };
    named.map(PathBuf::from).or_else(usual)
}

/// The configuration of the kernel in `file`, and the place of that: beside it, as it is installed or built, or with its
/// modules.
pub fn find_config(
    file: &Path,
    release: Option<&str>,
    tree: Option<&Path>,
) -> Option<(String, String)> {
    let directory = file.parent()?;
    let name = format!("config-{}", release.unwrap_or_default());
    let places = [
        Some(directory.join(&name)),
        Some(Path::new("/boot").join(&name)),
        tree.map(|tree| tree.join("config")),
        Some(directory.join(".config")),
        Some(directory.join("../../../.config")),
    ];
    let mut places = places.into_iter().flatten();
    places.find_map(|place| {
        Some((
            place.display().to_string(),
            fs::read_to_string(&place).ok()?,
        ))
    })
}

/// Does a kernel have the driver of the bus that all devices of virtio's are on? Its tree of modules says, or without one its
/// configuration. One without either is taken for one that has it.
///
/// # Errors
///
/// The tree is none.
pub fn has_bus(
    tree: Option<&Path>,
    config: impl FnOnce() -> Option<String>,
) -> Result<bool, Error> {
    let Some(tree) = tree else {
        // A module may be in the initrd.
        let lines = ["y", "m"].map(|value| format!("CONFIG_{}={value}", PCIFRONT.option));
        let has_one = |text: String| text.lines().any(|line| lines.iter().any(|one| one == line));
        return Ok(config().is_none_or(has_one));
    };
    let (dependencies, builtin) = lists(tree)?;
    let is_built_in = builtin.lines().any(|path| is_name_of(PCIFRONT.name, path));
    Ok(is_built_in || in_order(&dependencies, PCIFRONT.name).is_some())
}

/// What is in the lists of `tree`: of modules, and of what is built in.
fn lists(tree: &Path) -> Result<(String, String), Error> {
    let read = |name| fs::read_to_string(tree.join(name));
    let dependencies =
        read("modules.dep").map_err(|error| ModulesError::NoTree(tree.into(), error))?;
    // Trees of before Linux 2.6.33 are without.
    Ok((dependencies, read("modules.builtin").unwrap_or_default()))
}

/// Finds `wanted` in `tree`, and what they need, in the order of loading.
///
/// # Errors
///
/// The tree is none, or has them neither as modules nor built in.
pub fn find(tree: &Path, wanted: &[Wanted]) -> Result<Vec<Module>, Error> {
    let (dependencies, builtin) = lists(tree)?;
    let mut files = Vec::new();
    for &wanted in wanted {
        match in_order(&dependencies, wanted.name) {
            Some(paths) => files.extend(paths),
            None if wanted.purpose == RANDOM => {}
            None if builtin.lines().any(|path| is_name_of(wanted.name, path)) => {}
            None => {
                let tree = tree.into();
                return Err(ModulesError::Missing { wanted, tree }.into());
            }
        }
    }
    let mut known = HashMap::new();
    let mut modules = Vec::new();
    for file in files {
        if known.insert(file, ()).is_some() {
            continue;
        }
        let path = tree.join(file);
        let packed = fs::read(&path).map_err(cannot_read(&path))?;
        let module = image::module(packed).map_err(|error| ModulesError::Damaged(path, error))?;
        modules.push((format!("{}.ko", name_of(file)), module));
    }
    Ok(modules)
}

/// The files of module `name` and of all that it needs, in the order of loading, by `dependencies`, the text of
/// a modules.dep: there, what a module needs follows it, and what that needs behind it.
fn in_order<'a>(dependencies: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let (path, needed) = lines.into_iter().find(|(path, _)| is_name_of(name, path))?;
    Some(needed.split_whitespace().rev().chain([path]).collect())
}

/// The name of a module by its file's, such as kernel/drivers/net/virtio_net.ko.xz.
fn name_of(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split('.').next().unwrap_or_default()
}

/// Is `path` the file of module `name`? For a name, "-" and "_" are the same.
fn is_name_of(name: &str, path: &str) -> bool {
    let bytes = |name: &str| name.replace('-', "_");
    bytes(name_of(path)) == bytes(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// A tree with a module that needs another two, of which one is packed.
    fn a_tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let write =
            |name: &str, content: &[u8]| fs::write(tree.path().join(name), content).unwrap();
        write(
            "modules.dep",
            b"a/net-failover.ko: a/failover.ko.xz\n\
              a/failover.ko.xz:\n\
              a/virtio_net.ko: a/net-failover.ko a/failover.ko.xz\n",
        );
        write("modules.builtin", b"kernel/drivers/virtio/virtio_pci.ko\n");
        fs::create_dir(tree.path().join("a")).unwrap();
        write("a/net-failover.ko", b"second");
        write("a/virtio_net.ko", b"third");
        let mut xz = Command::new("xz")
            .stdin(Stdio::piped())
            .stdout(fs::File::create(tree.path().join("a/failover.ko.xz")).unwrap())
            .spawn()
            .unwrap();
        xz.stdin.take().unwrap().write_all(b"first").unwrap();
        assert!(xz.wait().unwrap().success());
        tree
    }

    const NET: Wanted = driver("virtio-net", "VIRTIO_NET", "--net");
    const PCI: Wanted = driver("virtio_pci", "VIRTIO_PCI", "all devices");

    #[test]
    fn what_a_module_needs_comes_first_and_once() {
        let tree = a_tree();
        let failover = Wanted {
            name: "failover",
            ..NET
        };
        let found = find(tree.path(), &[failover, PCI, NET]).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(name, content)| (&name[..], &content[..]))
            .collect();
        let expected: [(&str, &[u8]); 3] = [
            ("failover.ko", b"first"),
            ("net-failover.ko", b"second"),
            ("virtio_net.ko", b"third"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn refusals() {
        let tree = a_tree();
        let blk = driver("virtio_blk", "VIRTIO_BLK", "--disk");
        let error = find(tree.path(), &[blk]).unwrap_err();
        assert_eq!(error.code(), Code::NoModule);
        assert!(error.fix().contains("CONFIG_VIRTIO_BLK"), "{}", error.fix());
        fs::write(tree.path().join("a/failover.ko.xz"), b"\xfd7zXZ\0\0").unwrap();
        let error = find(tree.path(), &[NET]).unwrap_err();
        assert_eq!(error.code(), Code::Modules, "{error:?}");
        let error = find(Path::new("/no/such"), &[NET]).unwrap_err();
        assert_eq!(error.code(), Code::Modules);
        assert!(
            error.why().contains("/no/such/modules.dep"),
            "{}",
            error.why()
        );
    }

    #[test]
    fn random_numbers_come_from_elsewhere_too() {
        let rng = wanted(&["rng"]).pop().unwrap();
        assert_eq!(find(a_tree().path(), &[rng]).unwrap(), []);
    }

    #[test]
    fn a_bus_as_a_module_or_built_in_or_none() {
        let tree = a_tree();
        let unknown = || None;
        assert!(!has_bus(Some(tree.path()), unknown).unwrap());
        let error = find(tree.path(), &wanted(&[])).unwrap_err();
        assert!(
            error.fix().contains("disks and a network alone"),
            "{}",
            error.fix()
        );
        let path = "kernel/drivers/pci/xen-pcifront.ko";
        for (name, list) in [
            ("modules.builtin", path.into()),
            ("modules.dep", format!("{path}:\n")),
        ] {
            let tree = a_tree();
            fs::write(tree.path().join(name), list).unwrap();
            assert!(has_bus(Some(tree.path()), unknown).unwrap(), "{name}");
        }
        assert!(has_bus(Some(Path::new("/no/such")), unknown).is_err());
        assert!(has_bus(None, unknown).unwrap());
        for (line, has_one) in [
            ("CONFIG_XEN_PCIDEV_FRONTEND=y", true),
            ("CONFIG_XEN_PCIDEV_FRONTEND=m", true),
            ("# CONFIG_XEN_PCIDEV_FRONTEND is not set", false),
        ] {
            let config = || Some(format!("CONFIG_XEN=y\n{line}\n"));
            assert_eq!(has_bus(None, config).unwrap(), has_one, "{line}");
        }
    }

    #[test]
    fn trees() {
        assert_eq!(tree(Some(Path::new("here")), None), Some("here".into()));
        assert_eq!(tree(None, None), None);
        assert_eq!(tree(None, Some("0.0-no-such")), None);
    }

    #[test]
    fn each_kind_of_device_has_its_driver() {
        let names = |kinds: &[&str]| -> Vec<_> {
            wanted(kinds)
                .into_iter()
                .map(|wanted| wanted.name)
                .collect()
        };
        assert_eq!(names(&[]), ["xen-pcifront", "virtio_pci"]);
        let all = ["console", "ports", "fs", "net", "vsock", "blk", "rng"];
        assert_eq!(names(&all).len(), 2 + 6);
    }
}
