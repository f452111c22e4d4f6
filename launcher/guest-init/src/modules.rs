// SPDX-License-Identifier: GPL-2.0
//! The modules of a kernel that has not all built in that it needs for its devices.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{finit_module, ModuleInitFlags};
use nix::mount::{mount, umount, MsFlags};

use crate::{Doing, Failure};

/// The Launcher puts them here, if the kernel runs by Xen's ABI, by names in the order of loading.
const MODULES: &str = "/lg/modules";
/// The bus that all devices are on, and its driver.
const BUS: &str = "/sys/bus/xen/devices/pci-0";
const DRIVER: &str = "/sys/bus/xen/drivers/pcifront";

/// Loads them, and waits for the devices. `log` is the kernel's: a module that the kernel does not take may not
/// be missed.
pub(crate) fn load(log: Option<&File>) -> Result<(), Failure> {
    let Some(modules) = files(Path::new(MODULES)).doing("list the modules")? else {
        return Ok(());
    };
    for path in modules {
        let module = File::open(&path).doing(format!("open {}", path.display()))?;
        match finit_module(&module, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => {
                let line = format!("<4>init: cannot load {}: {error}\n", path.display());
                let _ = log.map(|mut log| log.write_all(line.as_bytes()));
            }
        }
        // It lies in RAM.
        let _ = fs::remove_file(path);
    }
    wait_for_bus()
}

/// The files in `directory` in the order of their names; none if it does not exist.
fn files(directory: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    files.sort();
    Ok(Some(files))
}

/// Waits until the drivers of all devices have seen theirs, which they do while the bus connects. However long that takes on
/// a busy machine, the time that the caller has given the Guest is the only bound.
fn wait_for_bus() -> Result<(), Failure> {
    fs::create_dir_all("/sys").doing("make /sys")?;
    mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .doing("mount /sys")?;
    // A machine without devices has no bus.
    let connected = match Path::new(BUS).exists() {
        true => connection(),
        false => Ok(()),
    };
    umount("/sys").doing("unmount /sys")?;
    connected
}

fn connection() -> Result<(), Failure> {
    // By now all modules are loaded: what is not there never comes.
    if !Path::new(DRIVER).exists() {
        let what =
            "the bus of the devices has no driver: is CONFIG_XEN_PCIDEV_FRONTEND in the kernel?";
        return Err(Failure(what.into()));
    }
    loop {
        let state = fs::read_to_string(Path::new(BUS).join("state"));
        match state.doing("read the state of the devices' bus")?.trim() {
            "Connected" => return Ok(()),
            // The driver has given up, and the kernel's log says why.
            gone @ ("Closing" | "Closed") => {
                return Err(Failure(format!("the bus of the devices is {gone}")));
            }
            _ => sleep(Duration::from_millis(1)),
        }
    }
}
