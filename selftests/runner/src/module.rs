// SPDX-License-Identifier: GPL-2.0
//! lg.ko, and other modules of the Host's kernel: loaded, unloaded, in use.

use crate::test::{text, Outcome};
use std::ffi::CStr;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// The reference count of the module; an error if it is not loaded.
fn module_users() -> Result<u32, String> {
    fs::read_to_string("/sys/module/lg/refcnt")
        .map_err(text)?
        .trim()
        .parse()
        .map_err(text)
}

pub(crate) fn expect_no_users() -> Outcome {
    // The last reference goes with the file, which the kernel may put a little after the process is gone.
    let patience = Instant::now() + Duration::from_secs(30);
    while module_users()? != 0 {
        if Instant::now() > patience {
            return Err(format!("{} users of the module are left", module_users()?));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub(crate) fn unload() -> Result<(), i32> {
    remove(c"lg")
}

/// Unloads a module.
pub(crate) fn remove(name: &CStr) -> Result<(), i32> {
    // SAFETY: takes a string.
    match unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or_default()),
    }
}

/// Loads the module as the machine's init does.
pub(crate) fn load() -> Outcome {
    let loaded = Command::new("load-lg").status().map_err(text)?;
    if loaded.success() {
        Ok(())
    } else {
        Err(format!("the module does not load: {loaded}"))
    }
}

/// Loads a module of the Host's kernel.
pub(crate) fn insert(path: &str) -> Outcome {
    use std::os::fd::AsRawFd;
    let module = fs::File::open(path).map_err(text)?;
    // SAFETY: takes a descriptor and a string.
    match unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(format!(
            "the module does not load: {}",
            std::io::Error::last_os_error()
        )),
    }
}
