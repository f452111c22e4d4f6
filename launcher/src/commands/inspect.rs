// SPDX-License-Identifier: GPL-2.0
//! `lg inspect`: what a kernel is, how lg would run it, and what it lacks.

#![forbid(unsafe_code)]

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::commands::config;
use crate::image::{Abi, Look, Refused};
use crate::plan::modules::{self, Wanted};
use crate::report::system::cannot_read;
use crate::report::{Error, Explain};

/// The kinds of devices that a run can have.
const DEVICES: [&str; 6] = ["console", "fs", "net", "vsock", "blk", "rng"];
/// What a kernel needs besides drivers, and for what. `CONFIG_XEN_PV` shows in its notes.
const NEEDED: [(&str, &str); 3] = [
    ("BLK_DEV_INITRD", "lg's init"),
    ("DEVTMPFS", "/dev"),
    ("EARLY_PRINTK", "the log, and the command's status"),
];

/// What is known of a kernel.
#[derive(Debug, Serialize)]
pub struct Kernel {
    file: PathBuf,
    /// "bzImage" or "ELF".
    container: &'static str,
    compression: Option<&'static str>,
    release: Option<String>,
    /// The ABIs that it knows: "lguest", "xen".
    abis: Vec<&'static str>,
    /// The one that lg would run it by.
    runs_by: Option<&'static str>,
    /// GVA of the first instruction there.
    entry: Option<String>,
    /// Why lg does not run it.
    refused: Option<Refusal>,
    /// Where its configuration was found.
    config: Option<String>,
    /// Where its modules are.
    modules: Option<PathBuf>,
    /// What it was built without, and lg could use.
    lacks: Vec<Lack>,
}

#[derive(Debug, Serialize)]
struct Refusal {
    code: String,
    why: String,
    fix: String,
}

/// An option that is not as it should be.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Lack {
    option: String,
    found: String,
    purpose: String,
}

impl Kernel {
    /// Looks at the kernel in `file`, whose modules are in the directory `modules`, or where they usually are.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no kernel.
    pub fn inspect(file: &Path, modules: Option<&Path>) -> Result<Self, Error> {
        let content = fs::read(file).map_err(cannot_read(file))?;
        let refused = |source| Refused {
            path: file.into(),
            source,
        };
        let look = Look::at(content).map_err(refused)?;
        let release = look.container.release;
        let tree = modules::tree(modules, release.as_deref());
        let config = match look.config {
            Some(text) => Some(("in the kernel itself".to_owned(), text)),
            None => modules::find_config(file, release.as_deref(), tree.as_deref()),
        };
        let (mut abis, mut runs_by, mut entry, mut refusal) = (Vec::new(), None, None, None);
        match look.image {
            Ok(image) => {
                let abi = match image.abi {
                    Abi::Lguest => "lguest",
                    Abi::Xen(_) => "xen",
                };
                abis.push(abi);
                abis.extend(image.also_xen.then_some("xen"));
                runs_by = Some(abi);
                entry = Some(format!("{:#x}", image.entry));
            }
            Err(source) => {
                let refused = refused(source);
                refusal = Some(Refusal {
                    code: refused.code().to_string(),
                    why: refused.why(),
                    fix: refused.fix(),
                });
            }
        }
        let text = config.as_ref().map(|(_, text)| text.as_str());
        let lacks = text.map_or(Vec::new(), |text| match runs_by {
            Some("lguest") => lacks_of_lguest(text),
            _ => lacks_of_xen(text, tree.as_deref()),
        });
        Ok(Self {
            file: file.into(),
            container: if look.container.bzimage {
                "bzImage"
            } else {
                "ELF"
            },
            compression: look.container.packed,
            release,
            abis,
            runs_by,
            entry,
            refused: refusal,
            config: config.map(|(place, _)| place),
            modules: tree,
            lacks,
        })
    }

    /// Would lg run it?
    pub fn runs(&self) -> bool {
        self.runs_by.is_some()
    }
}

fn lacks_of_lguest(text: &str) -> Vec<Lack> {
    let lack = |difference: config::Difference| Lack {
        option: format!("{}={}", difference.name, difference.wanted),
        found: difference.found,
        purpose: "the default guest has it (lg config)".into(),
    };
    let wanted = config::Interface::Lguest.wanted();
    config::compare(text, wanted)
        .into_iter()
        .map(lack)
        .collect()
}

/// A driver that is a module is of use if there are modules.
fn lacks_of_xen(text: &str, tree: Option<&Path>) -> Vec<Lack> {
    let options = config::options(text);
    let mut lacks = Vec::new();
    let mut lack = |option: &str, found: &str, purpose: &str| {
        lacks.push(Lack {
            option: format!("CONFIG_{option}=y"),
            found: found.into(),
            purpose: purpose.into(),
        });
    };
    let found = |option: &str| {
        let name = format!("CONFIG_{option}");
        options.get(name.as_str()).copied().unwrap_or("n")
    };
    if found("XEN_PV") != "y" {
        lack("XEN_PV", found("XEN_PV"), "running at all");
    }
    for (option, purpose) in NEEDED {
        if found(option) != "y" {
            lack(option, found(option), purpose);
        }
    }
    for wanted in modules::wanted(&DEVICES) {
        let Wanted {
            option, purpose, ..
        } = wanted;
        let has = match found(option) {
            "y" => true,
            "m" => tree.is_some_and(|tree| modules::find(tree, &[wanted]).is_ok()),
            _ => false,
        };
        if !has {
            let found = match found(option) {
                "m" => "m, and there is no such module",
                found => found,
            };
            lack(option, found, purpose);
        }
    }
    lacks
}

/// A line each, for people.
impl Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, what: &dyn Display| writeln!(f, "{name:<13} {what}");
        row("file", &self.file.display())?;
        match self.compression {
            Some(compression) => row("form", &format!("{}, {compression}", self.container))?,
            None => row("form", &self.container)?,
        }
        if let Some(release) = &self.release {
            row("release", release)?;
        }
        let name = |abi: &&str| match *abi {
            "lguest" => "lg's own",
            _ => "Xen's",
        };
        let abis: Vec<_> = self.abis.iter().map(name).collect();
        match abis.is_empty() {
            true => row("knows", &"no way to run as a guest of lg")?,
            false => row("knows", &format!("{} ABI", abis.join(" and ")))?,
        }
        if let (Some(abi), Some(entry)) = (&self.runs_by, &self.entry) {
            row("runs by", &format!("{} ABI, entry {entry}", name(abi)))?;
        }
        if let Some(Refusal { code, why, fix }) = &self.refused {
            row("refused", &format!("{code}: {why}"))?;
            row("fix", fix)?;
        }
        let unknown = "unknown, and so what it lacks";
        row(
            "configuration",
            self.config
                .as_ref()
                .map_or(&unknown as &dyn Display, |place| place),
        )?;
        if let Some(modules) = &self.modules {
            row("modules", &modules.display())?;
        }
        for Lack {
            option,
            found,
            purpose,
        } in &self.lacks
        {
            row("lacks", &format!("{option} (it is {found}): {purpose}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::{elf, good_notes};
    use crate::image::xen;

    /// Inspects a file with these notes, beside which is a configuration.
    fn inspect(notes: &[u8], config: Option<&str>) -> Kernel {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vmlinux");
        fs::write(&file, elf(notes)).unwrap();
        if let Some(config) = config {
            fs::write(directory.path().join(".config"), config).unwrap();
        }
        Kernel::inspect(&file, None).unwrap()
    }

    #[test]
    fn by_which_abi() {
        let both = [xen::tests::good_notes(), good_notes()].concat();
        for (notes, abis, runs_by) in [
            (good_notes(), &["lguest"][..], Some("lguest")),
            (xen::tests::good_notes(), &["xen"], Some("xen")),
            (both, &["lguest", "xen"], Some("lguest")),
            (Vec::new(), &[], None),
        ] {
            let kernel = inspect(&notes, None);
            assert_eq!((&kernel.abis[..], kernel.runs_by), (abis, runs_by));
            assert_eq!(kernel.runs(), runs_by.is_some());
            assert_eq!(kernel.refused.is_some(), runs_by.is_none());
            assert!(kernel.lacks.is_empty());
            assert!(kernel.to_string().contains("unknown"), "{kernel}");
        }
    }

    #[test]
    fn what_a_configuration_lacks() {
        let config = "CONFIG_XEN_PV=y\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\n\
            CONFIG_EARLY_PRINTK=y\nCONFIG_XEN_PCIDEV_FRONTEND=y\nCONFIG_VIRTIO_PCI=y\n\
            CONFIG_VIRTIO_CONSOLE=y\nCONFIG_VIRTIO_FS=y\nCONFIG_VIRTIO_NET=m\nCONFIG_VIRTIO_VSOCKETS=y\n\
            # CONFIG_VIRTIO_BLK is not set\n";
        let kernel = inspect(&xen::tests::good_notes(), Some(config));
        let lacks: Vec<_> = kernel.lacks.iter().map(|lack| &lack.option[..]).collect();
        let expected = [
            "CONFIG_VIRTIO_NET=y",
            "CONFIG_VIRTIO_BLK=y",
            "CONFIG_HW_RANDOM_VIRTIO=y",
        ];
        assert_eq!(lacks, expected);
        let text = kernel.to_string();
        assert!(
            text.contains("CONFIG_VIRTIO_BLK=y (it is n): --disk"),
            "{text}"
        );
        assert!(
            text.contains("it is m, and there is no such module"),
            "{text}"
        );
        let none = inspect(&[], Some("CONFIG_SMP=y\n"));
        assert_eq!(none.lacks[0].option, "CONFIG_XEN_PV=y");
        let own = inspect(&good_notes(), Some("CONFIG_64BIT=y\n"));
        assert!(own
            .lacks
            .iter()
            .any(|lack| lack.option == "CONFIG_LGUEST_GUEST=y"));
    }

    #[test]
    fn programs_read_it_too() {
        let json = serde_json::to_value(inspect(&xen::tests::good_notes(), None)).unwrap();
        assert_eq!(json["runs_by"], "xen");
        assert_eq!(json["entry"], "0xffffffff81000020");
        assert_eq!(json["container"], "ELF");
    }

    #[test]
    fn what_is_no_kernel() {
        let error = Kernel::inspect(Path::new("/etc/passwd"), None).unwrap_err();
        assert_eq!(error.code().to_string(), "LG0004");
        Kernel::inspect(Path::new("/no/such"), None).unwrap_err();
    }
}
